"""The report's page, files, verdict, thresholds and comparison, from figures that are known."""

import copy
import csv
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from muxserve.errors import InvalidInput
from muxserve.loadtest.report.charts import bars, lines
from muxserve.loadtest.report.compare import as_rows, compare
from muxserve.loadtest.report.files import read_report, write_report
from muxserve.loadtest.report.page import page
from muxserve.loadtest.report.thresholds import check, parse_threshold
from muxserve.loadtest.report.verdict import gains, verdict
from tests.test_cli import muxserve


def load(rate, **changes):
    point = {"at_s": 0, "due_per_s": rate, "texts_per_s": rate, "p50_ms": 5.0, "p99_ms": 9.0,
             "errors_per_s": 0, "mean_num_instances": 1.0, "occupancy": 0.9, "waiting": 2,
             "accuracy": 0.8, "agreement_with_n1": 1.0}  # fmt: skip
    return {
        "shape": {"shape": "saturate", "clients": 8, "seconds": 2.0, "warm_up_s": 0.0},
        "measured_s": 2, "requests": 2 * rate, "answered": 2 * rate, "under_way_at_end": 0,
        "errors": {}, "error_rate": 0.0, "error_examples": {}, "offered_per_s": None,
        "texts_per_s": float(rate), "p50_ms": 5.0, "p90_ms": 7.0, "p99_ms": 9.0, "p999_ms": 9.5,
        "max_ms": 10.0, "generator_late_p99_ms": 0.1, "texts_by_num_instances": {"1": 2 * rate},
        "mean_num_instances": 1.0, "accuracy": 0.8, "agreement_with_n1": 1.0,
        "measured_quality": 0.85, "generator_cpu_s_per_1000_texts": 0.1,
        "server_cpu_s_per_1000_texts": 2.0, "occupancy": 0.9, "texts_per_forward": 8.0,
        "stages_ms": {"ingress": 0.1, "forward": 23.4},
        "timeline": [point, {**point, "at_s": 1, "p99_ms": None}], **changes,
    }  # fmt: skip


@pytest.fixture
def report():
    result = {
        "scenario": {"name": "a <b>", "description": "d & e", "family": "f", "requests": "text",
                     "settings": ["x=1"], "workers": 0,
                     "load": [{"shape": "saturate", "clients": 8, "seconds": 2.0}]},
        "environment": {"processor": "P", "cores": "2"},
        "texts": {"count": 5, "labelled": 5, "mean_words": 9.5},
        "status": "complete", "problems": [], "seconds": 9.0,
        "servers": [
            {"name": "N=1", "loads": [load(100)]},
            {"name": "N=5", "loads": [load(300, accuracy=0.75, agreement_with_n1=0.9,
                                           mean_num_instances=5.0, measured_quality=0.8)]},
            {"name": "elastic", "loads": [load(250, errors={"503": 7},
                                               error_examples={"503": "<full>"})]},
        ],
    }  # fmt: skip
    result["verdict"] = verdict(result)
    return result


class Checker(HTMLParser):
    """Every tag is closed in order, and nothing is fetched."""

    VOID = ("meta", "line", "path", "rect", "polyline", "br")

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(report):
    content = page(report)
    checker = Checker()
    checker.feed(content)
    assert checker.open == []
    assert checker.fetched == []
    assert not re.search(r"https?://|@import|url\(", content)
    assert "a &lt;b&gt;" in content
    assert "&lt;full&gt;" in content
    assert "prefers-color-scheme:dark" in content
    assert "@media print" in content
    assert "coordinated omission" in content


def test_the_page_shows_what_the_issue_is_about(report):
    content = page(report)
    for shown in ("3.00 times", "75.0 %", "Chosen N", "Occupancy", "503", "server CPU s/1,000"):
        assert shown in content, shown
    assert content.count("<figure>") >= 10


