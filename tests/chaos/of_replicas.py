"""Replicas and an ingress that die, stop, hang or run out of memory under load."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from tests.chaos.clients import GrpcDoor, HttpPool, InferDoor, PredictDoor
from tests.chaos.entry import POISON
from tests.chaos.expected import labels, tokens_of
from tests.chaos.harness import Scale, Server, broken, running, settled, until_async

#: Seconds for which a replica is stopped.
STOPPED_S = 15.0
#: Errors that clients may see while a replica is gone or does not answer.
LATE_OR_NOT_THERE = ["overloaded", "not_ready", "deadline_exceeded"]
#: Deadline of requests in the scenarios below.
TIMEOUT_S = 8.0


@contextlib.contextmanager
def two_replicas() -> Iterator[Server]:
    """One ingress in front of two replicas that can be made to fail."""
    settings = [
        "replicas.num_replicas=2",
        "replicas.num_cpus=0.5",
        "replicas.health_check_period_s=2",
        "engine.forward_timeout_s=8",
        f"limits.request_timeout_s={TIMEOUT_S:g}",
    ]
    with running(settings, module="tests.chaos.entry") as server:
        yield server


async def replica_killed(server: Server, scale: Scale) -> dict[str, Any]:
    async def kill() -> None:
        victim = server.engines()[0]
        os.kill(victim, signal.SIGKILL)
        await until_async(lambda: _replaced(server, victim), "another replica took its place")

    # A bundle whose replica died is sent once more, to the other one.
    allowed = ["overloaded", "not_ready"]
    return await broken(server, scale, kill, timeout_s=TIMEOUT_S, allowed=allowed)


async def replica_stopped(server: Server, scale: Scale) -> dict[str, Any]:
    async def stop() -> None:
        victim = server.engines()[0]
        os.kill(victim, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)
        # Ray may have replaced it, or it has resumed.
        await until_async(lambda: len(server.engines()) == 2, "two replicas answer again")

    return await broken(server, scale, stop, timeout_s=TIMEOUT_S, allowed=LATE_OR_NOT_THERE)


async def forward_hangs(server: Server, scale: Scale) -> dict[str, Any]:
    async def hang() -> None:
        victim = server.engines()[0]
        file = server.folder / f"hang-{victim}"
        file.touch()
        # It still answers health checks, but they notice that its forward does not end.
        await until_async(lambda: _replaced(server, victim), "another replica took its place")

    return await broken(server, scale, hang, timeout_s=TIMEOUT_S, allowed=LATE_OR_NOT_THERE)


async def ingress_killed(server: Server, scale: Scale) -> dict[str, Any]:
    async def kill() -> None:
        victim = server.ingress()
        os.kill(victim, signal.SIGKILL)
        await until_async(lambda: server.answers() and server.ingress() != victim, "another one")

    return await broken(
        server,
        scale,
        kill,
        timeout_s=TIMEOUT_S,
        allowed=["overloaded", "not_ready"],
        connections_may_end=True,
        counted=False,
    )


async def poisoned_input(server: Server, scale: Scale) -> dict[str, Any]:
    """Send texts whose forward fails among the others, over every door."""
    before = server.stats()
    (server.folder / "poison").write_text(" ".join(map(str, tokens_of(POISON))))
    load = server.load(scale, timeout_s=TIMEOUT_S)

    async def poison() -> None:
        pool, over_grpc = HttpPool(server.port), GrpcDoor(server.grpc_port, labels())
        doors = [PredictDoor(pool), InferDoor(pool, labels()), over_grpc]
        for turn in range(9):
            reply = await doors[turn % 3].ask(f"a {POISON} film", TIMEOUT_S, 1)
            assert reply.code in ("forward_failed", "INTERNAL"), reply
            await asyncio.sleep(scale.seconds / 9)
        pool.close()
        await over_grpc.close()

    try:
        await load.run(2 * scale.seconds, poison)
    finally:
        (server.folder / "poison").unlink()
    # Only the poisoned texts fail.
    load.check()
    failed = server.stats()["requests"]["fates"]["failed"] - before["requests"]["fates"]["failed"]
    assert failed == 9, failed
    settled(server)
    return {**load.figures(), "poisoned": 9}


async def gpu_out_of_memory(server: Server, scale: Scale) -> dict[str, Any]:
    """Forwards of more than two rows run out of memory: they are retried in halves."""
    before = server.stats()
    load = server.load_at(2 * scale.rate, timeout_s=TIMEOUT_S)
    (server.folder / "memory").write_text("2")
    try:
        await load.run(2 * scale.seconds)
    finally:
        (server.folder / "memory").unlink()
    load.check()
    settled(server, before, load)
    return load.figures()


async def gpu_broken(server: Server, scale: Scale) -> dict[str, Any]:
    """Every forward fails, as after an unrecoverable error of a process: it is replaced."""

    async def fail() -> None:
        replicas = server.engines()
        (server.folder / "memory").write_text("0")
        try:
            await until_async(lambda: not set(server.engines()) & set(replicas), "both have gone")
        finally:
            (server.folder / "memory").unlink()
        await until_async(lambda: len(server.engines()) == 2, "two new replicas answer")

    return await broken(server, scale, fail, timeout_s=TIMEOUT_S, allowed=LATE_OR_NOT_THERE)


def _replaced(server: Server, victim: int) -> bool:
    found = server.engines()
    return len(found) == 2 and victim not in found
