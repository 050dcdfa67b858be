"""Futures of a loop resolved from threads."""

import asyncio
import threading

from muxserve.engine.futures import Waker

BOUND_S = 20


def test_every_future_is_resolved_whichever_threads_wake():
    async def run() -> None:
        loop = asyncio.get_running_loop()
        waker = Waker(loop)
        futures = [loop.create_future() for _ in range(400)]

        def wake(some: list[asyncio.Future[None]]) -> None:
            for future in some:
                waker.wake(future)

        threads = [threading.Thread(target=wake, args=(futures[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*futures)
        for thread in threads:
            thread.join()

    asyncio.run(run())


def test_a_future_that_is_done_by_then_is_left_alone():
    async def run() -> None:
        loop = asyncio.get_running_loop()
        waker = Waker(loop)
        gone, waits = loop.create_future(), loop.create_future()
        for future in (gone, waits):
            waker.wake(future)
        gone.cancel()
        async with asyncio.timeout(BOUND_S):
            await waits
        assert gone.cancelled()

    asyncio.run(run())


def test_a_closed_loop_has_nobody_left_who_waits():
    loop = asyncio.new_event_loop()
    future, waker = loop.create_future(), Waker(loop)
    loop.close()
    waker.wake(future)
    assert not future.done()
