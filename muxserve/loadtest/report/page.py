"""The report as one HTML page: no script, no font and no picture from elsewhere."""

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from muxserve.loadtest.report.charts import bars, lines
from muxserve.loadtest.report.verdict import asked, gains, main_load, rate_of

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_STYLE += "".join(
    f".line.c{i}{{stroke:var(--c{i});stroke-dasharray:{dash}}}.bar.c{i}{{fill:var(--c{i})}}\n"
    for i, dash in enumerate(("none", "8 4", "2 4", "10 3 2 3", "5 2", "1 5"))
)
_STYLE += ".legend .line{stroke-width:2.5}"

METHOD = (
    "Arrivals are Poisson and drawn before anything is sent; a request is sent when it is due, "
    "however many are under way, and its latency counts from then and not from when it was sent. "
    "So a slow server cannot slow its own test (coordinated omission). 'saturate' is a closed "
    "loop: it measures a rate, and its latencies are those of its own line. Latencies are of "
    "answered requests; the others are counted as errors, by code. The first seconds (warm-up) do "
    "not count. Latencies are counted in buckets of 1 % width."
)

Row = Mapping[str, Any]
COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("texts/s", lambda one: _number(one["texts_per_s"], 1)),
    ("offered/s", lambda one: _number(one["offered_per_s"], 1)),
    ("p50 ms", lambda one: _number(one["p50_ms"], 1)),
    ("p99 ms", lambda one: _number(one["p99_ms"], 1)),
    ("errors", lambda one: f"{sum(one['errors'].values()):,}"),
    ("mean N", lambda one: _number(one["mean_num_instances"], 1)),
    ("occupancy", lambda one: _percent(one["occupancy"])),
    ("texts/forward", lambda one: _number(one["texts_per_forward"], 1)),
    ("accuracy", lambda one: _percent(one["accuracy"])),
    ("as N=1", lambda one: _percent(one["agreement_with_n1"])),
    ("family's figure", lambda one: _percent(one["measured_quality"])),
    ("server CPU s/1,000", lambda one: _number(one["server_cpu_s_per_1000_texts"], 2)),
    ("generator's", lambda one: _number(one["generator_cpu_s_per_1000_texts"], 2)),
    ("generator late p99 ms", lambda one: _number(one["generator_late_p99_ms"], 1)),
]


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    scenario = report["scenario"]
    title = f"Load test: {html.escape(scenario['name'])}"
    bad = "" if report["status"] == "complete" else " bad"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{html.escape(scenario["description"])}</p>'
        if scenario["description"]
        else "",
        f'<p class="verdict{bad}">{html.escape(report["verdict"])}</p>',
        _problems(report["problems"]),
        _thresholds(report.get("thresholds", [])),
        _throughput(report),
        *(_load(rows) for rows in _same_loads(report)),
        _errors(report),
        f"<h2>How it was measured</h2><p>{METHOD}</p>",
        _environment(report),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _throughput(report: Mapping[str, Any]) -> str:
    over = gains(report)
    rates = [
        (server["name"], rate)
        for server in report["servers"]
        if (load := main_load(server)) is not None and (rate := rate_of(load)) is not None
    ]
    priced = [
        (server["name"], 100 * load["accuracy"] if load["accuracy"] is not None else None)
        for server in report["servers"]
        if (load := main_load(server)) is not None
    ]
    agreed = [
        (
            server["name"],
            100 * load["agreement_with_n1"] if load["agreement_with_n1"] is not None else None,
        )
        for server in report["servers"]
        if (load := main_load(server)) is not None
    ]
    if not priced:
        return ""
    first = priced[0][0]
    return "".join(
        [
            "<h2>Throughput, and its price</h2>",
            bars("Texts per second", "texts/s", rates, digits=0) if rates else "",
            bars(f"Over {first}", "times", list(over.items()), digits=2) if len(over) > 1 else "",
            bars("Accuracy under load, against labels", "%", priced, digits=1),
            bars("Answers that are those of N=1", "%", agreed, digits=1),
        ]
    )


def _same_loads(report: Mapping[str, Any]) -> list[list[tuple[str, Row]]]:
    """Each load of the scenario with every server that had it."""
    found: dict[tuple[str, int], list[tuple[str, Row]]] = {}
    for server in report["servers"]:
        seen: Counter[str] = Counter()  # a scenario may have the same load again
        for load in server["loads"]:
            shape = str(sorted(asked(load).items()))
            found.setdefault((shape, seen[shape]), []).append((server["name"], load))
            seen[shape] += 1
    return list(found.values())


