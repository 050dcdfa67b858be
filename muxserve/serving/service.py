"""Texts of one request in, predictions out: count, tokenize, ask the backend, keep the deadline.

HTTP and the Python handle both come through here, so a limit holds for both. It never answers part
of a request: where one text fails, the whole request gets that error, which names the text.
"""

import asyncio
import bisect
import contextlib
import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from muxserve.engine.line import BULK_TEXTS
from muxserve.engine.request import Prediction, RequestOptions, Tokens
from muxserve.engine.room import Room
from muxserve.engine.tokens import TextEncoder, Truncate
from muxserve.errors import DeadlineExceeded, MuxserveError, Overloaded, TextTooLong, TooManyTexts
from muxserve.models.family import FamilySpec
from muxserve.serving.access.callers import HANDLES, Caller
from muxserve.serving.backend import Backend
from muxserve.serving.config import LimitsConfig
from muxserve.serving.fates import Fates
from muxserve.serving.listening.timers import Timers
from muxserve.serving.tokenizing import Tokenizing

#: Bounds of the latency's histogram, in seconds.
WITHIN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

#: Where there are other callers, a caller who holds much waits so long for a refusal.
_REFUSAL_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Answered:
    """Predictions of one request, and the tokens of its texts."""

    predictions: list[Prediction]
    tokens: list[Tokens]

    @property
    def truncated(self) -> int:
        """How many of its texts were cut."""
        return sum(one.truncated for one in self.tokens)


@dataclass(slots=True)
class Stages:
    """Where the time of answered requests went, in seconds summed over requests.

    Attributes:
        requests: how many.
        texts: of these requests, where every text has an answer.
        tokens_s: tokenizing, the wait for it included.
        backend_s: from token ids to logits, the way there and back included.
        total_s: from the request's first message to its answer, over HTTP.
    """

    requests: int = 0
    texts: int = 0
    tokens_s: float = 0.0
    backend_s: float = 0.0
    total_s: float = 0.0


class Latency:
    """How many requests were answered within how many seconds, from their texts to predictions."""

    def __init__(self) -> None:
        self._counts = [0] * (len(WITHIN_S) + 1)

    def observe(self, seconds: float) -> None:
        """Count one request."""
        self._counts[bisect.bisect_left(WITHIN_S, seconds)] += 1

    def within(self) -> dict[str, int]:
        """How many took at most so many seconds, by these seconds as Prometheus writes them."""
        bounds = [*(f"{seconds:g}" for seconds in WITHIN_S), "+Inf"]
        return dict(zip(bounds, itertools.accumulate(self._counts), strict=True))


