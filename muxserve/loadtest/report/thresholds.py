"""``--fail-if 'p99_ms > 200'``: a figure, a comparison, a number; for CI."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from muxserve.errors import InvalidInput
from muxserve.loadtest.report.verdict import gains

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
FIGURES = (
    "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "texts_per_s", "error_rate", "errors",
    "accuracy", "agreement_with_n1", "occupancy", "mean_num_instances",
    "texts_per_forward", "server_cpu_s_per_1000_texts", "gain_over_first", "highest_rate_per_s",
)  # fmt: skip
_RULE = re.compile(
    r"(?:(?P<server>[^:]*?)(?:/(?P<load>\w+))?:)?\s*(?P<figure>\w+)\s*(?P<by>>=|<=|>|<)\s*(?P<value>[-+\d.e]+)\s*"
)


@dataclass(frozen=True)
class Threshold:
    """A rule that fails a run where it holds for some load.

    Attributes:
        rule: as it was given.
        server: whose loads; None for all.
        load: shape of the loads; None for all, but latencies of 'saturate'.
        figure: name of the figure.
        by: of the comparison.
        value: to compare with.
    """

    rule: str
    server: str | None
    load: str | None
    figure: str
    by: str
    value: float


def parse_threshold(rule: str) -> Threshold:
    """A rule: ``p99_ms > 200``, ``elastic: accuracy < 0.8`` or ``elastic/burst: p99_ms > 200``.

    Raises:
        InvalidInput: it cannot be read; the message says what was expected.
    """
    found = _RULE.fullmatch(rule.strip())
    if found is None:
        raise InvalidInput(
            f"--fail-if {rule!r}: expected FIGURE > NUMBER (or >=, <, <=), such as 'p99_ms > 200', "
            "or with a server, or a server and a load, before it: 'elastic: accuracy < 0.8', "
            "'elastic/burst: p99_ms > 200'"
        )
    if found["figure"] not in FIGURES:
        raise InvalidInput(
            f"--fail-if {rule!r}: no figure {found['figure']!r}; known are {', '.join(FIGURES)}"
        )
    try:
        value = float(found["value"])
    except ValueError:
        raise InvalidInput(f"--fail-if {rule!r}: {found['value']!r} is no number") from None
    server = (found["server"] or "").strip() or None
    return Threshold(rule, server, found["load"], found["figure"], found["by"], value)


def check(report: Mapping[str, Any], thresholds: list[Threshold]) -> list[dict[str, Any]]:
    """Each rule, whether it failed the run, and where.

    A rule whose figure was not measured anywhere fails the run too: it must not pass unchecked.
    """
    over = gains(report)
    if report["servers"]:
        over.pop(report["servers"][0]["name"], None)  # over itself it is 1
    results = []
    for one in thresholds:
        where, seen = [], 0
        for server in report["servers"]:
            if one.server not in (None, server["name"]):
                continue
            for load in server["loads"]:
                shape = load["shape"]["shape"]
                if one.load not in (None, shape):
                    continue
                if one.load is None and shape == "saturate" and one.figure.endswith("_ms"):
                    continue  # of its own line
                value = _figure(load, one.figure, over.get(server["name"]))
                if value is None:
                    continue
                seen += 1
                if _COMPARISONS[one.by](value, one.value):
                    where.append(f"{server['name']}, {shape}: {value:g}")
        if not seen:
            where.append("nothing was measured that it could be checked on")
        results.append({"rule": one.rule, "failed": bool(where), "where": "; ".join(where)})
    return results


def _figure(load: Mapping[str, Any], name: str, gain: float | None) -> float | None:
    if name == "errors":
        return float(sum(load["errors"].values()))
    if name == "gain_over_first":
        return gain
    value: float | None = load.get(name)
    return value
