"""Alerts and recorded series, tested by promtool: each alert fires on bad traffic, none on good."""

import copy
import shutil
from pathlib import Path

import pytest
import yaml

from tests.monitoring.checks import incomplete_alerts, unparsed
from tests.monitoring.prometheus_server import promtool
from tests.monitoring.queries import ROOT, Doc, alerts, of_rules, rules

pytestmark = pytest.mark.monitoring

CASES = Path(__file__).with_name("alerts.yaml")


def write(spec: Doc, folder: Path) -> Path:
    """Write the rules and their unit tests side by side, as promtool expects them."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    shutil.copy(CASES, folder)
    return folder


def alert(spec: Doc, name: str) -> Doc:
    (found,) = (one for one in alerts(spec) if one["alert"] == name)
    return found


def test_promtool_takes_the_rules(tmp_path):
    done = promtool("check", "rules", write(rules(), tmp_path) / "rules.yaml")
    assert done.returncode == 0, done.stdout


def test_alerts_fire_on_bad_traffic_and_not_on_good(tmp_path):
    done = promtool("test", "rules", write(rules(), tmp_path) / "alerts.yaml")
    assert done.returncode == 0, done.stdout


def test_every_alert_has_a_case_that_fires_and_one_that_does_not():
    cases = [
        case
        for group in yaml.safe_load(CASES.read_text())["tests"]
        for case in group["alert_rule_test"]
    ]
    names = {one["alert"] for one in alerts(rules())}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_every_alert_is_explained():
    text = (ROOT / "docs" / "monitoring.md").read_text()
    wanted = [f"### {one['alert']}" for one in alerts(rules())]
    assert [line for line in text.splitlines() if line.startswith("### ")] == wanted


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    assert not incomplete_alerts(rules())


def test_every_expression_of_the_rules_parses():
    assert not unparsed(of_rules(rules()))


# Each check, on wrong rules


@pytest.mark.parametrize("name", [one["alert"] for one in alerts(rules())])
def test_a_threshold_that_is_never_met_is_found(tmp_path, name):
    spec = copy.deepcopy(rules())
    alert(spec, name)["expr"] = f"({alert(spec, name)['expr']}) > 1e9"
    done = promtool("test", "rules", write(spec, tmp_path) / "alerts.yaml")
    assert done.returncode != 0
    assert f"alertname: {name}" in done.stdout or f"alertname:{name}" in done.stdout


@pytest.mark.parametrize("name", [one["alert"] for one in alerts(rules())])
def test_an_alert_that_does_not_wait_is_found(tmp_path, name):
    spec = copy.deepcopy(rules())
    alert(spec, name)["for"] = "0s"
    done = promtool("test", "rules", write(spec, tmp_path) / "alerts.yaml")
    assert done.returncode != 0, name


def test_bad_promql_is_found(tmp_path):
    spec = copy.deepcopy(rules())
    alert(spec, "MuxserveTextsFail")["expr"] = "sum by (application) (rate(texts_total[5m])"
    done = promtool("check", "rules", write(spec, tmp_path) / "rules.yaml")
    assert done.returncode != 0
    (problem,) = unparsed(of_rules(spec))
    assert problem.startswith("rule MuxserveTextsFail: ")


@pytest.mark.parametrize(
    ("where", "key", "told"),
    [
        ("labels", "severity", "labels.severity is none of"),
        ("annotations", "summary", "annotations.summary is missing"),
        ("annotations", "description", "annotations.description is missing"),
        ("annotations", "runbook_url", "annotations.runbook_url is missing"),
    ],
)
def test_an_alert_that_says_too_little_is_found(where, key, told):
    spec = copy.deepcopy(rules())
    del alert(spec, "MuxserveDown")[where][key]
    (problem,) = incomplete_alerts(spec)
    assert problem.startswith(f"MuxserveDown: {told}")


def test_an_alert_without_a_wait_and_one_with_a_page_that_is_not_there_are_found():
    spec = copy.deepcopy(rules())
    del alert(spec, "MuxserveDown")["for"]
    annotations = alert(spec, "MuxserveTextsFail")["annotations"]
    annotations["runbook_url"] = "docs/operations.md#nowhere"
    problems = incomplete_alerts(spec)
    assert sorted(problems) == [
        "MuxserveDown: for is missing",
        "MuxserveTextsFail: annotations.runbook_url: docs/operations.md has no section 'nowhere'",
    ]


def test_a_missing_tool_fails_and_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.fail.Exception, match="make test-monitoring"):
        promtool("--version")