class TextService:
    """Answers requests of one family, for as many callers as there are."""

    def __init__(
        self,
        spec: FamilySpec,
        encoder: TextEncoder,
        backend: Backend,
        limits: LimitsConfig,
        most_texts: int,
    ) -> None:
        """Answer with a backend.

        Args:
            spec: of the family.
            encoder: its tokenizer.
            backend: what answers.
            limits: of one request.
            most_texts: texts of all requests of one caller alone; more are refused. All callers
                together may have a quarter more, so that none takes the room of all.
        """
        self.spec = spec
        self.backend = backend
        self.limits = limits
        self.stages = Stages()
        self.fates = Fates()
        self.latency = Latency()
        self.timers = Timers()
        self._room = Room(most_texts, BULK_TEXTS)
        self._shed = 0
        self._expired = 0
        self._missing_engines = 0
        self._tokenizing = Tokenizing(encoder)

    async def classify(
        self,
        texts: Sequence[str],
        *,
        truncate: Truncate = True,
        max_num_instances: int | None = None,
        isolation_key: str | None = None,
        timeout_s: float | None = None,
        since_s: float | None = None,
        caller: Caller = HANDLES,
    ) -> Answered:
        """Answer every text, or raise for the first that cannot be.

        Args:
            texts: at least one.
            truncate: cut a text that is too long, and where; or refuse it.
            max_num_instances: widest N that may answer.
            isolation_key: texts with different keys never share a group.
            timeout_s: seconds until the answer is due; the limits' own is the most.
            since_s: when the request began, on ``time.monotonic()``'s clock, where its body came
                before this; both times count from there, and from now without.
            caller: who asks.

        Raises:
            MuxserveError: with the field at fault.
        """
        limits = self.limits_of(caller)
        check_count(texts, limits.max_texts_per_request)
        _check_characters(texts, limits.max_characters_per_text)
        came_s = time.monotonic()
        most_s = limits.request_timeout_s
        began_s = came_s if since_s is None else since_s
        deadline_s = began_s + (most_s if timeout_s is None else min(timeout_s, most_s))
        options = RequestOptions(
            caller.cap(max_num_instances),
            deadline_s,
            caller.isolation_key(isolation_key),
            caller.name,
            caller.share,
        )
        await self.check_room(caller, len(texts))
        try:
            with (
                self.timers.timeout(deadline_s - time.monotonic()),
                self._place(caller, len(texts)),
            ):
                started_s = time.monotonic()
                tokens = await self._tokenizing.encode(texts, truncate=truncate, options=options)
                encoded_s = time.monotonic()
                outcomes = await self.backend.predict(tokens, options)
        except TimeoutError:
            self._expired += len(texts)
            raise DeadlineExceeded("the deadline passed before the answer was there") from None
        ended_s = time.monotonic()
        self.latency.observe(ended_s - came_s)
        self.stages.requests += 1
        self.stages.tokens_s += encoded_s - started_s
        self.stages.backend_s += ended_s - encoded_s
        predictions: list[Prediction] = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, MuxserveError):
                if isinstance(outcome, DeadlineExceeded):
                    self._expired += len(texts)
                raise _of_text(outcome, index, len(texts))
            predictions.append(outcome)
        self.stages.texts += len(texts)
        return Answered(predictions, tokens)

    def limits_of(self, caller: Caller) -> LimitsConfig:
        """What one request of this caller may ask for."""
        return caller.limits or self.limits

    async def check_room(self, caller: Caller, texts: int = 1) -> None:
        """Raise where so many texts have no room, before a request is read, which costs more.

        A request that is alone always has room. A caller who floods is refused after a pause: to
        be asked again at once would take time from others' answers.

        Raises:
            Overloaded: there is no room.
        """
        name, room = caller.name, self._room
        refusal = None
        most, held = caller.max_waiting_texts, room.held(name)
        if room.total and not room.admits(name, texts, caller.share):
            refusal = self._refusal(name, texts)
        elif most is not None and held and held + texts > most:
            self._shed += texts
            refusal = Overloaded(
                f"{held} texts of this API key are under way, at most {most} may be; try again "
                "when some are answered"
            )
        if refusal is not None:
            if room.contended and held > BULK_TEXTS:
                await asyncio.sleep(_REFUSAL_PAUSE_S)
            raise refusal

    @contextlib.contextmanager
    def _place(self, caller: Caller, texts: int) -> Iterator[None]:
        """Hold a place for so many texts until they are answered."""
        self._room.add(caller.name, texts)
        try:
            yield
        finally:
            self._room.remove(caller.name, texts)

    def _refusal(self, caller: str, texts: int) -> Overloaded:
        """Count the texts and say why they are refused."""
        self._shed += texts
        self.backend.refused(texts)
        return Overloaded(
            f"the ingress is full: {self._room.held(caller)} texts of this caller are under way "
            f"and {self._room.total} of all; one caller may have {self._room.capacity}, and less "
            "while others have many; try again later"
        )

    async def stats(self) -> dict[str, Any]:
        """Counters of the engines behind it, and of the requests that came through it."""
        behind = await self.backend.stats()
        self._missing_engines = behind.get("ingress", {}).get("missing_engines", 0)
        own = self.own_stats()
        return {**behind, **own, "ingress": {**behind.get("ingress", {}), **own["ingress"]}}

    def own_stats(self) -> dict[str, dict[str, Any]]:
        """Counters of the requests that came through it, from any thread."""
        return {
            "ingress": {
                "texts_under_way": self._room.total,
                "capacity": self._room.capacity,
                "shed": self._shed,
                "expired": self._expired,
                "missing_engines": self._missing_engines,
            },
            "requests": self.fates.stats(),
            "stages": asdict(self.stages),
            "latency": {"within": self.latency.within()},
        }


def check_count(texts: Sequence[Any], most: int) -> None:
    """Raise TooManyTexts for more than ``most``; looks at none of them."""
    if len(texts) > most:
        raise TooManyTexts(
            f"{len(texts)} texts in one request, at most {most} are allowed; send them in several",
            field="inputs",
        )


def _check_characters(texts: Sequence[str], most: int) -> None:
    """Raise TextTooLong for a text that is not even tokenized."""
    for index, text in enumerate(texts):
        if len(text) > most:
            raise TextTooLong(
                f"the text has {len(text)} characters, at most {most} are read; shorten it",
                field=f"inputs[{index}]" if len(texts) > 1 else "inputs",
            )


def _of_text(error: MuxserveError, index: int, count: int) -> MuxserveError:
    """Name the text at fault, where there are several."""
    if error.field is None and count > 1:
        # A copy: other requests that waited for an equal text may hold the same error.
        error = copy.copy(error)
        error.field = f"inputs[{index}]"
        error.message = f"{error.field}: {error.message}"
    return error
