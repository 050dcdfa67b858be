"""Futures of an event loop, resolved from other threads with one call into the loop for many.

A forward answers dozens of requests at once, and each call into another thread's loop costs as much
as answering does.
"""

import asyncio
import contextlib
from collections import deque


class Waker:
    """Resolves futures of one loop; ``wake`` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    def wake(self, future: "asyncio.Future[None]") -> None:
        """Resolve a future soon, unless it is done by then."""
        self._done.append(future)
        if not self._is_due:
            self._is_due = True
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        # Before looking: whoever comes after the last look calls again.
        self._is_due = False
        while self._done:
            future = self._done.popleft()
            if not future.done():
                future.set_result(None)
