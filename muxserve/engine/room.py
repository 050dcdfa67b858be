"""How much each caller holds of a room that all share, and how much more it may take.

Dynamic thresholds: a caller may hold a multiple of what is still free, so one that floods leaves
room for the next, and so do several. See Choudhury and Hahne, "Dynamic queue length thresholds",
1998. The room for others comes on top of what one caller alone may have: an unused share is lent
whole. Not thread-safe: it has an owner with a lock or an event loop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

#: A caller may hold this many times what is free. With the room for others, a quarter on top of the
#: capacity, a caller that is alone may hold just the capacity.
_TIMES_FREE = 4

#: For this long, the most that a caller held at once counts as what it asks for.
_REMEMBERED_S = 10.0
#: A caller asks for little if it asks for at most this many times what the least demanding does.
_TIMES_LEAST = 4
#: A look at all callers holds for this long.
_LOOKED_UP_S = 0.05
#: Callers that hold nothing are forgotten once there are this many more than before.
_FORGET_AFTER = 64
_NOBODY: frozenset[str] = frozenset()


@dataclass(eq=False, slots=True)
class _Holding:
    """What one caller holds, and the most it recently held at once."""

    held: int = 0
    peak: int = 0
    peak_s: float = 0.0


class Holdings:
    """What each caller holds, and whether one of them holds much more than others ask for."""

    def __init__(self, bulk: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody holds anything yet.

        Args:
            bulk: a caller that holds no more than this is no flood, however little others hold.
            clock: returns seconds.
        """
        self.total = 0
        self._bulk = bulk
        self._clock = clock
        self._callers: dict[str, _Holding] = {}
        self._most = 0
        self._floods = _NOBODY
        self._looked_s = -_LOOKED_UP_S
        self._forget_at = _FORGET_AFTER

    def held(self, caller: str) -> int:
        """What a caller holds."""
        holding = self._callers.get(caller)
        return 0 if holding is None else holding.held

    def add(self, caller: str, amount: int) -> None:
        """Let a caller hold more."""
        holding = self._callers.get(caller)
        if holding is None:
            if len(self._callers) >= self._forget_at:
                self._look(self._clock())
            holding = self._callers[caller] = _Holding()
        holding.held += amount
        self.total += amount
        now_s = self._clock()
        if holding.held >= holding.peak or now_s - holding.peak_s > _REMEMBERED_S:
            holding.peak, holding.peak_s = holding.held, now_s

    def remove(self, caller: str, amount: int) -> None:
        """Let a caller hold less."""
        self._callers[caller].held -= amount
        self.total -= amount

    def clear(self) -> None:
        """Take everything from everybody."""
        self._callers.clear()
        self.total = 0

    @property
    def contended(self) -> bool:
        """Whether there are several callers, and one of them recently held in bulk."""
        if len(self._callers) > 1:
            now_s = self._clock()
            if now_s - self._looked_s >= _LOOKED_UP_S:
                self._look(now_s)
            return self._most > self._bulk
        return False

    @property
    def floods(self) -> frozenset[str]:
        """Callers that recently asked for much while others asked for little.

        Nobody, if all ask for about as much.
        """
        return self._floods if self.contended else _NOBODY

    def _look(self, now_s: float) -> None:
        """Look at all callers; forget those that hold nothing and recently asked for nothing."""
        self._looked_s = now_s
        self._callers = {
            caller: one
            for caller, one in self._callers.items()
            if one.held or now_s - one.peak_s <= _REMEMBERED_S
        }
        self._forget_at = 2 * len(self._callers) + _FORGET_AFTER
        peaks = [one.peak for one in self._callers.values()]
        self._most = max(peaks, default=0)
        # Compared to the least, not to the most: beside that, a second flood would seem little.
        little = max(self._bulk, _TIMES_LEAST * min(peaks, default=0))
        self._floods = frozenset(
            caller for caller, one in self._callers.items() if one.peak > little
        )


class Room(Holdings):
    """Holdings with a limit: no caller takes the room that others would need."""

    def __init__(
        self, capacity: int, bulk: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nobody holds anything yet.

        Args:
            capacity: what one caller alone may hold; all together may hold a quarter more.
            bulk: as in ``Holdings``.
            clock: returns seconds.
        """
        super().__init__(bulk, clock)
        self.capacity = capacity

    def admits(self, caller: str, amount: int, weight: float = 1.0) -> bool:
        """Whether a caller may take this much more.

        A caller that holds nothing may have one as long as there is any room at all, and a caller
        that is alone may have the capacity. A weight above 1 gives more turns but no more room:
        that of others would be too small.
        """
        held = self.held(caller) + amount
        if held == self.total + amount:
            return held <= self.capacity
        # In units of a quarter, so that nothing is rounded.
        left = (_TIMES_FREE + 1) * self.capacity - _TIMES_FREE * (self.total + amount)
        if left < 0 or held > self.capacity:
            return False
        return held <= min(weight, 1.0) * left or held == 1
