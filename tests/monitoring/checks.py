"""Rules and dashboards in, their problems out; each problem names the rule or panel."""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.monitoring.queries import ROOT, Doc, Query, alerts, all_rules, metrics_of

_SEVERITIES = {"info", "warning", "critical"}
_ANNOTATIONS = ("summary", "description", "runbook_url")
_UNITS = {"s", "cps", "reqps", "percent", "percentunit", "short", "bytes", "mbytes"}


def unparsed(queries: Iterable[Query]) -> list[str]:
    """Expressions that are not PromQL, or still contain a variable."""
    problems = []
    for query in queries:
        if "$" in query.expr:
            problems.append(f"{query.where}: a variable is left in {query.expr}")
            continue
        try:
            metrics_of(query.expr)
        except ValueError as error:
            problems.append(f"{query.where}: {error}")
    return problems


def missing(queries: Iterable[Query], known: set[str]) -> list[str]:
    """Metrics that are used but do not exist."""
    return [
        f"{query.where}: there is no metric {name}"
        for query in queries
        for name in sorted(metrics_of(query.expr) - known)
    ]


def incomplete_alerts(spec: Doc) -> list[str]:
    """Alerts that lack what the person on call needs."""
    problems = []
    for alert in alerts(spec):
        name, annotations = alert["alert"], alert.get("annotations", {})
        if alert.get("labels", {}).get("severity") not in _SEVERITIES:
            problems.append(f"{name}: labels.severity is none of {sorted(_SEVERITIES)}")
        if not alert.get("for"):
            problems.append(f"{name}: for is missing")
        problems += [
            f"{name}: annotations.{key} is missing"
            for key in _ANNOTATIONS
            if not annotations.get(key)
        ]
        page, _, anchor = annotations.get("runbook_url", "").partition("#")
        if page and anchor not in anchors(page):
            problems.append(f"{name}: annotations.runbook_url: {page} has no section {anchor!r}")
    return problems


def anchors(page: str | Path) -> set[str]:
    """The anchors of a page's headings."""
    file = ROOT / page
    if not file.is_file():
        return set()
    headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


def unrecorded(queries: Iterable[Query], spec: Doc) -> list[str]:
    """Recorded series that are read but not recorded by any rule."""
    recorded = {rule["record"] for rule in all_rules(spec) if "record" in rule}
    return [
        f"{query.where}: no rule records {name}"
        for query in queries
        for name in sorted(metrics_of(query.expr))
        if ":" in name and name not in recorded
    ]


def badly_drawn(dashboards: dict[str, Doc]) -> list[str]:
    """Dashboards that do not work where they are deployed, or say too little."""
    problems = []
    for name, content in dashboards.items():
        variables = {one["name"] for one in content["templating"]["list"]}
        if absent := {"datasource", "namespace", "application"} - variables:
            problems.append(f"{name}: no variable {sorted(absent)}")
        ids = [panel["id"] for panel in content["panels"]]
        if len(set(ids)) != len(ids):
            problems.append(f"{name}: ids of panels repeat")
        for panel in content["panels"]:
            where = f"{name}: {panel['title']}"
            if not panel.get("description"):
                problems.append(f"{where}: no description")
            if panel["fieldConfig"]["defaults"].get("unit") not in _UNITS:
                problems.append(f"{where}: no unit")
            if panel["datasource"].get("uid") != "${datasource}":
                problems.append(f"{where}: a datasource of its own")
    return problems
