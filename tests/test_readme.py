"""Every command and snippet of the README, run as a user would."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.loadtest.conftest import run as run_scenario
from tests.loadtest.conftest import write_scenario

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", README, flags=re.MULTILINE)
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, flags=re.DOTALL))
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "RAY_USAGE_STATS_ENABLED": "0",
}
START_TIMEOUT_S = 120
SERVERS = [command for command in COMMANDS if re.match(r"make serve|serve run", command)]
QUERIES = [command for command in COMMANDS if command.startswith("curl ")]
ONE_SHOT = [c for c in COMMANDS if c.startswith("muxserve ") or "| muxserve " in c]


def run(command: str) -> subprocess.CompletedProcess[str]:
    return run_program("bash", "-o", "pipefail", "-c", command)


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def serving(command: str, log: Path) -> Iterator[None]:
    """Run a command that serves on port 8000 until the block ends; it must end on Ctrl-C."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0, "port 8000 is taken by another program"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + START_TIMEOUT_S
            while not is_ready():
                assert server.poll() is None, f"{command} ended:\n{log.read_text()}"
                assert time.monotonic() < until, f"{command} is not ready:\n{log.read_text()}"
                time.sleep(0.2)
            yield
        finally:
            os.killpg(server.pid, signal.SIGINT)
            try:
                server.wait(60)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()
    assert "Traceback" not in log.read_text()


def is_ready() -> bool:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8000/ready", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_every_command_of_the_readme_is_run_by_a_test():
    known = {*SERVERS, *QUERIES, *ONE_SHOT, "make test"}
    assert set(COMMANDS) == known
    assert set(SNIPPETS) == {"handle", "engine"}


def test_make_test_is_what_is_running():
    assert run("make -n test").returncode == 0


@pytest.mark.parametrize("command", ONE_SHOT)
def test_a_command_without_a_server(command):
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Warning" not in done.stderr


def test_the_engine_snippet():
    done = run_program(sys.executable, "-c", SNIPPETS["engine"])
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["positive", "negative"]
    assert done.stderr == ""


def check_that_n_follows_the_load(folder: Path) -> None:
    """A closed loop of 64 clients over HTTP, on the server's counters."""
    load = {"shape": "saturate", "clients": 64, "seconds": 6, "warm_up_s": 2}
    scenario = write_scenario(folder, "http://127.0.0.1:8000", load, texts={"count": 2000})
    code, _, told = run_scenario(scenario, folder / "out", "--fail-if", "errors > 0")
    assert code == 0, told
    (engine,) = get_json("/stats")["engines"]
    assert max(map(int, engine["texts_by_num_instances"])) > 1
    assert engine["occupancy"] > 0.9
    assert (engine["waiting"], engine["failed"], engine["shed"]) == (0, 0, 0)
    for query in QUERIES:
        assert json.loads(run(query).stdout)[0]["num_instances"] == 1
    assert get_json("/stats")["engines"][0]["last_num_instances"] == 1


def get_json(path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:8000{path}", timeout=10) as response:
        return json.load(response)


@pytest.mark.ray
@pytest.mark.parametrize("command", SERVERS)
def test_a_command_that_serves(command, tmp_path):
    with serving(command, tmp_path / "log"):
        for query in QUERIES:
            answered = run(query)
            assert answered.returncode == 0, answered.stderr
            entries = json.loads(answered.stdout)
            assert entries[0]["label"] == "positive"
            assert entries[0]["num_instances"] == 1
        if command == "make serve":
            check_that_n_follows_the_load(tmp_path)
            done = run_program(sys.executable, "-c", SNIPPETS["handle"])
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == "['positive', 'negative']"
