"""Rules and dashboards in, expressions and the metrics they name out."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "k8s" / "components" / "monitoring"
RULES = COMPONENT / "rules.yaml"
DASHBOARDS = sorted((COMPONENT / "dashboards").glob("*.json"))
#: ``make test-monitoring`` puts Debian's here.
_OWN = ROOT / ".cache" / "prometheus" / "usr" / "bin"

Rule = dict[str, Any]


def program(name: str) -> str:
    """Prometheus or promtool."""
    found = shutil.which(name, path=str(_OWN)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: make test-monitoring fetches it")
    return found


def groups() -> list[dict[str, Any]]:
    """Rule groups as Prometheus reads them."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return found


def rules() -> list[Rule]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> dict[str, Rule]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard["panels"]
    return found


def panel_expressions() -> dict[str, str]:
    """Where it stands -> PromQL, with Grafana's variables as they are when all is chosen."""
    found = {}
    for file in DASHBOARDS:
        for panel in panels(json.loads(file.read_text())):
            for target in panel["targets"]:
                where = f"{file.name}: {panel['title']}: {target['legendFormat']}"
                found[where] = in_plain(target["expr"])
    return found


def rule_expressions() -> dict[str, str]:
    return {f"rules.yaml: {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}


def in_plain(expression: str) -> str:
    """What Grafana sends: without its variables."""
    return re.sub(r"\$(namespace|application)", ".*", expression.replace("$__rate_interval", "15s"))


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics that an expression reads.

    Raises:
        ValueError: it is no PromQL.
    """
    return set(_names(promql_parser.parse(expression)))


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        yield str(node.name)
        return
    for attribute in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        below = getattr(node, attribute, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None:
                yield from _names(one)


def unknown_metrics(expressions: dict[str, str], known: set[str]) -> list[str]:
    """Each metric that does not exist, and where it is read."""
    return [
        f"{where}: {name}"
        for where, expression in expressions.items()
        for name in sorted(metrics_of(expression) - known)
    ]


def incomplete(rule: Rule, anchors: set[str]) -> list[str]:
    """What an alert lacks."""
    problems = []
    if rule.get("labels", {}).get("severity") not in {"info", "warning", "critical"}:
        problems.append("labels.severity")
    annotations = rule.get("annotations", {})
    problems += [
        f"annotations.{name}" for name in ("summary", "description") if not annotations.get(name)
    ]
    if annotations.get("runbook", "").removeprefix("docs/monitoring.md#") not in anchors:
        problems.append("annotations.runbook")
    if "for" not in rule:
        problems.append("for")
    return [f"{rule['alert']}: {problem}" for problem in problems]
