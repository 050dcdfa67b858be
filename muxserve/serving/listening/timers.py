"""Timers of one event loop that nearly never fire, for next to nothing.

Every request has deadlines, and is watched for a client that goes away; hardly any of these timers
fires. A timer of uvloop is a handle of libuv that is made, armed and closed, for several µs; here
all that are due in the same tick share one.
"""

import asyncio
import heapq
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

#: A timer fires up to so much late, and never early.
_TICK_S = 0.01
#: A shorter one is a timer of the loop: such are rare, and a tick is much of them.
_SHORT_S = 10 * _TICK_S


class Timer(Protocol):
    """What will be called."""

    def cancel(self) -> None:
        """Do not call it; nothing happens where it was called already."""
        ...


class Timers:
    """Timers of the running loop. One that is set in another loop forgets those before."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: dict[int, set[_Shared]] = {}
        self._ticks: list[int] = []  # heap; those of _slots
        self._wake: asyncio.TimerHandle | None = None

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` in ``delay_s`` seconds, or up to 10 ms later."""
        loop = asyncio.get_running_loop()
        if delay_s < _SHORT_S:
            return loop.call_later(delay_s, callback)
        if loop is not self._loop:
            self._loop, self._slots, self._ticks, self._wake = loop, {}, [], None
        tick = math.ceil((time.monotonic() + delay_s) / _TICK_S)
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = set()
            heapq.heappush(self._ticks, tick)
            if self._ticks[0] == tick:
                self._wake_for(tick)
        timer = _Shared(callback, slot)
        slot.add(timer)
        return timer

    def timeout(self, delay_s: float) -> "Timeout":
        """``asyncio.timeout(delay_s)``, but no ``async`` before its ``with``."""
        return Timeout(self, delay_s)

    def _wake_for(self, tick: int) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay_s = max(0.0, tick * _TICK_S - time.monotonic())
        assert self._loop is not None
        self._wake = self._loop.call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._wake = None
        now = time.monotonic() / _TICK_S
        # Ticks of which every timer was cancelled need no waking, so they go too.
        while self._ticks and (self._ticks[0] <= now or not self._slots[self._ticks[0]]):
            slot = self._slots.pop(heapq.heappop(self._ticks))
            while slot:
                slot.pop().callback()
        if self._ticks:
            self._wake_for(self._ticks[0])


class _Shared:
    """A timer that shares its tick with others."""

    __slots__ = ("_slot", "callback")

    def __init__(self, callback: Callable[[], object], slot: set["_Shared"]) -> None:
        self.callback = callback
        self._slot = slot

    def cancel(self) -> None:
        self._slot.discard(self)


class Timeout:
    """Cancels the task inside its ``with`` block when the time is up, and raises TimeoutError.

    Told apart from somebody else's cancellation as ``asyncio.timeout`` does it.
    """

    __slots__ = ("_cancelling", "_delay_s", "_expired", "_task", "_timer", "_timers")

    def __init__(self, timers: Timers, delay_s: float) -> None:
        self._timers = timers
        self._delay_s = delay_s
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._timers.call_later(self._delay_s, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        # It refers to this object: a cycle less for the collector, for every request.
        del self._timer
        if (
            self._expired
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
