"""Locust with a master and workers, headless and with its web UI, from the CLI and by itself."""

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from muxserve.loadtest.servers.muxserve import free_port
from tests.loadtest.conftest import ROOT, fake, report_of, run, start, write_scenario
from tests.ray_serve import until
from tests.test_cli import ENVIRONMENT

pytestmark = pytest.mark.loadtest

LOCUST = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "OneText"]


def test_two_workers_share_the_load_and_nothing_is_lost(tmp_path):
    load = {"shape": "constant", "rate_per_s": 150, "seconds": 6, "warm_up_s": 0}
    with fake(delay_ms=20, error_every=9) as server:
        scenario = write_scenario(tmp_path, server.url, load, workers=2)
        code, _, errors = run(scenario, tmp_path / "out")
        counts = server.counts()
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["answered"] == counts["200"]
    assert one["errors"] == {"503": counts["503"]}
    assert one["offered_per_s"] == pytest.approx(150, rel=0.15)


def test_the_web_ui_shows_a_run_of_the_command(tmp_path):
    port = free_port()
    load = {"shape": "constant", "rate_per_s": 50, "seconds": 8, "warm_up_s": 0}
    with fake() as server:
        scenario = write_scenario(tmp_path, server.url, load)
        process = start(scenario, tmp_path / "out", "--web-port", str(port))
        shown = until(lambda: _stats(port) if _requests(port) > 50 else None, "it shows requests")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert shown["state"] == "running"
    assert report_of(tmp_path / "out")["servers"][0]["loads"][0]["answered"] > 250


def test_stop_in_the_web_ui_ends_the_load_with_what_was_measured(tmp_path):
    port = free_port()
    load = {"shape": "constant", "rate_per_s": 50, "seconds": 60, "warm_up_s": 0}
    with fake() as server:
        scenario = write_scenario(tmp_path, server.url, load)
        process = start(scenario, tmp_path / "out", "--web-port", str(port))
        until(lambda: _requests(port) > 100, "it shows requests")
        urllib.request.urlopen(f"http://127.0.0.1:{port}/stop", b"", timeout=10).close()
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 3
    assert "fake: constant was stopped in the web UI after" in errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["answered"] > 30  # of the whole seconds


def test_plain_locust_runs_headless_with_a_master_and_two_workers(tmp_path):
    port, results = str(free_port()), tmp_path / "stats"
    with fake(delay_ms=10) as server:
        workers = [
            subprocess.Popen(
                [*LOCUST, "--worker", "--master-port", port, "--loglevel", "ERROR"],
                cwd=ROOT,
                env=ENVIRONMENT,
            )
            for _ in range(2)
        ]
        done = subprocess.run(
            [
                *(*LOCUST, "--master", "--master-bind-host", "127.0.0.1"),
                *("--master-bind-port", port, "--expect-workers", "2", "--headless"),
                *("-u", "4", "-r", "4", "-t", "5s", "--rate-per-user", "20"),
                *("--host", server.url, "--json-file", str(results)),
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        codes = [worker.wait(30) for worker in workers]
        counts = server.counts()
    assert done.returncode == 0, done.stderr
    assert codes == [0, 0]
    (entry,) = json.loads(results.with_suffix(".json").read_text())
    # Four users at 20/s each for five seconds, less the second in which they gather.
    assert 150 < entry["num_requests"] <= counts["200"] < 500
    assert entry["num_failures"] == 0


def test_plain_locust_is_started_from_its_web_ui(tmp_path):
    port = free_port()
    with fake() as server:
        process = subprocess.Popen(
            [*LOCUST, "--web-host", "127.0.0.1", "--web-port", str(port)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: _stats(port), "the web UI answers")
            form = {"user_count": 3, "spawn_rate": 3, "host": server.url, "rate_per_user": 30}
            data = urllib.parse.urlencode(form).encode()
            urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", data, timeout=10).close()
            began = time.monotonic()
            until(lambda: server.counts().get("200", 0) > 120, "requests come")
            # 90/s: at one request per second and user it would take 40 s.
            assert time.monotonic() - began < 20
        finally:
            process.terminate()
            process.wait(30)


def _stats(port: int) -> dict:
    try:
        url = f"http://127.0.0.1:{port}/stats/requests"
        with urllib.request.urlopen(url, timeout=5) as response:
            return json.load(response)
    except (OSError, ValueError):
        return {}


def _requests(port: int) -> int:
    return sum(one["num_requests"] for one in _stats(port).get("stats", []))
