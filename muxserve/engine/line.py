"""The waiting line: requests join from any thread, one thread at a time takes texts out.

Callers share it: each has room, and its turn. With one caller it is first in, first out. Equal
texts that wait together are one if caller, isolation key and cap on N are the same. Other callers
do not share it: the counters would tell them that somebody asked for the text. Cancelled and
expired texts leave before they can take a slot. One lock guards everything here.
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

#: A caller with up to this many texts waiting does not keep others waiting for long.
BULK_TEXTS = 32


@dataclass(eq=False, slots=True)
class WaitingText:
    """A waiting text, for everyone who asked for it.

    Attributes:
        ids: [length] token ids.
        isolation_key: texts with different keys never share a group.
        max_num_instances: widest N that may serve it. It never changes: a batch is planned while
            others join.
        caller: name of the caller, the same for all waiters.
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
        """What all its waiters have in common."""
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
    """Waiting texts, by turns of their callers and, of one caller, by arrival; bounded in size.

    Attributes:
        joined: texts that were taken in.
        shed, expired, cancelled: texts refused, past their deadline, and no longer wanted.
    """

    def __init__(self, max_texts: int, widest: int = 1) -> None:
        """Make an empty line.

        Args:
            max_texts: of one caller alone; see ``Room``.
            widest: the widest N that serves the line; a text's expected cost depends on it.
        """
        self.joined = 0
        self.shed = 0
        self.expired = 0
        self.cancelled = 0
        self._widest = widest
        self._distinct: dict[_Key, WaitingText] = {}
        self._turns: Turns[WaitingText] = Turns()
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
            Overloaded: if they do not fit.
            NotReady: if the line is closed.
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
                text = self._distinct.get(key)
                if text is None:
                    text = self._distinct[key] = WaitingText(
                        tokens.ids, *key[1:], [(request, index)]
                    )
                    self._turns.add(text, caller, text.length * per_token, options.weight)
                else:
                    text.waiters.append((request, index))
            if len(self._distinct) >= self._wanted:
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
        """End a ``gather`` that is under way."""
        with self._changed:
            self._wakes += 1
            self._changed.notify()

    def gather(self, texts: float, since: int) -> None:
        """Block until enough distinct texts wait, or the line is woken or closed.

        Args:
            texts: how many are enough.
            since: ``wakes`` as it was before the caller decided to gather.
        """
        with self._changed:
            self._wanted = texts
            while self._wakes == since and len(self._distinct) < texts:
                self._changed.wait()
            self._wanted = 1

    @property
    def distinct(self) -> int:
        """Distinct texts that wait."""
        return len(self._distinct)

    def waiting(self, most: int | None = None) -> list[WaitingText]:
        """The waiting texts by turns, without those that nobody wants any more.

        Args:
            most: how many to look at; None is all. The cost of a look must not grow with a line
                that is longer than any batch.
        """
        with self._changed:
            texts, dropped = self._drop_unwanted(time.monotonic(), most)
        # Settled outside the lock: what a caller then does must not stop the line.
        for request, index, outcome in dropped:
            request.settle(index, outcome)
        return texts

    def snapshot(self) -> list[WaitingText]:
        """All waiting texts by arrival, wanted or not, for those who only count."""
        with self._changed:
            return list(self._distinct.values())

    @property
    def shared(self) -> bool:
        """Whether more than one caller is known."""
        return self._turns.shared

    @property
    def floods(self) -> frozenset[str]:
        """Callers that ask for much while others ask for little."""
        with self._changed:
            return self._room.floods

    def take(self, texts: Sequence[WaitingText], costs: Sequence[float] | None = None) -> None:
        """Remove texts that are about to run.

        Args:
            texts: which.
            costs: of each, in tokens of encoder rows: the caller's next turn comes that much later.
                By default the costs expected when they came.
        """
        with self._changed:
            self._turns.take(texts, [text.caller for text in texts], costs)
            for text in texts:
                self._distinct.pop(text.key)
                self._room.remove(text.caller, len(text.waiters))

    def close(self) -> None:
        """Refuse new requests; what waits is still served."""
        with self._changed:
            self._open = False
            self._wakes += 1
            self._changed.notify_all()

    def abort(self, outcome: Outcome) -> None:
        """Close, and give everyone who waits the same outcome."""
        with self._changed:
            texts = list(self._distinct.values())
            self._distinct.clear()
            self._turns.clear()
            self._room.clear()
            self._open = False
            self._wakes += 1
            self._changed.notify_all()
        for text in texts:
            text.settle(outcome)

    def _drop_unwanted(
        self, now_s: float, most: int | None
    ) -> tuple[list[WaitingText], list[tuple[Request, int, Outcome]]]:
        """The wanted texts with the next turns, and the unwanted ones that were before them."""
        wanted: list[WaitingText] = []
        dropped: list[tuple[Request, int, Outcome]] = []
        gone: list[WaitingText] = []
        for text in self._turns.order(by_turns=self._room.contended):
            if len(wanted) == most:
                break
            kept = []
            for request, index in text.waiters:
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
            if len(kept) < len(text.waiters):
                self._room.remove(text.caller, len(text.waiters) - len(kept))
                text.waiters = kept
            if kept:
                wanted.append(text)
            else:
                gone.append(text)
        for text in gone:
            del self._distinct[text.key]
            self._turns.remove(text, text.caller)
        return wanted, dropped
