"""Clients over HTTP: in a closed loop, or at given times whatever the server does.

Bare asyncio protocols with prepared bytes, because clients and server share the machine's cores and
a heavier client would be measured with the server. ``in_own_process`` keeps its interpreter apart
from whoever measures.
"""

import asyncio
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

#: The header in which muxserve says how wide it served.
_WIDTH = b"x-muxserve-num-instances:"

Load = Callable[[], "Coroutine[Any, Any, LoadResult]"]


@dataclass
class LoadResult:
    """What the clients saw between the end of the warm-up and the end.

    A refusal takes a millisecond, so a server that refuses half would seem twice as quick: times
    and N are of what was answered with 200, and the rest is counted by status.

    Attributes:
        seconds: length of the measured time.
        latencies_s: of every request answered with 200.
        answered_s: when each was answered, from the end of the warm-up, in the same order.
        statuses: answers by HTTP status; 0 for a connection that failed.
        num_instances: answers by the N that served them.
        widths: N of each answer, 0 where none was told, in the order of ``latencies_s``.
        sent: requests in all, the warm-up's included.
        cpu_s: CPU seconds of the clients' process, over the same time.
    """

    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    num_instances: Counter[int] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    sent: int = 0
    cpu_s: float = 0.0

    @property
    def texts_per_s(self) -> float:
        """Texts answered with 200 per second."""
        return self.statuses[200] / self.seconds

    def quantile_ms(self, q: float) -> float:
        """Latency quantile in milliseconds of what was answered with 200; NaN without any."""
        if not self.latencies_s:
            return float("nan")
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def text_body(text: str) -> bytes:
    """The JSON body of ``POST /predict``."""
    return json.dumps({"inputs": text}).encode()


async def closed_loop(
    host: str,
    port: int,
    texts: Sequence[str],
    *,
    clients: int = 64,
    warm_up_s: float = 2.0,
    seconds: float = 10.0,
    method: str = "POST",
    path: str = "/predict",
    body: Callable[[str], bytes] = text_body,
    source: str | None = None,
) -> LoadResult:
    """Each of ``clients`` sends its next text when the last one is answered, one per request.

    ``source`` is the address of this machine that they connect from, such as 127.0.0.2.
    """
    requests = [_request(method, host, port, path, body(text)) for text in texts]
    start = time.perf_counter() + warm_up_s
    end = start + seconds
    result = LoadResult(seconds)
    cpu_s = time.process_time()

    async def client(index: int) -> None:
        own, turn = requests[index::clients], 0
        connection = await _Connection.open(host, port, source)
        try:
            while (sent := time.perf_counter()) < end:
                status, width = await connection.ask(own[turn % len(own)])
                turn += 1
                result.sent += 1
                _note(result, sent, time.perf_counter(), start, end, status, width)
        finally:
            connection.close()

    await asyncio.gather(*(client(index) for index in range(clients)))
    result.cpu_s = time.process_time() - cpu_s
    return result


async def open_loop(
    host: str,
    port: int,
    texts: Sequence[str],
    arrivals_s: Sequence[float],
    *,
    path: str = "/predict",
    body: Callable[[str], bytes] = text_body,
    source: str | None = None,
) -> LoadResult:
    """Send text i at ``arrivals_s[i]``, whether or not the earlier ones are answered.

    Latency counts from the arrival, so that a late sender hides no wait (coordinated omission).
    Connections are kept and reused; a new one is opened where all are busy.
    """
    requests = [_request("POST", host, port, path, body(text)) for text in texts]
    result = LoadResult(arrivals_s[-1])
    idle: list[_Connection] = []
    cpu_s = time.process_time()
    start = time.perf_counter()

    async def send(request: bytes, due_s: float) -> None:
        try:
            connection = idle.pop() if idle else await _Connection.open(host, port, source)
            status, width = await connection.ask(request)
        except OSError:
            status, width = 0, 0
        else:
            idle.append(connection)
        result.sent += 1
        _note(result, due_s, time.perf_counter(), start, float("inf"), status, width)

    tasks = []
    for index, arrival_s in enumerate(arrivals_s):
        due_s = start + arrival_s
        if (ahead_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(ahead_s)
        tasks.append(asyncio.create_task(send(requests[index % len(requests)], due_s)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    result.cpu_s = time.process_time() - cpu_s
    return result


def in_own_process(load: Load, timeout_s: float) -> LoadResult:
    """Run a load (a module-level function or a partial of one) in a fresh process.

    Raises:
        multiprocessing.TimeoutError: it took longer than ``timeout_s``.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(_run, (load,)).get(timeout_s)


def _run(load: Load) -> LoadResult:
    import uvloop

    return uvloop.run(load())


def _note(
    result: LoadResult,
    sent: float,
    now: float,
    start: float,
    end: float,
    status: int,
    width: int,
) -> None:
    if start <= now < end:
        result.statuses[status] += 1
        if status != 200:
            return
        result.latencies_s.append(now - sent)
        result.answered_s.append(now - start)
        result.widths.append(width)
        if width:
            result.num_instances[width] += 1


def _request(method: str, host: str, port: int, path: str, body: bytes) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, int]] | None = None
        self._received = b""

    @classmethod
    async def open(cls, host: str, port: int, source: str | None = None) -> "_Connection":
        loop = asyncio.get_running_loop()
        local = None if source is None else (source, 0)
        _, connection = await loop.create_connection(cls, host, port, local_addr=local)
        return connection

    async def ask(self, request: bytes) -> tuple[int, int]:
        """Send a request; its status and the N that served it, 0 where none is told."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._received[:head_end].lower()
        length = _header(head, b"content-length:")
        if length is None:
            # Chunked answers of other servers end with an empty chunk.
            if not self._received.endswith(b"0\r\n\r\n"):
                return
        elif len(self._received) < head_end + 4 + length:
            return
        self._received = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), _header(head, _WIDTH) or 0))


def _header(head: bytes, name: bytes) -> int | None:
    at = head.find(b"\r\n" + name)
    if at < 0:
        return None
    end = head.find(b"\r\n", at + 2)
    return int(head[at + 2 + len(name) : end if end >= 0 else None])