def test_the_verdict_has_the_gain_and_its_price(report):
    assert gains(report) == {"N=1": 1.0, "N=5": 3.0, "elastic": 2.5}
    said = report["verdict"]
    assert "N=5 answers 3.00 times as many texts per second as N=1" in said
    assert "-5.0 points of accuracy under load (75.0 % against 80.0 %)" in said
    assert "90.0 % of its answers are those of N=1" in said
    assert "elastic reaches 2.50 times, at +0.0 points" in said
    assert "Under the same" not in said


def test_the_verdict_without_labels_is_still_a_sentence(report):
    for server in report["servers"]:
        server["loads"][0]["accuracy"] = None
    assert "as N=1, 90.0 % of its answers are those of N=1; the family's" in verdict(report)
    for server in report["servers"]:
        server["loads"][0].update(agreement_with_n1=None, measured_quality=None)
    assert "3.00 times as many texts per second as N=1. elastic reaches 2.50 times." in verdict(
        report
    )


def test_the_verdict_compares_elastic_and_the_first_under_the_same_load(report):
    burst = {"shape": {"shape": "burst"}, "offered_per_s": 720.0}
    first, elastic = report["servers"][0]["loads"], report["servers"][2]["loads"]
    first.append(load(480, p99_ms=9000.0, errors={"503": 7800}, **burst))
    elastic.append(load(720, p99_ms=240.0, mean_num_instances=5.5, accuracy=0.79, **burst))
    assert (
        "Under the same 'burst' of 720 requests per second elastic has a p99 of 240 ms, "
        "a mean N of 5.5, 79.0 % accuracy, 0 errors; N=1 a p99 of 9,000 ms, a mean N of 1.0, "
        "80.0 % accuracy, 7,800 errors."
    ) in verdict(report)
    elastic[-1]["offered_per_s"] = 900.0
    assert "Under the same" not in verdict(report)


def test_a_report_that_lacks_something_says_so_first(report):
    report["status"], report["problems"] = "interrupted", ["Ctrl-C"]
    assert verdict(report).startswith("Not a whole measurement: Ctrl-C.")
    report["servers"] = []
    assert page(report)


def test_a_late_generator_is_said(report):
    one = report["servers"][1]["loads"][0]
    one["offered_per_s"], one["generator_late_p99_ms"] = 300.0, 80.0
    assert "load generator itself was late (p99 over 20 ms) on N=5" in verdict(report)


def test_files_can_be_read_again(report, tmp_path):
    assert write_report(report, tmp_path / "deep" / "out").name == "report.html"
    folder = tmp_path / "deep" / "out"
    assert read_report(folder) == read_report(folder / "report.json") == report
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    second = rows[1]
    assert (second["server"], second["texts_per_s"], second["gain_over_first"]) == (
        "N=5",
        "300.0",
        "3.0",
    )
    with (folder / "timeline.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        ("p99_ms > 200", False),
        ("p99_ms >= 20", True),
        ("accuracy < 0.78", True),
        ("elastic: accuracy < 0.78", False),
        ("errors > 0", True),
        ("N=1: errors > 0", False),
        ("N=5: gain_over_first < 2.9", False),
        ("gain_over_first < 1.5", False),  # the first server's own is none
        ("gain_over_first < 2.9", True),
        ("N=1/saturate: p99_ms > 10", False),  # latencies of 'saturate' are those of its own line
        ("elastic/saturate: p99_ms > 8", True),
        ("elastic/constant: p99_ms > 15", True),
        ("constant_is_no_server/constant: p99_ms > 15", True),
        ("highest_rate_per_s < 5", True),  # no search: cannot be checked
        ("nobody: p99_ms > 1", True),
    ],
)
def test_thresholds(report, rule, failed):
    for server in report["servers"]:
        constant = {"shape": {"shape": "constant"}, "offered_per_s": 50.0, "p99_ms": 20.0}
        server["loads"].append(load(50, **constant))
    (result,) = check(report, [parse_threshold(rule)])
    assert result["failed"] is failed
    assert bool(result["where"]) is failed


