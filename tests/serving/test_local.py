"""``muxserve serve`` as a process: what it opens, what it refuses, and how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from muxserve.loadtest.servers.muxserve import free_port
from tests.serving.test_serve_run import serve_run, wait_until_ready

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ROOT = Path(__file__).parents[2]
BOUND_S = 120
SERVE = [sys.executable, "-m", "muxserve", "serve", "--family"]
QUESTION = {"inputs": "A moving, beautifully shot film."}
#: Files that are there once a Ray has begun to start its processes.
RAY_PROCESSES = ("gcs_server", "raylet")


class Server:
    """A ``muxserve serve`` of a tiny family."""

    def __init__(self, family: Path, *arguments: str, environment: dict[str, str] | None = None):
        self.port = free_port()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the server
        self.process = subprocess.Popen(
            [*SERVE, family, "--port", str(self.port), "engine.warm_up_s=1", *arguments],
            cwd=ROOT,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **(environment or {})},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.grpc_port: int | None = None
        self.children: set[psutil.Process] = set()

    @property
    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def started(self) -> set[psutil.Process]:
        """Every process that it started so far."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.children.update(psutil.Process(self.process.pid).children(recursive=True))
        return self.children

    def until(self, condition, what: str) -> None:
        end = time.monotonic() + BOUND_S
        while not condition():
            self.started()
            assert self.process.poll() is None, f"ended before {what}:\n{self.said}"
            assert time.monotonic() < end, f"not {what} within {BOUND_S} s:\n{self.said}"
            time.sleep(0.05)

    def until_ready(self) -> None:
        self.until(lambda: "ready on" in self.said, "ready")

    def answers(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/predict"
        return httpx.post(url, json=QUESTION, timeout=30).status_code == 200

    def ended(self) -> int:
        """Its exit code, once it and all that it started are gone."""
        end = time.monotonic() + BOUND_S
        while self.process.poll() is None and time.monotonic() < end:
            self.started()
            time.sleep(0.05)
        code = self.process.wait(1)
        _, left = psutil.wait_procs(self.children, timeout=20)
        assert not left, f"left behind: {left}\n{self.said}"
        return code

    def close(self) -> None:
        """End it whatever happened."""
        for process in self.started():
            if process.is_running():
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_S)
        self.log.close()


@pytest.fixture(scope="module")
def other(tiny_family: Path) -> Iterator[Server]:
    """Somebody else's service on this machine."""
    grpc_port = free_port()
    server = Server(tiny_family, f"ingress.grpc_port={grpc_port}")
    server.grpc_port = grpc_port
    try:
        server.until_ready()
        assert server.answers()
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        try:
            server.ended()
        finally:
            server.close()


@pytest.fixture
def start(tiny_family: Path) -> Iterator:
    servers: list[Server] = []

    def starting(*arguments: str, **options) -> Server:
        servers.append(Server(tiny_family, *arguments, **options))
        return servers[-1]

    yield starting
    for server in servers:
        server.close()


def runs(server: Server, name: str) -> bool:
    return any(process.is_running() and process.name() == name for process in server.started())


@pytest.mark.parametrize("moment", RAY_PROCESSES)
def test_a_signal_while_ray_starts_ends_it_and_nobody_else(start, other, moment):
    server = start()
    server.until(lambda: runs(server, moment), f"running {moment}")
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.said
    assert other.answers()


def test_a_ray_that_does_not_start_touches_nobody_else(start, other):
    server = start(environment={"RAY_TMPDIR": "/proc/no-such-place"})
    assert server.ended() != 0
    assert other.answers()


