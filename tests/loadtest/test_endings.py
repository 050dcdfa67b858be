"""A run that cannot go on: a clear message, a report of what was measured, the right exit code."""

import signal

import psutil
import pytest

from muxserve.loadtest.servers.muxserve import free_port
from tests.loadtest.conftest import fake, report_of, run, start, write_scenario
from tests.ray_serve import until

pytestmark = pytest.mark.loadtest

LOAD = {"shape": "constant", "rate_per_s": 100, "seconds": 40, "warm_up_s": 0}
SHORT = {**LOAD, "seconds": 2}


def test_a_server_that_is_down_at_the_start(tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    code, _, errors = run(write_scenario(tmp_path, url, SHORT), tmp_path / "out")
    assert code == 3
    assert f"error: nothing answers at {url} (Connection refused)" in errors
    assert "muxserve serve" in errors
    assert "Traceback" not in errors
    assert "nothing answers" in (tmp_path / "out" / "report.html").read_text()


def test_a_url_that_is_no_muxserve(tmp_path):
    with fake() as server:
        scenario = write_scenario(tmp_path, f"{server.url}/elsewhere", SHORT)
        code, _, errors = run(scenario, tmp_path / "out")
    assert code == 3
    assert f"{server.url}/elsewhere/ready is unknown there (404)" in errors
    assert "Traceback" not in errors


def test_a_server_that_dies_midway_ends_the_run_soon(tmp_path):
    with fake(die_after=300) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, LOAD, LOAD), tmp_path / "out")
    assert code == 3
    assert "fake: constant: the server stopped answering" in errors
    report = report_of(tmp_path / "out")
    (one,) = report["servers"][0]["loads"]  # the second load is not tried
    assert one["answered"] == pytest.approx(300, abs=40)
    assert 2 <= one["died_at_s"] <= 6
    assert report["seconds"] < 30
    assert report["verdict"].startswith("Not a whole measurement")


def test_every_request_fails(tmp_path):
    with fake(error_every=1, status=500) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, SHORT), tmp_path / "out")
        counts = server.counts()
    assert code == 3
    assert f"no request was answered (500 x {counts['500']})" in errors
    assert "the line is full" in errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["error_rate"] == 1


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    with fake() as server:
        process = start(write_scenario(tmp_path, server.url, LOAD), tmp_path / "out")
        until(lambda: server.counts().get("200", 0) > 250, "it is loaded")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        counts = server.counts()
    assert process.returncode == 130
    assert "Traceback" not in errors
    report = report_of(tmp_path / "out")
    assert report["status"] == "interrupted"
    (one,) = report["servers"][0]["loads"]
    assert 100 < one["answered"] <= counts["200"]
    assert "report: " in output


@pytest.mark.parametrize(
    ("rules", "code"), [(["p99_ms > 5000"], 0), (["p99_ms > 5000", "p50_ms > 10"], 1)]
)
def test_thresholds_decide_the_exit_code(tmp_path, rules, code):
    flags = [part for rule in rules for part in ("--fail-if", rule)]
    with fake(delay_ms=50) as server:
        scenario = write_scenario(tmp_path, server.url, SHORT)
        got, _, errors = run(scenario, tmp_path / "out", *flags)
    assert got == code, errors
    assert ("--fail-if 'p50_ms > 10'" in errors) == bool(code)
    assert [one["failed"] for one in report_of(tmp_path / "out")["thresholds"]] == [
        False,
        *([True] if code else []),
    ]


SEARCH = {"shape": "search", "start_per_s": 50, "step_s": 8, "warm_up_s": 0, "max_steps": 4}


def test_ctrl_c_in_a_search_keeps_its_steps(tmp_path):
    search = {**SEARCH, "step_s": 3}
    with fake() as server:
        process = start(write_scenario(tmp_path, server.url, search), tmp_path / "out")
        until(lambda: server.counts().get("200", 0) > 250, "the second step is under way")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    first, second = one["steps"]
    assert (first["rate_per_s"], first["passed"]) == (50, True)
    assert (second["rate_per_s"], second["passed"]) == (100, False)
    assert one["highest_rate_per_s"] == 50
    assert "within target" in (tmp_path / "out" / "report.html").read_text()


def test_a_server_that_dies_in_a_search_ends_it(tmp_path):
    with fake(die_after=500) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, SEARCH), tmp_path / "out")
    assert code == 3
    assert "the server stopped answering" in errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["highest_rate_per_s"] == 50
    assert len(one["steps"]) == 2


def test_a_server_that_dies_in_the_last_seconds_is_noticed(tmp_path):
    load = {**LOAD, "seconds": 5}
    with fake(die_after=300) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, load), tmp_path / "out")
    assert code == 3, errors
    assert "the server stopped answering" in errors


def test_sigterm_ends_everything_and_keeps_what_was_measured(tmp_path):
    with fake() as server:
        process = start(write_scenario(tmp_path, server.url, LOAD), tmp_path / "out")
        until(lambda: server.counts().get("200", 0) > 250, "it is loaded")
        (locust,) = psutil.Process(process.pid).children()
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not locust.is_running()
    assert report_of(tmp_path / "out")["servers"][0]["loads"][0]["answered"] > 100


def test_a_load_generator_that_is_killed_leaves_what_it_counted(tmp_path):
    with fake() as server:
        process = start(write_scenario(tmp_path, server.url, LOAD), tmp_path / "out")
        until(lambda: server.counts().get("200", 0) > 350, "it is loaded")
        (locust,) = psutil.Process(process.pid).children()
        locust.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Locust ended with -9 before its job" in errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["answered"] > 100
    assert one["interrupted_at_s"] < 20


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_run(tmp_path):
    (tmp_path / "file").write_text("")
    with fake() as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, LOAD), tmp_path / "file")
        counts = server.counts()
    assert code == 2
    assert errors.startswith("error: --out ")
    assert counts == {}
