"""Dashboards are what their tables say, parse, and explain themselves."""

import importlib.util
import json

import pytest

from tests.monitoring.files import (
    COMPONENT,
    DASHBOARDS,
    in_plain,
    metrics_of,
    panel_expressions,
    panels,
    rule_expressions,
    rules,
    unknown_metrics,
)


def written_by():
    spec = importlib.util.spec_from_file_location("dashboards", COMPONENT / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_of_the_tables():
    module = written_by()
    assert [file.stem for file in DASHBOARDS] == sorted(module.DASHBOARDS)
    for file in DASHBOARDS:
        assert file.read_text() == module.as_json(file.stem), "make dashboards"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_complete(file):
    dashboard = json.loads(file.read_text())
    assert dashboard["uid"] == file.stem
    places = set()
    for panel in panels(dashboard):
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
    assert len(places) == len(panels(dashboard)), "panels lie on each other"


@pytest.mark.parametrize(
    ("where", "expression"), (panel_expressions() | rule_expressions()).items()
)
def test_an_expression_is_promql_and_reads_metrics(where, expression):
    assert metrics_of(expression)


def test_recorded_metrics_that_are_read_are_recorded():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    read = {
        name
        for expression in (panel_expressions() | rule_expressions()).values()
        for name in metrics_of(expression)
        if name.startswith("muxserve:")
    }
    assert read <= recorded


def test_a_panel_with_a_metric_that_does_not_exist_is_found():
    expressions = {"panel": in_plain('sum(rate(ray_muxserve_text{a="$namespace"}[5m]))')}
    assert unknown_metrics(expressions, {"ray_muxserve_texts_total"}) == [
        "panel: ray_muxserve_text"
    ]


def test_bad_promql_is_found():
    with pytest.raises(ValueError, match=r"."):
        metrics_of("sum(rate(ray_muxserve_texts_total[5m])")
