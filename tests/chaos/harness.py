"""A real server in its own processes, for scenarios to break, and the checks that follow."""

import asyncio
import http.client
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from muxserve.cli.serve import RAY_SETTINGS, Proxy
from muxserve.loadtest.servers.muxserve import free_port, running_muxserve
from tests.chaos.clients import HOST
from tests.chaos.entry import FOLDER
from tests.chaos.expected import FAMILY
from tests.chaos.load import Load, fates_of

ROOT = Path(__file__).parents[2]
START_S, BOUND_S, STOP_S = 300.0, 120.0, 40.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scale:
    """The duration and size of scenarios.

    Attributes:
        seconds: seconds of load before and after a failure.
        rate: requests per second of the clients whose answers are checked.
        attackers_s: duration of an attack.
        connections: silent connections to open, as far as descriptors allow.
        cases: number of fuzzing cases over all protocols.
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
    """A running server.

    Attributes:
        port, grpc_port: where it listens.
        pid: process of the command; None if this process started Ray.
        folder: files in it make replicas fail.
    """

    port: int
    grpc_port: int | None = None
    pid: int | None = None
    folder: Path = ROOT

    def load(self, scale: Scale, **changes: Any) -> Load:
        """Clients at the scale's rate."""
        return self.load_at(scale.rate, **changes)

    def load_at(self, rate: float, **changes: Any) -> Load:
        """Clients that send ``rate`` requests per second."""
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
        """The process ids of the engines that report counters."""
        return sorted(one["pid"] for one in self.stats()["engines"])

    def processes(self) -> list[psutil.Process]:
        assert self.pid is not None
        try:
            root = psutil.Process(self.pid)
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
    grpc_port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="chaos") as name,
        running_muxserve(
            FAMILY,
            [f"ingress.grpc_port={grpc_port}", "engine.warm_up_s=1", *settings],
            environment={
                # The command sets these before it imports Ray; tests.chaos.entry cannot.
                **RAY_SETTINGS[Proxy.NONE],
                "RAY_AUTH_MODE": "token",
                "PYTHONPATH": str(ROOT),
                FOLDER: name,
                **(environment or {}),
            },
            module=module,
            start_limit_s=START_S,
            stop_limit_s=STOP_S,
        ) as server,
    ):
        yield Server(server.port, grpc_port, server.pid, Path(name))


async def broken(
    server: Server,
    scale: Scale,
    breaking: Callable[[], Awaitable[None]],
    *,
    timeout_s: float,
    allowed: Sequence[str] = (),
    connections_may_end: bool = False,
    counted: bool = True,
) -> dict[str, Any]:
    """Run clients before, while and after something breaks; return their figures.

    Args:
        server: the server to break.
        scale: duration and rate of the load.
        breaking: breaks the server, and waits until it has recovered.
        timeout_s: deadline of each request.
        allowed, connections_may_end: what clients may see of it; see ``Load.check``.
        counted: whether to compare the counters; false if the process that has them is replaced.
    """
    before = server.stats() if counted else None
    load = server.load(scale, timeout_s=timeout_s)

    async def between() -> None:
        await asyncio.sleep(scale.seconds)
        await breaking()
        await asyncio.sleep(scale.seconds)

    await load.run(scale.seconds, between)
    load.check(allowed=allowed, connections_may_end=connections_may_end)
    settled(server, before, load)
    return load.figures()


def until(condition: Callable[[], Found], what: str, bound_s: float = BOUND_S) -> Found:
    """Poll until the condition returns something true; a refused connection counts as false."""
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
    """The same, while clients continue."""
    return await asyncio.to_thread(until, condition, what, bound_s)


def settled(server: Server, before: Mapping[str, Any] | None = None, *loads: Load) -> None:
    """Check that every request has ended and that the counters agree with the clients.

    Args:
        server: a server that is idle by now.
        before: ``/stats`` from before the loads; None if the ingress died meanwhile.
        loads: all loads that were sent since then.
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
