"""The page has the committed figures, and the verdict of a soak detects growth."""

import json

import pytest

from tests.chaos import report
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.soak import verdict

_MB = 2**20


def test_the_tables_of_the_page_are_those_of_the_results():
    page = report.PAGE.read_text()
    found = json.loads(report.RESULTS.read_text()) if report.RESULTS.exists() else {}
    assert report.with_tables(page, found) == page


def test_what_was_not_run_is_told_and_what_failed_too():
    seen = {"requests": 10, "right": 10, "errors": {}, "p50_ms": 1, "p99_ms": 2, "failure": None}
    found = {"scenarios": {SCENARIOS[0].name: seen, SCENARIOS[1].name: {"failure": "no"}}}
    _, _, *rows = report.scenarios(found).splitlines()
    assert rows[0].endswith("| 10 | 10 | none | 1, 2 | yes |")
    assert rows[1].endswith("| **no** |")
    assert "not run" in rows[2]


@pytest.mark.parametrize(("mb_per_minute", "flat"), [(0.0, True), (0.5, True), (25.0, False)])
def test_a_soak_that_grows_is_not_flat(tmp_path, mb_per_minute: float, flat: bool):
    found = verdict(_soak(tmp_path, lambda minute: 1000 * _MB + mb_per_minute * _MB * minute))
    assert found["flat"] is found["kept"] is flat
    assert found["serving"]["rss"]["flat"] is flat
    assert found["minutes"] == 60


def test_growth_while_it_warms_up_is_none(tmp_path):
    assert verdict(_soak(tmp_path, lambda minute: min(minute, 10) * 100 * _MB + _MB))["flat"]


def test_a_replaced_process_or_a_broken_promise_is_not_kept(tmp_path):
    file = _soak(tmp_path, lambda _: 1000 * _MB)
    lines = file.read_text()
    file.write_text(lines.replace('"pids": [1, 2]', '"pids": [1, 3]', 1))
    assert not verdict(file)["kept"]
    file.write_text(lines.replace('"failure": null', '"failure": "a wrong label"', 1))
    assert not verdict(file)["kept"]


def test_a_line_that_was_being_written_when_it_ended_is_left_out(tmp_path):
    file = _soak(tmp_path, lambda _: 1000 * _MB)
    file.write_text(file.read_text() + '{"kind": "sample", "at_s": 36')
    assert verdict(file)["kept"]


def _soak(folder, rss):
    """The samples of an hour whose memory is ``rss(minute)``."""
    file = folder / "soak.jsonl"
    window = {"requests": 60, "right": 60, "errors": {}, "p50_ms": 1.0, "p99_ms": 2.0}
    lines = [{"kind": "start", "runtime": "torch", "capacity": 1.0, "rate": 0.8}]
    for turn in range(361):
        held = {"rss": rss(turn / 6), "descriptors": 50, "threads": 20}
        serving = {**held, "pids": [1, 2]}
        lines.append({"kind": "sample", "at_s": 10.0 * turn, "serving": serving, "tree": held})
    lines += [
        {"kind": "window", "at_s": 60 * turn, **window, "failure": None} for turn in range(60)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
