"""``muxserve serve`` as a process: what it opens, what it refuses, and how it ends."""

import contextlib
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

from muxserve.bench.server import free_port

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


@pytest.mark.ray
@pytest.mark.parametrize("moment", RAY_PROCESSES)
def test_a_signal_while_ray_starts_ends_it_and_nobody_else(start, other, moment):
    server = start()
    server.until(lambda: runs(server, moment), f"running {moment}")
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "Traceback" not in server.said
    assert other.answers()


@pytest.mark.ray
def test_a_ray_that_does_not_start_touches_nobody_else(start, other):
    server = start(environment={"RAY_TMPDIR": "/proc/no-such-place"})
    assert server.ended() != 0
    assert other.answers()


@pytest.mark.ray
def test_replicas_that_do_not_fit_are_told_in_one_line(start, other):
    server = start("replicas.num_gpus=1")
    assert server.ended() == 2
    told = [line for line in server.said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "replicas.num_gpus=1: no node has so many" in told[0]
    assert "Traceback" not in server.said
    assert other.answers()


@pytest.mark.ray
def test_what_is_open_is_what_the_docs_say(other):
    promised = {other.port, other.grpc_port}
    found = set()
    for process in [psutil.Process(other.process.pid), *other.started()]:
        if not process.is_running():
            continue
        for one in process.net_connections("inet"):
            if one.status != psutil.CONN_LISTEN:
                continue
            if one.laddr.port in promised:
                found.add(one.laddr.port)
                assert one.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
            else:
                # Ray's proxy, and its direct ingress with HTTP and gRPC.
                ports = (8000, 9000, *range(30000, 31001), *range(40000, 41001))
                chosen_by_the_kernel = one.laddr.ip in ("::", "0.0.0.0")
                assert one.laddr.port not in ports or chosen_by_the_kernel
                assert "Replica" not in process.name() or chosen_by_the_kernel
    assert found == promised


@pytest.mark.ray
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


@pytest.mark.ray
def test_a_second_signal_ends_it_at_once(start):
    server = start()
    server.until(lambda: runs(server, "raylet"), "running raylet")
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_a_missing_extra_is_one_line_before_ray_starts(tiny_family: Path):
    # As where it is not installed: the finder knows no such package.
    blocked = (
        "import sys, importlib.util as u\n"
        "find, blocked = u.find_spec, sys.argv[1]\n"
        "u.find_spec = lambda name, *a: None if name == blocked else find(name, *a)\n"
        "sys.argv = ['muxserve', *sys.argv[2:]]\n"
        "from muxserve.cli import main\n"
        "main()\n"
    )
    for package, extra, settings in (
        ("openvino", "openvino", ["engine.runtime=openvino"]),
        ("tritonclient", "triton", ["backend=triton", "triton.url=127.0.0.1:1"]),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", blocked, package, *SERVE[3:], tiny_family, *settings],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        lines = ended.stderr.strip().splitlines()
        assert len(lines) == 1
        assert f"pip install 'muxserve[{extra}]'" in lines[0]
