"""The load clients against a server whose rate, delay and errors are known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from muxserve.bench.burst import _timeline
from muxserve.bench.closed_loop import LoadResult, _note, closed_loop, in_own_process, open_loop

DELAY_S = 0.05
TEXTS = [f"text {i}" for i in range(50)]


@asynccontextmanager
async def server(delay_s: float = DELAY_S, *, every_third: int = 200) -> AsyncIterator[int]:
    """Answers after a delay; every third answer with another status, then at once."""
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                await reader.readexactly(length)
                answered += 1
                status = every_third if answered % 3 == 0 else 200
                await asyncio.sleep(delay_s if status == 200 else 0)
                writer.write(
                    f"HTTP/1.1 {status} X\r\nx-muxserve-num-instances: 5\r\n"
                    "content-length: 2\r\n\r\nok".encode()
                )
        except asyncio.IncompleteReadError:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


def test_a_closed_loop_measures_the_rate_and_the_delay():
    async def measure():
        async with server() as port:
            return await closed_loop(
                "127.0.0.1", port, TEXTS, clients=8, warm_up_s=0.3, seconds=1.5
            )

    result = asyncio.run(measure())
    assert result.texts_per_s == pytest.approx(8 / DELAY_S, rel=0.15)
    assert result.quantile_ms(0.5) == pytest.approx(1000 * DELAY_S, rel=0.2)
    assert result.statuses.keys() == {200}
    assert result.num_instances == {5: result.statuses[200]}
    assert result.sent > result.statuses[200], "the warm-up's requests are sent, not counted"


def test_errors_are_counted_and_are_no_throughput():
    async def measure():
        async with server(0.001, every_third=503) as port:
            return await closed_loop("127.0.0.1", port, TEXTS, clients=2, warm_up_s=0, seconds=0.5)

    result = asyncio.run(measure())
    total = result.statuses[200] + result.statuses[503]
    assert result.statuses[503] == pytest.approx(total / 3, abs=1)
    assert result.texts_per_s == result.statuses[200] / 0.5


def test_what_is_refused_at_once_makes_no_server_quick():
    async def measure():
        async with server(every_third=503) as port:
            closed = await closed_loop(
                "127.0.0.1", port, TEXTS, clients=4, warm_up_s=0, seconds=0.5
            )
            return closed, await open_loop("127.0.0.1", port, TEXTS, [0.002 * i for i in range(60)])

    for result in asyncio.run(measure()):
        assert result.statuses[503] > 0
        assert result.quantile_ms(0) >= 1000 * DELAY_S - 1
        for values in (result.latencies_s, result.answered_s, result.widths):
            assert len(values) == result.statuses[200]
        assert result.num_instances == {5: result.statuses[200]}


def test_a_bursts_timeline_has_the_latencies_of_what_was_served():
    result = LoadResult(2.0)
    sent = ((0.1, 0.6, 200, 5), (0.2, 0.201, 503, 0), (1.5, 1.501, 503, 0))
    for came, now, status, width in sent:
        _note(result, came, now, 0.0, 9.0, status, width)
    first, second = _timeline(result, [0.1, 0.2, 1.5], {})
    assert (first["texts_per_s"], first["mean_num_instances"]) == (2, 5)
    assert first["p50_ms"] == pytest.approx(500)
    assert (second["texts_per_s"], second["p50_ms"], second["p99_ms"]) == (1, None, None)


def test_an_open_loop_sends_on_time_and_counts_from_the_arrival():
    """Ten texts in a tenth of a second at a server that takes twice as long: none waits to ask."""
    arrivals = [0.01 * i for i in range(10)]

    async def measure():
        async with server(0.2) as port:
            return await open_loop("127.0.0.1", port, TEXTS, arrivals)

    result = asyncio.run(measure())
    assert result.statuses == {200: 10}
    assert max(result.answered_s) < 0.6, "one after the other would take two seconds"
    assert min(result.latencies_s) >= 0.199


def test_a_server_that_is_not_there_is_counted_as_status_zero():
    result = asyncio.run(open_loop("127.0.0.1", 1, TEXTS, [0.0, 0.01]))
    assert result.statuses == {0: 2}


def test_a_load_runs_in_a_process_of_its_own():
    result = in_own_process(partial(open_loop, "127.0.0.1", 1, TEXTS, [0.0, 0.01]), 60)
    assert result.statuses == {0: 2}
