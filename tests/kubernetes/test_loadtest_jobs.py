"""The load test's jobs, by the very command lines of the rendered overlay, on a real server."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muxserve.loadtest.servers.muxserve import free_port
from tests.kubernetes.rendering import ROOT, Doc, find, of_kind, render
from tests.loadtest.conftest import fake
from tests.test_cli import ENVIRONMENT

pytestmark = pytest.mark.kubernetes


def command_of(docs: list[Doc], job: str, changes: dict[str, str]) -> list[str]:
    """A job's command with its environment filled in, as the kubelet does; with other options."""
    (load,) = of_kind(docs, "ConfigMap")
    (container,) = find(docs, "Job", job)["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["locust"]
    values = {**load["data"], **changes}
    filled = [re.sub(r"\$\((\w+)\)", lambda one: values[one[1]], arg) for arg in container["args"]]
    return [
        f"{name}={changes[name]}" if name in changes else arg
        for arg in filled
        for name in [arg.partition("=")[0]]
    ]


def start(arguments: list[str]) -> "subprocess.Popen[Any]":
    command = [sys.executable, "-m", "locust", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)


def test_master_and_workers_run_and_write_results(tmp_path: Path):
    docs = render("loadtest")
    port = str(free_port())
    with fake(delay_ms=10) as server:
        local = {
            "HOST": server.url,
            "USERS": "40",
            "SPAWN_RATE": "40",
            "RUN_TIME": "5s",
            # The image has the file there.
            "--locustfile": str(ROOT / "loadtests" / "locustfile.py"),
            "--csv": str(tmp_path / "run"),
            "--html": str(tmp_path / "report.html"),
            "--master-host": "127.0.0.1",
        }
        master = [*command_of(docs, "muxserve-loadtest-master", local), "--master-bind-port", port]
        worker = [*command_of(docs, "muxserve-loadtest-worker", local), "--master-port", port]
        count = find(docs, "Job", "muxserve-loadtest-worker")["spec"]["parallelism"]
        workers = [start(worker) for _ in range(count)]
        leading = start([*master, "--master-bind-host", "127.0.0.1"])
        assert leading.wait(90) == 0
        assert [one.wait(30) for one in workers] == [0] * count
        answered = server.counts()["200"]
    # 40 users at one request per second each, for five seconds less the start.
    assert 80 < answered < 300
    assert (tmp_path / "report.html").stat().st_size > 0
    (total,) = (
        line
        for line in (tmp_path / "run_stats.csv").read_text().splitlines()
        if ",Aggregated," in line
    )
    assert int(total.split(",")[2]) <= answered
    assert int(total.split(",")[3]) == 0
