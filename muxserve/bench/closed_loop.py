"""Clients in a closed loop over HTTP: each sends its next text when the last one is answered.

Bare asyncio sockets with prepared bytes, because clients and server share the machine's cores and
a heavier client would be measured with the server.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class LoadResult:
    """What the clients saw between the end of the warm-up and the end.

    Attributes:
        seconds: length of the measured time.
        latencies_s: of every answered request.
        statuses: answers by HTTP status.
        num_instances: answers by the N that served them.
    """

    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    num_instances: Counter[int] = field(default_factory=Counter)

    @property
    def texts_per_s(self) -> float:
        """Texts answered with 200 per second."""
        return self.statuses[200] / self.seconds

    def quantile_ms(self, q: float) -> float:
        """Latency quantile in milliseconds; NaN without any answer."""
        if not self.latencies_s:
            return float("nan")
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def closed_loop(
    host: str,
    port: int,
    texts: Sequence[str],
    *,
    clients: int = 64,
    warm_up_s: float = 2.0,
    seconds: float = 10.0,
    path: str = "/predict",
    body: Callable[[str], object] = lambda text: {"inputs": text},
) -> LoadResult:
    """Send texts, one per request, from ``clients`` connections.

    Args:
        host, port: of the server.
        texts: shared out among the clients.
        clients: connections, each with one request under way.
        warm_up_s, seconds: what is answered after the first and within the second counts.
        path: where texts are taken.
        body: what is sent for a text, as JSON.
    """
    requests = [_request(host, port, path, body(text)) for text in texts]
    start = time.perf_counter() + warm_up_s
    end = start + seconds
    result = LoadResult(seconds)
    await asyncio.gather(
        *(
            _client(host, port, requests[index::clients], start, end, result)
            for index in range(clients)
        )
    )
    return result


def _request(host: str, port: int, path: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _client(
    host: str, port: int, requests: Sequence[bytes], start: float, end: float, result: LoadResult
) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        turn = 0
        while (sent := time.perf_counter()) < end:
            writer.write(requests[turn % len(requests)])
            turn += 1
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = int(head.split(" ", 2)[1])
            await reader.readexactly(int(_header(head, "content-length") or 0))
            now = time.perf_counter()
            if start <= now < end:
                result.statuses[status] += 1
                result.latencies_s.append(now - sent)
                if served := _header(head, "x-muxserve-num-instances"):
                    result.num_instances[int(served)] += 1
    finally:
        writer.close()


def _header(head: str, name: str) -> str | None:
    for line in head.split("\r\n"):
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None
