"""A real server in processes of its own, to be broken; and what holds of it when all is over."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from muxserve.bench.processes import stop
from muxserve.bench.server import free_port
from muxserve.cli.serve import RAY_SETTINGS, Proxy
from tests.chaos.clients import HOST
from tests.chaos.entry import FOLDER
from tests.chaos.expected import FAMILY
from tests.chaos.load import Load, fates_of

ROOT = Path(__file__).parents[2]
START_S, BOUND_S, STOP_S = 300.0, 120.0, 40.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scale:
    """How long and how much.

    Attributes:
        seconds: of load before and after a failure.
        rate: requests per second of the clients whose answers are checked.
        attackers_s: how long an attack lasts.
        connections: silent ones to be opened, as far as descriptors allow.
        cases: of fuzzing, over all protocols.
    """

    seconds: float
    rate: float
    attackers_s: float
    connections: int
    cases: int


SHORT = Scale(seconds=2.0, rate=12.0, attackers_s=4.0, connections=20_000, cases=400)
LONG = Scale(seconds=20.0, rate=30.0, attackers_s=30.0, connections=20_000, cases=50_000)


@dataclass
class Server:
    """A server that answers.

    Attributes:
        port, grpc_port: where it listens.
        process: the command's; None where this process holds the Ray.
        folder: whose files make replicas fail.
    """

    port: int
    grpc_port: int | None = None
    process: subprocess.Popen[bytes] | None = None
    folder: Path = ROOT

    def load(self, scale: Scale, **changes: Any) -> Load:
        """Clients of it."""
        return self.load_at(scale.rate, **changes)

    def load_at(self, rate: float, **changes: Any) -> Load:
        """Clients of it, of so many requests per second."""
        return Load(self.port, self.grpc_port, rate, **changes)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stats(self) -> dict[str, Any]:
        status, body = self.get("/stats")
        assert status == 200, (status, body)
        found: dict[str, Any] = json.loads(body)
        return found

    def engines(self) -> list[int]:
        """Processes of the engines that tell their counters."""
        return sorted(one["pid"] for one in self.stats()["engines"])

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ingress(self) -> int:
        """The process that listens on the port."""
        for one in self.processes():
            try:
                listening = one.net_connections("tcp")
            except psutil.Error:
                continue
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == self.port for c in listening):
                return one.pid
        raise AssertionError(f"nothing of the server listens on {self.port}")

    def answers(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


@contextmanager
def running(
    settings: Sequence[str] = (),
    *,
    module: str = "muxserve",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """``muxserve serve`` with gRPC beside HTTP, from its first answer until the block ends."""
    port, grpc_port = free_port(), free_port()
    command = [
        *(sys.executable, "-m", module, "serve", "--family", FAMILY, "--port", str(port)),
        *(f"ingress.grpc_port={grpc_port}", "engine.warm_up_s=1", *settings),
    ]
    with tempfile.TemporaryDirectory(prefix="chaos") as name, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env={
                **os.environ,
                # The command sets these before it imports Ray; tests.chaos.entry cannot.
                **RAY_SETTINGS[Proxy.NONE],
                "RAY_AUTH_MODE": "token",
                "PYTHONPATH": str(ROOT),
                FOLDER: name,
                **(environment or {}),
            },
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        server = Server(port, grpc_port, process, Path(name))
        try:
            end = time.monotonic() + START_S
            while not server.answers():
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(log.read().decode(errors="replace")[-3000:])
                time.sleep(0.2)
            yield server
        finally:
            stop(process, STOP_S)


def until(condition: Callable[[], Found], what: str, bound_s: float = BOUND_S) -> Found:
    """Poll until the condition gives something true; a refused connection is not."""
    end = time.monotonic() + bound_s
    while True:
        try:
            if found := condition():
                return found
        except (OSError, http.client.HTTPException, AssertionError):
            pass
        if time.monotonic() > end:
            raise AssertionError(f"not within {bound_s:g} s: {what}")
        time.sleep(0.1)


async def until_async(condition: Callable[[], Found], what: str, bound_s: float = BOUND_S) -> Found:
    """The same, while clients go on."""
    return await asyncio.to_thread(until, condition, what, bound_s)


def settled(server: Server, before: Mapping[str, Any] | None = None, *loads: Load) -> None:
    """Everything that came has an end, all counters are at rest, and they agree with the clients.

    Args:
        server: idle by now.
        before: ``/stats`` from before the loads; None where the ingress died meanwhile.
        loads: all that came to it since then.
    """

    def gap() -> dict[str, Any]:
        stats = server.stats()
        requests, ingress = stats["requests"], stats["ingress"]
        return {
            "requests without a fate": requests["received"] - sum(requests["fates"].values()),
            "texts_under_way": ingress["texts_under_way"],
            "waiting": ingress.get("waiting", 0),
            "calls_in_flight": ingress.get("calls_in_flight", 0),
            "engine.waiting": sum(one["waiting"] for one in stats["engines"]),
        }

    until(lambda: not any(gap().values()), f"nothing is under way: {gap()}", 20.0)
    if before is None or not loads:
        return
    after = server.stats()["requests"]
    counted = {
        fate: count - before["requests"]["fates"][fate] for fate, count in after["fates"].items()
    }
    seen = fates_of([one for load in loads for one in load.answers.values()])
    assert not seen["unknown"], seen
    assert {fate: count for fate, count in counted.items() if count} == dict(seen), (counted, seen)
