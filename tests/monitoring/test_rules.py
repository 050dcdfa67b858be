"""Each alert fires on bad traffic and stays silent on good, by promtool; and says what to do."""

import copy
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring.files import (
    ROOT,
    alerts,
    groups,
    incomplete,
    program,
    rule_expressions,
    unknown_metrics,
)

APP = {"namespace": "n", "application": "a"}
ENGINE = '{namespace="n",application="a",deployment="d",replica="r"}'
OTHER = '{namespace="n",application="a",deployment="d",replica="other"}'


def at(n: int) -> str:
    """The series of texts at N."""
    return f'ray_muxserve_texts_by_num_instances_total{ENGINE[:-1]},num_instances="{n}"}}'


def constant(name: str, value: float) -> dict[str, str]:
    return {f"{name}{ENGINE}": f"{value}x90"}


def growing(name: str, per_minute: float, start: float = 0) -> dict[str, str]:
    return {f"{name}{ENGINE}": f"{start}+{per_minute}x90"}


INGRESS_SHED, SHED = "ray_muxserve_ingress_shed_texts_total", "ray_muxserve_shed_texts_total"
WIDE = {at(1): "0+20x90", at(5): "0+20x90", at(10): "0+40x90"}
NARROW = {at(1): "0+40x90", at(2): "0+40x90", at(10): "0+20x90"}
EMPTY_SLOTS = {
    **growing("ray_muxserve_slots_total", 200),
    **growing("ray_muxserve_filled_slots_total", 80),
}
FULL_SLOTS = {
    **growing("ray_muxserve_slots_total", 200),
    **growing("ray_muxserve_filled_slots_total", 180),
}
READY = "ray_muxserve_ready"
HEALTHY = "ray_serve_deployment_replica_healthy"

#: Alert -> series on which it fires, series on which it does not. Values are one a minute.
CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]] = {
    "MuxserveShedsTexts": (
        [
            {**growing(INGRESS_SHED, 60), **constant(SHED, 0)},
            {**constant(INGRESS_SHED, 0), **growing(SHED, 1)},
        ],
        [{**constant(INGRESS_SHED, 7), **constant(SHED, 9)}],
    ),
    "MuxserveTextsExpire": (
        [growing("ray_muxserve_ingress_expired_texts_total", 6)],
        [constant("ray_muxserve_ingress_expired_texts_total", 6)],
    ),
    "MuxserveTextsFail": (
        [growing("ray_muxserve_failed_texts_total", 1)],
        [constant("ray_muxserve_failed_texts_total", 3)],
    ),
    "MuxserveLineTooLong": (
        [constant("ray_muxserve_line_drain_seconds", 1.5)],
        [constant("ray_muxserve_line_drain_seconds", 0.2)],
    ),
    "MuxserveOccupancyLow": (
        [{**EMPTY_SLOTS, **WIDE}],
        [{**FULL_SLOTS, **WIDE}, {**EMPTY_SLOTS, **NARROW}],
    ),
    "MuxserveReplicaNotReady": (
        [{**constant(HEALTHY, 0), f"{HEALTHY}{OTHER}": "1x90"}],
        [constant(HEALTHY, 1)],
    ),
    "MuxserveNoReplicaReady": (
        [{**constant(READY, 0), f"{READY}{OTHER}": "0x90"}],
        [{**constant(READY, 0), f"{READY}{OTHER}": "1x90"}],
    ),
    "MuxserveAccuracyPrice": ([WIDE], [NARROW]),
}
LABELS = {"MuxserveReplicaNotReady": {"deployment": "d"}}
LATE = "85m"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def rule_file(folder: Path, *, annotated: bool) -> Path:
    """The groups as promtool reads them; without the annotations, which tests would repeat."""
    written = copy.deepcopy(groups())
    for group in written:
        for rule in group["rules"]:
            if not annotated:
                rule.pop("annotations", None)
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": written}))
    return file


def promtool_test(alert: str, series: dict[str, str], when: str, *, fires: bool) -> dict:
    severity = alerts()[alert]["labels"]["severity"]
    labels = {**APP, **LABELS.get(alert, {}), "severity": severity}
    expected = [{"exp_labels": labels}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": when, "alertname": alert, "exp_alerts": expected}],
    }


def run_tests(folder: Path, tests: list[dict]) -> subprocess.CompletedProcess[str]:
    rule_file(folder, annotated=False)
    file = folder / "tests.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    return promtool("test", "rules", file)


def test_every_alert_is_tested():
    assert set(CASES) == set(alerts())


@pytest.mark.monitoring
def test_promtool_finds_nothing_wrong(tmp_path):
    done = promtool("check", "rules", rule_file(tmp_path, annotated=True))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.monitoring
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_on_bad_traffic_and_stays_silent_on_good(alert, tmp_path):
    bad, good = CASES[alert]
    done = run_tests(
        tmp_path,
        [
            *(promtool_test(alert, series, LATE, fires=True) for series in bad),
            # Not before it has lasted.
            *(promtool_test(alert, series, "1m", fires=False) for series in bad),
            *(promtool_test(alert, series, LATE, fires=False) for series in good),
        ],
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.monitoring
def test_a_test_that_expects_the_wrong_thing_fails(tmp_path):
    (bad, *_), _ = CASES["MuxserveLineTooLong"]
    done = run_tests(tmp_path, [promtool_test("MuxserveLineTooLong", bad, LATE, fires=False)])
    assert done.returncode != 0


@pytest.mark.monitoring
def test_bad_promql_is_found(tmp_path):
    file = rule_file(tmp_path, annotated=True)
    file.write_text(file.read_text().replace("sum by", "sum buy", 1))
    done = promtool("check", "rules", file)
    assert done.returncode != 0
    assert "parse error" in done.stdout + done.stderr


def anchors() -> set[str]:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    return {heading.lower() for heading in re.findall(r"^### (\w+)$", text, re.MULTILINE)}


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    assert [problem for rule in alerts().values() for problem in incomplete(rule, anchors())] == []


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("labels", "severity"), "labels.severity"),
        (("annotations", "summary"), "annotations.summary"),
        (("annotations", "description"), "annotations.description"),
        (("annotations", "runbook"), "annotations.runbook"),
        (("for",), "for"),
    ],
)
def test_an_alert_that_lacks_something_is_found(path, problem):
    rule = copy.deepcopy(alerts()["MuxserveLineTooLong"])
    *above, last = path
    place = rule
    for name in above:
        place = place[name]
    del place[last]
    assert incomplete(rule, anchors()) == [f"MuxserveLineTooLong: {problem}"]


def test_a_rule_with_a_metric_that_does_not_exist_is_found():
    known = {"ray_muxserve_line_drain_seconds"}
    expressions = {"here": "rate(ray_muxserve_line_drain_second[5m]) > 0"}
    assert unknown_metrics(expressions, known) == ["here: ray_muxserve_line_drain_second"]
    assert unknown_metrics(rule_expressions(), known) != []
