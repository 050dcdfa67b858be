"""Timers that share a tick of the loop, and timeouts made of them."""

import asyncio
import time

import pytest

from muxserve.serving.listening.timers import Timers

BOUND_S = 20
SHARED_S, SHORT_S = 0.15, 0.02


@pytest.mark.parametrize("delay_s", [SHORT_S, SHARED_S])
def test_a_timer_fires_once_and_never_early(delay_s):
    async def run() -> None:
        fired: list[float] = []
        started = time.monotonic()
        Timers().call_later(delay_s, lambda: fired.append(time.monotonic() - started))
        async with asyncio.timeout(BOUND_S):
            while not fired:
                await asyncio.sleep(0.01)
        await asyncio.sleep(2 * delay_s)
        # A loop's clock may be a few ms behind.
        assert len(fired) == 1
        assert fired[0] > delay_s - 0.005

    asyncio.run(run())


def test_timers_fire_in_their_order_whatever_the_order_they_were_set_in():
    async def run() -> None:
        timers, fired = Timers(), []
        for delay_s in (0.4, 0.15, 0.3, 0.2):
            timers.call_later(delay_s, lambda delay_s=delay_s: fired.append(delay_s))
        async with asyncio.timeout(BOUND_S):
            while len(fired) < 4:
                await asyncio.sleep(0.01)
        assert fired == [0.15, 0.2, 0.3, 0.4]

    asyncio.run(run())


def test_a_timer_that_was_cancelled_does_not_fire_and_those_after_it_do():
    async def run() -> None:
        timers, fired = Timers(), []
        timers.call_later(SHARED_S, lambda: fired.append("cancelled")).cancel()
        timers.call_later(2 * SHARED_S, lambda: fired.append("kept"))
        async with asyncio.timeout(BOUND_S):
            while not fired:
                await asyncio.sleep(0.01)
        assert fired == ["kept"]

    asyncio.run(run())


def test_timers_of_a_loop_that_has_ended_are_forgotten():
    timers = Timers()

    async def set_and_leave() -> None:
        timers.call_later(SHARED_S, lambda: pytest.fail("its loop has ended"))

    async def another() -> None:
        fired = asyncio.Event()
        timers.call_later(SHARED_S, fired.set)
        await asyncio.wait_for(fired.wait(), BOUND_S)

    asyncio.run(set_and_leave())
    asyncio.run(another())


@pytest.mark.parametrize("delay_s", [-1.0, 0.0, SHORT_S, SHARED_S])
def test_a_timeout_ends_what_takes_longer(delay_s):
    async def run() -> None:
        timers = Timers()
        with pytest.raises(TimeoutError), timers.timeout(delay_s):
            await asyncio.sleep(BOUND_S)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(run())


def test_a_timeout_leaves_alone_what_ends_in_time():
    async def run() -> str:
        timers = Timers()
        with timers.timeout(SHARED_S):
            await asyncio.sleep(0)
            answer = "in time"
        await asyncio.sleep(2 * SHARED_S)
        return answer

    assert asyncio.run(run()) == "in time"


def test_of_two_timeouts_the_one_whose_time_is_up_says_so():
    async def run() -> None:
        timers = Timers()
        with timers.timeout(BOUND_S):
            with pytest.raises(TimeoutError), timers.timeout(SHARED_S):
                await asyncio.sleep(BOUND_S)
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError), timers.timeout(SHARED_S), timers.timeout(BOUND_S):
            await asyncio.sleep(BOUND_S)

    asyncio.run(run())


def test_somebody_elses_cancellation_stays_one():
    async def run() -> None:
        async def waits() -> None:
            with Timers().timeout(BOUND_S):
                await asyncio.sleep(BOUND_S)

        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