@pytest.mark.parametrize("rule", ["p99_ms", "p99_ms > fast", "p98_ms > 5", "p99_ms = 5", ""])
def test_a_threshold_that_cannot_be_read_is_a_mistake(rule):
    with pytest.raises(InvalidInput, match="--fail-if"):
        parse_threshold(rule)


def test_rates_that_were_only_offered_are_no_gain(report):
    for server in report["servers"]:
        constant = {"shape": {"shape": "constant"}, "offered_per_s": 50.0}
        server["loads"] = [load(50, **constant)]
    assert gains(report) == {}
    said = verdict(report)
    assert "times as many" not in said
    assert "Under the same 'constant' of 50 requests per second N=5 has" in said
    assert "Accuracy under load" in page(report)


def test_the_gain_of_a_search_is_in_texts(report):
    for server, rate in zip(report["servers"], (160, 480, 320), strict=True):
        server["loads"] = [
            load(rate, shape={"shape": "search"}, highest_rate_per_s=rate / 16, steps=[])
        ]
    assert gains(report) == {"N=1": 1.0, "N=5": 3.0, "elastic": 2.0}


def test_servers_with_loads_of_their_own_stand_beside_the_same_load_and_are_no_gain(report):
    most = {"shape": "saturate", "clients": 64, "seconds": 2.0, "warm_up_s": 0.0}
    for server in report["servers"]:
        server["loads"].append(load(400, shape=most))
    variant = {"name": "variant", "loads": [load(200, shape=most)]}
    lone = {"name": "lone", "loads": [load(5, shape={**most, "clients": 1}, stages_ms=None)]}
    report["servers"] += [variant, lone]
    assert gains(report) == {"N=1": 1.0, "N=5": 1.0, "elastic": 1.0, "variant": 0.5}
    sections = page(report).split("<section>")[1:]
    assert [one.count("<td>variant</td>") for one in sections] == [0, 2, 0]
    assert [one.count("<td>lone</td>") for one in sections] == [0, 0, 1]


def test_two_reports_beside_each_other(report, tmp_path):
    other = copy.deepcopy(report)
    other["servers"][0]["loads"][0]["texts_per_s"] = 150.0
    other["environment"]["cores"] = "4"
    del other["servers"][2]
    report["servers"][0]["spec"], other["servers"][0]["spec"] = {"replicas": 1}, {"replicas": 2}
    compared = compare(report, other)
    rates = {r["server"]: r["ratio"] for r in compared["rows"] if r["figure"] == "texts_per_s"}
    assert rates == {"N=1": 1.5, "N=5": 1.0}
    assert compared["only_in_a"] == ["elastic, saturate"]
    assert compared["differences"] == ["environment.cores: 2 / 4", "N=1.replicas: 1 / 2"]
    assert ("N=1", "saturate", "texts_per_s", "100.0", "150.0", "1.50") in as_rows(compared)

    write_report(report, tmp_path / "a")
    write_report(other, tmp_path / "b")
    done = muxserve("loadtest", "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert "only in a: elastic, saturate" in done.stdout
    assert "not the same: environment.cores: 2 / 4" in done.stdout


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_what_is_no_report_is_said(tmp_path, content):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    done = muxserve("loadtest", "compare", str(file), str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}: ")
    assert len(done.stderr.splitlines()) == 1


def test_nothing_to_draw_is_no_chart():
    assert lines("t", "ms", [("a", [(0, None)])]) == ""
    assert bars("t", "%", [("a", None)], digits=1) == ""
    assert lines("t", "ms", [("a", [(0, 0.0), (1, 0.0)])], logarithmic=True) == ""


def test_the_command_line_stays_free_of_locust():
    script = (
        "import sys, muxserve.cli, muxserve.loadtest.run, muxserve.loadtest.report.files; "
        "sys.exit(any(name.split('.')[0] in ('gevent', 'locust') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
