"""The values that travel through the engine: a bundle of texts in, predictions out."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from muxserve.errors import MuxserveError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, as its tokenizer sees words.

    Attributes:
        text: as it stands in the text.
        start, end: its characters in the text, the end not included.
        first: the token at which its label is read.
    """

    text: str
    start: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as token ids.

    Attributes:
        ids: [length] int64, special tokens included.
        truncated: whether the text was cut to the family's maximum.
        words: the words to label, if the family labels words.
    """

    ids: np.ndarray
    truncated: bool = False
    words: Sequence[Word] = ()


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a caller may ask for.

    Attributes:
        max_num_instances: widest N that may answer this request, or None.
        deadline_s: time on ``time.monotonic()``'s clock after which the answer is not wanted.
        isolation_key: texts with different keys never share a group.
        caller: name of the caller.
        weight: the caller's share of room and turns, where others have 1.
    """

    max_num_instances: int | None = None
    deadline_s: float | None = None
    isolation_key: str | None = None
    caller: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text.

    Attributes:
        logits: [labels] float32 of the text, or [tokens, labels] of its tokens; the mean over the
            slots that held the text.
        num_instances: the N that served it.
    """

    logits: np.ndarray
    num_instances: int


Outcome = Prediction | MuxserveError


@dataclass(eq=False, slots=True)
class Request:
    """Texts of one caller that are answered together.

    The engine's thread calls ``on_done`` once, when every text has its outcome; it must be quick.
    """

    tokens: Sequence[Tokens]
    options: RequestOptions = RequestOptions()
    on_done: Callable[["Request"], None] | None = None
    outcomes: list[Outcome | None] = field(init=False)
    cancelled: bool = field(init=False, default=False)
    _missing: int = field(init=False)
    # Held until every text has its outcome; far cheaper to make for every request than an Event.
    _pending: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._pending.acquire()
        self.outcomes = [None] * len(self.tokens)
        self._missing = len(self.tokens)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Give text ``index`` its outcome; called by the engine only."""
        self.outcomes[index] = outcome
        self._missing -= 1
        if self._missing == 0:
            self._pending.release()
            if self.on_done is not None:
                try:
                    self.on_done(self)
                except Exception:
                    # The engine's thread serves everybody; one caller's mistake must not end it.
                    log.exception("on_done of a request raised")

    def cancel(self) -> None:
        """The answer is no longer wanted; texts that still wait leave the line."""
        self.cancelled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until every text has its outcome; False when the time ran out first."""
        if not self._pending.acquire(timeout=-1 if timeout_s is None else timeout_s):
            return False
        self._pending.release()
        return True
