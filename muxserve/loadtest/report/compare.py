"""Two reports beside each other: the same servers and loads, what changed, and by how much."""

from collections.abc import Mapping
from typing import Any

from muxserve.loadtest.report.verdict import gains, rate_of

_FIGURES = {
    "texts_per_s": 1,
    "highest_rate_per_s": 1,
    "p50_ms": 1,
    "p99_ms": 1,
    "error_rate": 4,
    "mean_num_instances": 2,
    "occupancy": 3,
    "texts_per_forward": 1,
    "accuracy": 4,
    "agreement_with_n1": 4,
    "server_cpu_s_per_1000_texts": 3,
}


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of both, and their ratios, for each server and load that both have.

    Returns:
        ``rows`` with ``server``, ``load``, ``figure``, ``a``, ``b`` and ``ratio`` (b over a, None
        where it has none); ``only_in_a``, ``only_in_b``; and ``differences`` of the environments
        and scenarios, because a ratio over two machines is none.
    """
    first, second = _by_place(a), _by_place(b)
    rows = []
    for place in first:
        if place not in second:
            continue
        one, other = first[place], second[place]
        for figure in (*_FIGURES, "gain_over_first"):
            before, after = one.get(figure), other.get(figure)
            if before is None and after is None:
                continue
            ratio = after / before if before and after is not None else None
            server, load, _ = place
            rows.append(
                {"server": server, "load": load, "figure": figure, "a": before, "b": after,
                 "ratio": ratio}
            )  # fmt: skip
    return {
        "rows": rows,
        "only_in_a": [f"{p[0]}, {p[1]}" for p in first if p not in second],
        "only_in_b": [f"{p[0]}, {p[1]}" for p in second if p not in first],
        "differences": _differences(a, b),
    }


def as_rows(compared: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For a table of the command line; the first row is its head."""
    rows: list[tuple[str, ...]] = [("server", "load", "figure", "a", "b", "b / a")]
    for one in compared["rows"]:
        digits = _FIGURES.get(one["figure"], 2)
        shown = ["" if one[side] is None else f"{one[side]:,.{digits}f}" for side in ("a", "b")]
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        rows.append((one["server"], one["load"], one["figure"], *shown, ratio))
    return rows


def _by_place(report: Mapping[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    over = gains(report)
    return {
        (server["name"], load["shape"]["shape"], index): {
            **load,
            "gain_over_first": over.get(server["name"]) if rate_of(load) is not None else None,
        }
        for server in report["servers"]
        for index, load in enumerate(server["loads"])
    }


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    found = []
    for what in ("environment", "scenario"):
        for key in sorted({*a[what], *b[what]} - {"date", "servers"}):
            one, other = a[what].get(key), b[what].get(key)
            if one != other:
                found.append(f"{what}.{key}: {one} / {other}")
    specs = [{one["name"]: one.get("spec", {}) for one in report["servers"]} for report in (a, b)]
    for name in specs[0].keys() & specs[1].keys():
        before, after = specs[0][name], specs[1][name]
        found += [
            f"{name}.{key}: {before.get(key)} / {after.get(key)}"
            for key in sorted({*before, *after})
            if (before.get(key) or None) != (after.get(key) or None)  # a report may be older
        ]
    return found
