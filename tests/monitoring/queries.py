"""Reads every PromQL expression of the component's files, and the names of its metrics."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "k8s" / "components" / "monitoring"
#: Values for Grafana's built-in variables, and for those of the dashboards.
_VARIABLES = {"$__rate_interval": "1m", "$namespace": ".*", "$application": ".*"}

Doc = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """A PromQL expression.

    Attributes:
        where: its rule, or its dashboard and panel.
        expr: as Prometheus is asked.
    """

    where: str
    expr: str


def rules() -> Doc:
    """The spec of the PrometheusRule, which has the format of a Prometheus rule file."""
    spec: Doc = yaml.safe_load((COMPONENT / "rules.yaml").read_text())["spec"]
    return spec


def dashboards() -> dict[str, Doc]:
    """Name -> content of each dashboard."""
    files = sorted((COMPONENT / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def all_rules(spec: Doc) -> Iterator[Doc]:
    for group in spec["groups"]:
        yield from group["rules"]


def alerts(spec: Doc) -> list[Doc]:
    return [rule for rule in all_rules(spec) if "alert" in rule]


def of_rules(spec: Doc) -> list[Query]:
    return [
        Query(f"rule {rule.get('alert') or rule.get('record')}", rule["expr"])
        for rule in all_rules(spec)
    ]


def of_dashboards(found: dict[str, Doc]) -> list[Query]:
    """The expressions of dashboards, with a value for each variable."""
    return [
        Query(f"{name}: {panel['title']}", substituted(target["expr"]))
        for name, content in found.items()
        for panel in content["panels"]
        for target in panel["targets"]
    ]


def substituted(expr: str) -> str:
    for variable, value in _VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr


def metrics_of(expr: str) -> set[str]:
    """The names of the metrics that an expression reads.

    Raises:
        ValueError: it is not PromQL.
    """
    names: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(expr), pre_visit=collect)
    return names
