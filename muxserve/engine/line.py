"""The waiting line: requests come in from any thread, the engine's thread takes texts out.

Callers share it: each has room, and its turn. With one caller that is first in, first out.
Equal texts that wait together, of one caller, isolation key and cap on N, are one entry; shared
with others it would tell them, by the counters, that somebody asked for the text. Cancelled and
expired ones leave before they can take a slot. One lock guards everything here; no one else holds
its state. Any thread may join, one at a time takes out.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from muxserve.engine.request import Outcome, Request
from muxserve.engine.room import Room
from muxserve.engine.turns import Turns
from muxserve.errors import DeadlineExceeded, MuxserveError, NotReady, Overloaded

#: Token ids, isolation key, cap on N, caller.
_Key = tuple[bytes, str | None, int | None, str]

#: Texts of one caller that wait at once, up to which nobody else has to wait long for them.
BULK_TEXTS = 32


@dataclass(eq=False, slots=True)
class Entry:
    """One text that waits, for everybody who asked for it.

    Attributes:
        ids: [length] token ids.
        isolation_key: texts with different keys never share a group.
        max_num_instances: widest N that may serve it. It never changes: a batch is planned while
            others join.
        caller: who asks, by name; the same of all waiters.
        waiters: (request, index of the text in it) of everyone who waits for it.
        joined_s: when it came, on ``time.perf_counter()``'s clock.
        length: tokens.
    """

    ids: np.ndarray
    isolation_key: str | None
    max_num_instances: int | None
    caller: str
    waiters: list[tuple[Request, int]]
    joined_s: float = field(default_factory=time.perf_counter)
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.ids)

    @property
    def key(self) -> "_Key":
        """What is equal of everybody who waits for it."""
        return self.ids.tobytes(), self.isolation_key, self.max_num_instances, self.caller

    def settle(self, outcome: Outcome) -> None:
        """Give everyone who waits the same outcome."""
        for request, index in self.waiters:
            request.settle(index, outcome)

    def settle_rest(self, outcome: Outcome) -> None:
        """Give the outcome to those who have none yet."""
        for request, index in self.waiters:
            if request.outcomes[index] is None:
                request.settle(index, outcome)


class Line:
    """Considered by turns of callers, and of one caller as they came; bounded in texts.

    Attributes:
        joined: texts that were taken in.
        shed, expired, cancelled: texts refused, past their deadline, and no longer wanted.
    """

    def __init__(self, max_texts: int, widest: int = 1) -> None:
        """Args:
        max_texts: of one caller alone; see ``Room``.
        widest: the widest N that serves it, for what a text costs.
        """
        self.joined = 0
        self.shed = 0
        self.expired = 0
        self.cancelled = 0
        self._widest = widest
        self._entries: dict[_Key, Entry] = {}
        self._turns: Turns[Entry] = Turns()
        self._room = Room(max_texts, BULK_TEXTS)
        self._open = True
        self._changed = threading.Condition()
        self._wanted: float = 1
        self._wakes = 0

    @property
    def texts(self) -> int:
        """Texts that wait, each copy counted."""
        return self._room.total

    def join(self, request: Request, retry_after_s: float) -> None:
        """Add every text of a request, or none.

        Raises:
            Overloaded: where they do not fit.
            NotReady: where the line is closed.
        """
        with self._changed:
            if not self._open:
                raise NotReady("the engine is closed")
            options, count = request.options, len(request.tokens)
            caller, cap = options.caller, options.max_num_instances
            if not self._room.admits(caller, count, options.weight):
                self.shed += count
                raise Overloaded(
                    f"the line is full: {self._room.total} texts wait, "
                    f"{self._room.held(caller)} of them of this caller, who may have "
                    f"{self._room.capacity} at most and less while others wait; {count} more "
                    "came; try again later",
                    retry_after_s=retry_after_s,
                )
            self._room.add(caller, count)
            self.joined += count
            per_token = 1 / (self._widest if cap is None else min(cap, self._widest))
            for index, tokens in enumerate(request.tokens):
                key = tokens.ids.tobytes(), options.isolation_key, cap, caller
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._entries[key] = Entry(tokens.ids, *key[1:], [(request, index)])
                    self._turns.add(entry, caller, entry.length * per_token, options.weight)
                else:
                    entry.waiters.append((request, index))
            if len(self._entries) >= self._wanted:
                self._changed.notify()

    @property
    def open(self) -> bool:
        """Whether requests may still join."""
        return self._open

    @property
    def wakes(self) -> int:
        """How often ``wake`` was called; see ``gather``."""
        return self._wakes

    def wake(self) -> None:
        """End the ``gather`` of whoever gathers now."""
        with self._changed:
            self._wakes += 1
            self._changed.notify()

    def gather(self, texts: float, since: int) -> None:
        """Block until so many distinct texts wait, or the line is woken or closed.

        Args:
            texts: how many.
            since: ``wakes`` as it was before the caller decided to gather.
        """
        with self._changed:
            self._wanted = texts
            while self._wakes == since and len(self._entries) < texts:
                self._changed.wait()
            self._wanted = 1

    @property
    def distinct(self) -> int:
        """Distinct texts that wait."""
        return len(self._entries)

    def waiting(self, most: int | None = None) -> list[Entry]:
        """What waits, by turns, without what nobody wants any more.

        Args:
            most: look no further than so many; None looks at everything. What a look costs must
                not grow with a line that is longer than any batch.
        """
        with self._changed:
            entries, dropped = self._drop_unwanted(time.monotonic(), most)
        # Settled outside the lock: what a caller does on it must not stop the line.
        for request, index, outcome in dropped:
            request.settle(index, outcome)
        return entries

    def snapshot(self) -> list[Entry]:
        """Everything that waits, as it came, wanted or not: for whoever only counts."""
        with self._changed:
            return list(self._entries.values())

    @property
    def shared(self) -> bool:
        """Whether more than one caller is known."""
        return self._turns.shared

    @property
    def floods(self) -> frozenset[str]:
        """Callers who ask for much beside others who ask for little."""
        with self._changed:
            return self._room.floods

    def take(self, entries: Sequence[Entry], costs: Sequence[float] | None = None) -> None:
        """Remove entries that are about to run.

        Args:
            entries: which.
            costs: what each takes, in tokens of encoder rows; their callers' next turns come later
                by it. By default what they were expected to take when they came.
        """
        with self._changed:
            self._turns.take(entries, [entry.caller for entry in entries], costs)
            for entry in entries:
                self._entries.pop(entry.key)
                self._room.remove(entry.caller, len(entry.waiters))

    def close(self) -> None:
        """Refuse new requests; what waits is still served."""
        with self._changed:
            self._open = False
            self._wakes += 1
            self._changed.notify_all()

    def abort(self, outcome: Outcome) -> None:
        """Close, and give everyone who waits the same outcome."""
        with self._changed:
            entries = list(self._entries.values())
            self._entries.clear()
            self._turns.clear()
            self._room.clear()
            self._open = False
            self._wakes += 1
            self._changed.notify_all()
        for entry in entries:
            entry.settle(outcome)

    def _drop_unwanted(
        self, now_s: float, most: int | None
    ) -> tuple[list[Entry], list[tuple[Request, int, Outcome]]]:
        """The entries with the next turns that somebody wants, and what was taken out on the way to
        them."""
        wanted: list[Entry] = []
        dropped: list[tuple[Request, int, Outcome]] = []
        gone: list[Entry] = []
        for entry in self._turns.order(by_turns=self._room.contended):
            if len(wanted) == most:
                break
            kept = []
            for request, index in entry.waiters:
                deadline_s = request.options.deadline_s
                if request.cancelled:
                    self.cancelled += 1
                    dropped.append((request, index, MuxserveError("the request was cancelled")))
                elif deadline_s is not None and deadline_s <= now_s:
                    self.expired += 1
                    outcome = DeadlineExceeded("the deadline passed while the text waited")
                    dropped.append((request, index, outcome))
                else:
                    kept.append((request, index))
            if len(kept) < len(entry.waiters):
                self._room.remove(entry.caller, len(entry.waiters) - len(kept))
                entry.waiters = kept
            if kept:
                wanted.append(entry)
            else:
                gone.append(entry)
        for entry in gone:
            del self._entries[entry.key]
            self._turns.remove(entry, entry.caller)
        return wanted, dropped