def test_replicas_that_do_not_fit_are_told_in_one_line(start, other):
    server = start("replicas.num_gpus=1")
    assert server.ended() == 2
    told = [line for line in server.said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "replicas.num_gpus=1: no node has so many" in told[0]
    assert "Traceback" not in server.said
    assert other.answers()


def listening(pid: int) -> dict[int, set[str]]:
    """The ports that a process and those below it listen on, each with its addresses."""
    found: dict[int, set[str]] = {}
    own = psutil.Process(pid)
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    address = one.laddr.ip.removeprefix("::ffff:")
                    found.setdefault(one.laddr.port, set()).add(address)
    return found


def is_ours(port: int) -> bool:
    """Whether requests of clients are answered there."""
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", json=QUESTION, timeout=2)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def check_what_is_open(pid: int, promised: dict[int, str], behind: range = range(0)) -> None:
    """As the table in docs/serving.md says: these ports, and Ray's own, which answer nobody.

    Args:
        pid: of what was started.
        promised: the address of each port.
        behind: of these there are some, for the loopback alone.
    """
    found = listening(pid)
    assert {port: found.get(port) for port in promised} == {
        port: {address} for port, address in promised.items()
    }
    others = {port: hosts for port, hosts in found.items() if port not in promised}
    inner = {port: hosts for port, hosts in others.items() if port in behind}
    assert bool(inner) == bool(behind)
    assert all(hosts == {"127.0.0.1"} for hosts in inner.values())
    for port in others.keys() - inner.keys():
        # Ray's proxy and its direct ingress would be at 8000, and from 30000 and 40000 on.
        assert port > 10_000
        assert port not in (30_000, 40_000) or "::" in others[port]
        assert not is_ours(port), f"{port} of {others[port]} answers"


def test_what_is_open_without_a_proxy_is_what_the_docs_say(other):
    check_what_is_open(other.process.pid, {other.port: "127.0.0.1", other.grpc_port: "127.0.0.1"})


@pytest.mark.parametrize("proxy", ["python", "haproxy"])
def test_what_is_open_with_a_proxy_is_what_the_docs_say(start, other, proxy):
    server = start("--proxy", proxy)
    server.until_ready()
    of_haproxy = {8404: "0.0.0.0", 9101: "0.0.0.0"} if proxy == "haproxy" else {}
    check_what_is_open(
        server.process.pid,
        {server.port: "127.0.0.1", **of_haproxy},
        range(20_000, 30_000) if of_haproxy else range(0),
    )
    if of_haproxy:
        second = start("--proxy", proxy)
        assert second.ended() == 2
        assert "cannot listen on 0.0.0.0:8404" in second.said
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0
    assert other.answers()


def test_what_serve_run_opens_is_what_the_docs_say(other, tiny_family: Path, tmp_path: Path):
    port, direct_port = free_port(), free_port()
    args = {
        "family": str(tiny_family),
        "ingress.direct_port": direct_port,
        "engine.warm_up_s": 1,
    }
    app = {"name": "tiny", "import_path": "deployments.sentiment:app", "args": args}
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [app]}
    file, log = tmp_path / "config.yaml", tmp_path / "log"
    file.write_text(json.dumps(config))
    with serve_run(file, log) as running:
        for one in (port, direct_port):
            wait_until_ready(f"http://127.0.0.1:{one}", running, log)
        dashboard = {one: "127.0.0.1" for one in listening(running.pid) if one in (8265, 8266)}
        check_what_is_open(running.pid, {port: "127.0.0.1", direct_port: "127.0.0.1", **dashboard})
        assert is_ours(port)
        assert is_ours(direct_port)
    assert other.answers()


@pytest.mark.parametrize("option", ["--port", "ingress.grpc_port="])
def test_a_port_of_another_server_is_refused_before_ray_starts(start, other, option):
    if option == "--port":
        taken, arguments = other.port, ["--port", str(other.port)]
    else:
        taken, arguments = other.grpc_port, [f"{option}{other.grpc_port}"]
    server = start(*arguments)
    assert server.ended() == 2
    assert f"cannot listen on 127.0.0.1:{taken}" in server.said
    assert not any(process.is_running() for process in server.children)
    assert other.answers()


BROKEN = """
from ray import serve
from muxserve.errors import FamilyError
from muxserve.serving.ray.local import DoesNotStart, serve_until_stopped
@serve.deployment
class Broken:
    def __init__(self):
        raise FamilyError("weights.bin: gone since it was checked")
try:
    serve_until_stopped(Broken.bind(), None, [], lambda: print("ready"))
except DoesNotStart as error:
    print(error)
"""


def test_a_replica_that_fails_is_told_by_what_it_says():
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN],
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.stdout.splitlines()[-1] == (
        "the application does not start: FamilyError: weights.bin: gone since it was checked"
    )


def test_a_second_signal_ends_it_at_once(start):
    server = start()
    server.until(lambda: runs(server, "raylet"), "running raylet")
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