def _load(rows: Sequence[tuple[str, Row]]) -> str:
    shape = asked(rows[0][1])
    known = {k: v for k, v in shape.items() if v is not None and k != "shape"}
    settings = ", ".join(f"{key} {value:g}" for key, value in known.items())
    parts = [f"<section><h2>{shape['shape']}</h2><p class='soft'>{html.escape(settings)}</p>"]
    heads = ["server", *(name for name, _ in COLUMNS)]
    parts.append(table(heads, [[name, *(show(one) for _, show in COLUMNS)] for name, one in rows]))
    if shape["shape"] == "search":
        parts += [_steps(name, one) for name, one in rows]
    parts.append(_stages(rows))

    def over_time(title: str, unit: str, key: str, **more: Any) -> str:
        series = [(name, [(p["at_s"], p[key]) for p in one["timeline"]]) for name, one in rows]
        return lines(title, unit, series, **more)

    parts += [
        over_time("Requests due", "requests/s", "due_per_s")
        if shape["shape"] != "saturate"
        else "",
        over_time("Answers", "texts/s", "texts_per_s"),
        over_time("p50 of what was due then", "ms, logarithmic", "p50_ms", logarithmic=True),
        over_time("p99 of what was due then", "ms, logarithmic", "p99_ms", logarithmic=True),
        over_time("Chosen N (mean of the answers)", "N", "mean_num_instances"),
        over_time("Occupancy (filled slots / slots)", "", "occupancy", highest=1.0),
        over_time("Texts waiting in the server", "texts", "waiting"),
        over_time("Accuracy", "", "accuracy", highest=1.0),
        over_time("Answers that are those of N=1", "", "agreement_with_n1", highest=1.0),
    ]
    if any(sum(one["errors"].values()) for _, one in rows):
        parts.append(over_time("Errors", "requests/s", "errors_per_s"))
    return "".join(parts) + "</section>"


def _stages(rows: Sequence[tuple[str, Row]]) -> str:
    told = [(name, one["stages_ms"]) for name, one in rows if one["stages_ms"]]
    if not told:
        return ""
    cells = [[name, *(_number(value, 1) for value in stages.values())] for name, stages in told]
    return "<h3>Mean ms of a request, by stage</h3>" + table(["server", *told[0][1]], cells)


def _steps(name: str, one: Row) -> str:
    best = one["highest_rate_per_s"]
    said = f"{best:,.1f} requests/s" if best else "no rate that was tried"
    rows = [
        [
            _number(step["rate_per_s"], 1),
            "yes" if step["passed"] else "no",
            _number(step["texts_per_s"], 1),
            _number(step["p99_ms"], 1),
            str(sum(step["errors"].values())),
        ]
        for step in one["steps"]
    ]
    heads = ["requests/s", "within target", "texts/s", "p99 ms", "errors"]
    return f"<h3>{html.escape(name)}: {said} within the target</h3>" + table(heads, rows)


def _errors(report: Mapping[str, Any]) -> str:
    rows = [
        [f"{server['name']}, {load['shape']['shape']}", code, f"{count:,}",
         load["error_examples"].get(code, "")[:160]]
        for server in report["servers"]
        for load in server["loads"]
        for code, count in load["errors"].items()
    ]  # fmt: skip
    if not rows:
        return "<h2>Errors</h2><p>None.</p>"
    return "<h2>Errors</h2>" + table(["where", "code", "requests", "the first said"], rows)


def _problems(problems: Sequence[str]) -> str:
    return "".join(f'<p class="verdict bad">{html.escape(one)}</p>' for one in problems)


def _thresholds(thresholds: Sequence[Mapping[str, Any]]) -> str:
    if not thresholds:
        return ""
    rows = [
        [one["rule"], "failed" if one["failed"] else "held", one["where"]] for one in thresholds
    ]
    return "<h2>Thresholds</h2>" + table(["fail if", "", "where"], rows)


def _environment(report: Mapping[str, Any]) -> str:
    texts = report.get("texts", {})
    facts = {
        **report["environment"],
        **{f"texts, {key}": f"{value:g}" for key, value in texts.items()},
        "family": report["scenario"]["family"],
        "requests": report["scenario"]["requests"],
        "settings": " ".join(report["scenario"]["settings"]),
        "Locust workers": report["scenario"]["workers"],
        "seconds in all": f"{report.get('seconds', 0):.0f}",
    }
    rows = [[key, str(value)] for key, value in facts.items()]
    return "<h2>Environment</h2>" + table(["", ""], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
