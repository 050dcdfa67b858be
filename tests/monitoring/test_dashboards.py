"""Dashboards: the generator's output, PromQL, units and variables."""

import copy
import importlib.util
from types import ModuleType

import pytest

from tests.monitoring.checks import badly_drawn, unparsed, unrecorded
from tests.monitoring.queries import COMPONENT, Query, dashboards, metrics_of, of_dashboards, rules

pytestmark = pytest.mark.monitoring


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", COMPONENT / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_generator_writes():
    written = generator()
    assert sorted(written.DASHBOARDS) == sorted(dashboards())
    for name in written.DASHBOARDS:
        file = COMPONENT / "dashboards" / f"{name}.json"
        assert file.read_text() == written.as_json(name), "run dashboards.py beside it"


def test_there_is_a_dashboard_for_each_question():
    assert sorted(dashboards()) == [
        "muxserve-replicas",
        "muxserve-stages",
        "muxserve-traffic",
        "muxserve-width",
    ]


def test_every_expression_parses():
    assert not unparsed(of_dashboards(dashboards()))


def test_every_recorded_series_is_recorded():
    assert not unrecorded(of_dashboards(dashboards()), rules())


def test_every_panel_says_what_it_shows_in_which_unit():
    assert not badly_drawn(dashboards())


# Each check, on wrong dashboards


def test_metrics_are_found_wherever_they_stand_in_an_expression():
    expr = (
        'histogram_quantile(0.9, sum by (le) (rate(a_total{b="c"}[5m]))) / (d > 0 or e * 0) '
        "unless max_over_time(f[5m:1m] offset 1h)"
    )
    assert metrics_of(expr) == {"a_total", "d", "e", "f"}


def test_bad_promql_and_an_unknown_variable_are_found():
    bad = Query("traffic: bad", "sum by (le (rate(a[1m]))")
    left = Query("traffic: left", "rate(a[$__range])")
    assert [one.partition(": ")[0] for one in unparsed([bad, left])] == ["traffic", "traffic"]
    assert "a variable is left" in unparsed([left])[0]


def test_a_series_that_no_rule_records_is_found():
    (problem,) = unrecorded([Query("a panel", "muxserve:nothing:rate5m")], rules())
    assert problem == "a panel: no rule records muxserve:nothing:rate5m"


def test_a_panel_without_unit_or_description_and_a_dashboard_without_variables_are_found():
    found = copy.deepcopy(dashboards())
    content = found["muxserve-traffic"]
    panel = content["panels"][0]
    panel["description"], panel["datasource"] = "", {"type": "prometheus", "uid": "mine"}
    del panel["fieldConfig"]["defaults"]["unit"]
    content["panels"][1]["id"] = panel["id"]
    content["templating"]["list"].pop()
    assert badly_drawn(found) == [
        "muxserve-traffic: no variable ['application']",
        "muxserve-traffic: ids of panels repeat",
        "muxserve-traffic: Texts answered: no description",
        "muxserve-traffic: Texts answered: no unit",
        "muxserve-traffic: Texts answered: a datasource of its own",
    ]
