"""Whether an engine in another process is alive: what its clients wait for, and how long.

While it is away, one task probes it in the background. Callers wait for that task, and those who
come after ``wait_s`` are refused at once instead of waiting again.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable

_PROBE_PAUSE_S = 0.2


class Liveness:
    """What is known of one remote engine. Belongs to one event loop."""

    def __init__(self, probe: Callable[[], Awaitable[bool]], wait_s: float) -> None:
        """Know nothing yet, and probe at the first call of ``wait``.

        Args:
            probe: whether it answers now.
            wait_s: how long a caller waits for it to be alive.
        """
        self._probe = probe
        self._wait_s = wait_s
        self._alive = asyncio.Event()
        self._looking_since_s = 0.0
        self._watch: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it answered when last heard of."""
        return self._alive.is_set()

    def found(self) -> None:
        """Note that it answers."""
        self._alive.set()

    def lost(self) -> None:
        """Note that it may be dead, until it answers again."""
        self._alive.clear()

    async def wait(self) -> bool:
        """Wait for it to be alive; False where it is still away after ``wait_s``."""
        if self._alive.is_set():
            return True
        self.look()
        left_s = self._looking_since_s + self._wait_s - time.monotonic()
        try:
            await asyncio.wait_for(self._alive.wait(), max(0.0, left_s))
        except TimeoutError:
            return False
        return True

    def look(self) -> None:
        """Probe it in the background until it answers."""
        if self._watch is None or self._watch.done():
            self._looking_since_s = time.monotonic()
            # In no request's context, because it outlives the request; see BundlingBackend.
            self._watch = asyncio.get_running_loop().create_task(
                self._until_alive(), context=contextvars.Context()
            )

    def close(self) -> None:
        """Stop probing."""
        if self._watch is not None:
            self._watch.cancel()

    async def _until_alive(self) -> None:
        while not self._alive.is_set() and not await self._probe():
            await asyncio.sleep(_PROBE_PAUSE_S)
        self._alive.set()
