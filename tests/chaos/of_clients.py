"""Clients that disconnect, are slow or many, or attack; the others must not be affected."""

import asyncio
import contextlib
import json
import random
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from tests.chaos.clients import ELSEWHERE, HOST, post, read_response
from tests.chaos.expected import known_labels
from tests.chaos.harness import Scale, Server, running, settled

#: Descriptors that this process keeps for its well-behaved clients.
_OWN_DESCRIPTORS = 1000
_MB = 2**20


@contextlib.contextmanager
def one_replica() -> Iterator[Server]:
    """An ingress and a replica with default limits but shorter deadlines."""
    settings = [
        "replicas.num_cpus=1",
        "limits.request_timeout_s=20",
        "connections.first_byte_timeout_s=3",
        "connections.head_timeout_s=3",
        "connections.write_timeout_s=5",
    ]
    with running(settings) as server:
        yield server


async def clients_go(server: Server, scale: Scale) -> dict[str, Any]:
    """Clients send a request and disconnect before, during or after the answer."""
    before = server.stats()

    async def attack() -> Counter[str]:
        rng, gone = random.Random(1), 0
        body = json.dumps({"inputs": [text for text, _ in known_labels()[:40]]}).encode()
        request = post("/predict", body)
        for _ in _turns(scale.attackers_s):
            _, writer = await _connect(server)
            writer.write(request[: rng.choice([20, len(request) // 2, len(request)])])
            await writer.drain()
            await asyncio.sleep(rng.choice([0.0, 0.02, 0.2]))
            writer.transport.abort()
            gone += 1
            await asyncio.sleep(0.05)
        return Counter(gone=gone)

    load, seen = await _beside(server, scale, attack)
    settled(server)
    after = server.stats()["requests"]["fates"]
    answered = after["answered"] - before["requests"]["fates"]["answered"]
    assert load.right <= answered <= load.right + seen["gone"]
    assert after["failed"] == before["requests"]["fates"]["failed"]
    return load.figures() | dict(seen)


async def clients_read_slowly(server: Server, scale: Scale) -> dict[str, Any]:
    """Clients request large answers repeatedly on one connection, and read none of them."""

    async def attack() -> Counter[str]:
        texts = [text[:40] for text, _ in known_labels()] * 2
        request = post("/predict", json.dumps({"inputs": texts, "raw_scores": True}).encode())
        writers = []
        for _ in range(8):
            _, writer = await _connect(server)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(4):
                writer.write(request)
            writers.append(writer)
        await asyncio.sleep(scale.attackers_s)
        for writer in writers:
            writer.transport.abort()
        return Counter(connections=len(writers))

    load, seen = await _beside(server, scale, attack)
    settled(server)
    return load.figures() | dict(seen)


async def clients_send_slowly(server: Server, scale: Scale) -> dict[str, Any]:
    """Clients send one byte per second: each ends by its deadline, with 408 or 504."""

    async def slow(body: bool) -> str:
        reader, writer = await _connect(server)
        request = post("/predict", json.dumps({"inputs": "a slow one"}).encode())
        start = request.index(b"\r\n\r\n") + 4 if body else 0
        writer.write(request[:start])
        try:
            async with asyncio.timeout(40):
                answer = asyncio.create_task(read_response(reader))
                for byte in request[start : len(request) - 1]:
                    writer.write(bytes([byte]))
                    await asyncio.wait({answer}, timeout=1.0)
                    if answer.done():
                        break
                status, _, _ = await answer
                return str(status)
        except (OSError, asyncio.IncompleteReadError):
            return "closed"
        finally:
            writer.transport.abort()

    async def attack() -> Counter[str]:
        return Counter(await asyncio.gather(*(slow(turn % 2 == 0) for turn in range(40))))

    load, seen = await _beside(server, scale, attack)
    assert seen.keys() <= {"408", "504", "closed"}, seen
    assert seen["504"], seen
    settled(server)
    return load.figures() | dict(seen)


async def silent_connections(server: Server, scale: Scale) -> dict[str, Any]:
    """As many silent connections as descriptors allow, from two addresses.

    The server's own limit is reached before its descriptors run out, so real requests are served.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(scale.connections, hard - _OWN_DESCRIPTORS)
    opened: list[asyncio.StreamWriter] = []

    async def open_one(turn: int) -> None:
        with contextlib.suppress(OSError):
            source = ELSEWHERE if turn % 2 else "127.0.0.3"
            _, writer = await asyncio.open_connection(HOST, server.port, local_addr=(source, 0))
            opened.append(writer)
            if turn % 4 == 0:
                writer.write(b"POST /predict HTT")

    async def attack() -> Counter[str]:
        for start in range(0, wanted, 250):
            turns = range(start, min(start + 250, wanted))
            await asyncio.gather(*(open_one(turn) for turn in turns))
        await asyncio.sleep(scale.attackers_s)
        return Counter(connections=len(opened))

    try:
        # Without room, connections without a request are closed, which may include idle ones.
        load, seen = await _beside(server, scale, attack, connections_may_end=True)
    finally:
        for writer in opened:
            writer.transport.abort()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert load.right >= 0.9 * load.sent, load.figures()
    # Refused connections were opened too: the kernel accepts them before the server does.
    assert seen["connections"] >= 0.9 * wanted, seen
    settled(server)
    return load.figures() | dict(seen)


async def megabytes_of_zeros(server: Server, scale: Scale) -> dict[str, Any]:
    """``{"inputs": [0, 0, ...]}`` of 2 MB, repeatedly: refused at the first mistake."""
    body = b'{"inputs": [' + b"0," * (2 * _MB // 2 - 16) + b"0]}"
    return await _bodies(server, scale, [("/predict", body), ("/", body)], {"422", "413"})


async def a_million_words(server: Server, scale: Scale) -> dict[str, Any]:
    """One text of a million words, from four clients at once."""
    body = json.dumps({"inputs": "a " * (_MB - 64)}).encode()
    longest = json.dumps({"inputs": "film " * 19_990}).encode()
    return await _bodies(server, scale, [("/predict", body), ("/predict", longest)], {"413", "200"})


async def flood(server: Server, scale: Scale) -> dict[str, Any]:
    """12 connections of one address with 512 texts each at N=1: another address is served."""
    quiet = await server.load(scale).run(scale.seconds)
    quiet.check()
    texts = [f"{text[:60]} {turn}" for turn, (text, _) in enumerate(known_labels() * 3)][:512]
    body = json.dumps({"inputs": texts, "max_num_instances": 1}).encode()
    load, seen = await _attacked(server, scale, [("/predict", body)], 12, pause_s=0.0)
    assert seen.keys() <= {"200", "503", "504", "429"}, seen
    settled(server)
    figures = load.figures()
    return figures | {"quiet_p99_ms": quiet.figures()["p99_ms"], "attack": dict(seen)}


async def _bodies(
    server: Server, scale: Scale, bodies: list[tuple[str, bytes]], right: set[str]
) -> dict[str, Any]:
    load, seen = await _attacked(server, scale, bodies, 4, pause_s=0.5)
    assert seen.keys() <= right, seen
    settled(server)
    return load.figures() | {"attack": dict(seen)}


async def _attacked(
    server: Server, scale: Scale, bodies: list[tuple[str, bytes]], clients: int, pause_s: float
) -> tuple[Any, Counter[str]]:
    """Run clients beside attackers that send bodies repeatedly, each on its own connection."""

    async def one(index: int, seen: Counter[str]) -> None:
        for turn in _turns(scale.attackers_s):
            path, body = bodies[(index + turn) % len(bodies)]
            reader, writer = await _connect(server)
            try:
                async with asyncio.timeout(60):
                    writer.write(post(path, body))
                    status, _, _ = await read_response(reader)
                seen[str(status)] += 1
            except (OSError, asyncio.IncompleteReadError):
                seen["closed"] += 1
            finally:
                writer.transport.abort()
            await asyncio.sleep(pause_s)

    async def attack() -> Counter[str]:
        seen: Counter[str] = Counter()
        await asyncio.gather(*(one(index, seen) for index in range(clients)))
        assert seen, "no attacker got a word"
        return seen

    return await _beside(server, scale, attack)


async def _beside(
    server: Server,
    scale: Scale,
    attack: Callable[[], Awaitable[Counter[str]]],
    *,
    connections_may_end: bool = False,
) -> tuple[Any, Counter[str]]:
    """Run clients during an attack: each gets its own right answer, none is refused."""
    load = server.load(scale)
    seen: Counter[str] = Counter()

    async def during() -> None:
        await asyncio.sleep(0.5)
        seen.update(await attack())

    await load.run(scale.attackers_s + 1, during)
    load.check(connections_may_end=connections_may_end)
    return load, seen


def _turns(seconds: float) -> Iterator[int]:
    """Count up until the time is over."""
    end = asyncio.get_running_loop().time() + seconds
    turn = 0
    while asyncio.get_running_loop().time() < end:
        yield turn
        turn += 1


async def _connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        HOST, server.port, local_addr=(ELSEWHERE, 0), limit=64 * _MB
    )
