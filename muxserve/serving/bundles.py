"""Requests of one ingress in, few calls of replicas out: Ray's cost is paid per bundle.

There is no timer: a request goes at once while a call is free, and while all calls are under way
the next requests gather into bundles. A bundle is a flat array of token ids, and its answer one of
logits. A request that is cancelled or late before it was sent is never sent.
"""

import asyncio
import contextvars
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from muxserve.engine.request import Outcome, Prediction, RequestOptions, Tokens
from muxserve.errors import DeadlineExceeded, MuxserveError, NotReady
from muxserve.serving.config import IngressConfig
from muxserve.serving.demand import HeldBack
from muxserve.serving.errors import Internal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BundledRequest:
    """One request of a bundle.

    Attributes:
        texts: how many of the bundle's texts are its.
        max_num_instances, isolation_key, caller: as in ``RequestOptions``.
        remaining_s: seconds to its deadline when the bundle was sent; processes share no clock.
    """

    texts: int
    max_num_instances: int | None
    isolation_key: str | None
    remaining_s: float | None
    caller: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """Texts of several requests, for one call.

    Attributes:
        ids: [sum of lengths] int32, the texts' token ids one after another.
        lengths: [texts] int32.
        requests: in the order of their texts.
        held_back: what its sender did not send, for autoscaling.
    """

    ids: np.ndarray
    lengths: np.ndarray
    requests: tuple[BundledRequest, ...]
    held_back: HeldBack | None = None


@dataclass(frozen=True, slots=True)
class BundleAnswer:
    """Outcomes of a bundle's texts.

    Attributes:
        logits: [texts, labels] float32, zeros where a text failed; or the tokens of all texts,
            [sum of tokens, labels].
        tokens: [texts] int32, how many tokens of each text are in ``logits``; None where its rows
            are texts.
        num_instances: [texts] int32.
        errors: by index of text.
    """

    logits: np.ndarray
    tokens: np.ndarray | None
    num_instances: np.ndarray
    errors: dict[int, MuxserveError]


def pack(
    requests: Sequence[tuple[Sequence[Tokens], RequestOptions]],
    now_s: float,
    held_back: HeldBack | None = None,
) -> Bundle:
    """Requests as a bundle; ``now_s`` is on ``time.monotonic()``'s clock."""
    texts = [one.ids for tokens, _ in requests for one in tokens]
    return Bundle(
        np.concatenate(texts).astype(np.int32),
        np.fromiter(map(len, texts), np.int32, len(texts)),
        tuple(
            BundledRequest(
                len(tokens),
                options.max_num_instances,
                options.isolation_key,
                None if options.deadline_s is None else options.deadline_s - now_s,
                options.caller,
            )
            for tokens, options in requests
        ),
        held_back,
    )


def unpack(bundle: Bundle, now_s: float) -> list[tuple[list[Tokens], RequestOptions]]:
    """A bundle's requests, their deadlines on this process's clock."""
    # What Ray hands over is read-only, and the engine wants int64: one copy does for both.
    ids = bundle.ids.astype(np.int64)
    texts = np.split(ids, np.cumsum(bundle.lengths)[:-1])
    requests, start = [], 0
    for request in bundle.requests:
        remaining_s = request.remaining_s
        options = RequestOptions(
            request.max_num_instances,
            None if remaining_s is None else now_s + remaining_s,
            request.isolation_key,
            request.caller,
        )
        end = start + request.texts
        requests.append(([Tokens(one) for one in texts[start:end]], options))
        start = end
    return requests


def pack_answer(outcomes: Sequence[Outcome], labels: int, *, of_tokens: bool) -> BundleAnswer:
    """Outcomes of every text of a bundle as one answer.

    Args:
        outcomes: of each text.
        labels: labels that the family has.
        of_tokens: whether tokens are labelled, and not texts.
    """
    nothing = np.zeros((0, labels) if of_tokens else labels, np.float32)
    logits = [nothing] * len(outcomes)
    num_instances = np.zeros(len(outcomes), np.int32)
    errors: dict[int, MuxserveError] = {}
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, MuxserveError):
            errors[index] = outcome
        else:
            logits[index] = outcome.logits
            num_instances[index] = outcome.num_instances
    if not of_tokens:
        return BundleAnswer(np.stack(logits), None, num_instances, errors)
    tokens = np.fromiter(map(len, logits), np.int32, len(logits))
    return BundleAnswer(np.concatenate(logits), tokens, num_instances, errors)


def unpack_answer(answer: BundleAnswer) -> list[Outcome]:
    """The outcome of each text of a bundle."""
    rows: Sequence[np.ndarray] | np.ndarray = answer.logits
    if answer.tokens is not None:
        rows = np.split(answer.logits, np.cumsum(answer.tokens)[:-1])
    predictions = zip(rows, answer.num_instances.tolist(), strict=True)
    return [
        answer.errors.get(index) or Prediction(logits, n)
        for index, (logits, n) in enumerate(predictions)
    ]


class Replicas(Protocol):
    """Engine processes, as a bundler sees them."""

    async def classify_bundle(self, bundle: Bundle) -> BundleAnswer:
        """Answer a bundle on some replica; raises MuxserveError where none can."""
        ...

    async def ready(self) -> bool:
        """Whether some replica is alive."""
        ...

    async def stats(self) -> list[dict[str, Any]]:
        """Counters of every replica."""
        ...


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that waits for a bundle, or for its bundle's answer."""

    tokens: Sequence[Tokens]
    options: RequestOptions
    outcomes: "asyncio.Future[list[Outcome]]"
    sent: "_Sent | None" = None


@dataclass(eq=False, slots=True)
class _Sent:
    """A bundle under way."""

    requests: list[_Waiting]
    task: "asyncio.Task[None] | None" = field(default=None)


class BundlingBackend:
    """Answers requests by calling replicas, several to a call. Belongs to one event loop."""

    def __init__(self, replicas: Replicas, config: IngressConfig) -> None:
        self._replicas = replicas
        self._max_calls = config.max_calls_in_flight
        self._max_texts = config.max_texts_per_bundle
        # In order of arrival; a dict, so that a cancelled request leaves at once.
        self._line: dict[_Waiting, None] = {}
        self._waiting_texts = 0
        self._in_flight: set[_Sent] = set()
        self._send_is_due = False
        self._bundles = 0
        self._bundled_texts = 0
        self._cancelled_texts = 0
        self._name = uuid.uuid4().hex
        self._refused_texts = 0

    def refused(self, texts: int) -> None:
        self._refused_texts += texts

    async def classify(self, tokens: Sequence[Tokens], options: RequestOptions) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(tokens, options, loop.create_future())
        self._line[waiting] = None
        self._waiting_texts += len(tokens)
        self._send_soon(loop)
        try:
            return await waiting.outcomes
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise

    async def ready(self) -> bool:
        return await self._replicas.ready()

    async def stats(self) -> dict[str, Any]:
        told = await self._replicas.stats()
        engines = [one for one in told if not one.get("missing")]
        # Texts / bundles is how many share the cost of one call.
        return {
            "engines": engines,
            "ingress": {
                "missing_engines": len(told) - len(engines),
                "waiting": self._waiting_texts,
                "calls_in_flight": len(self._in_flight),
                "bundles": self._bundles,
                "texts": self._bundled_texts,
                "cancelled": self._cancelled_texts,
            },
        }

    def _send_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send after the callbacks that are due: requests that came together go together."""
        if not self._send_is_due and len(self._in_flight) < self._max_calls:
            self._send_is_due = True
            loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        loop = asyncio.get_running_loop()
        while len(self._in_flight) < self._max_calls and (requests := self._take()):
            sent = _Sent(requests)
            for request in requests:
                request.sent = sent
            self._in_flight.add(sent)
            self._bundles += 1
            self._bundled_texts += sum(len(request.tokens) for request in requests)
            # Ray Serve cancels what a request called when the request is cancelled, and knows it
            # by context variables. A bundle belongs to many requests, so it runs in none's context.
            sent.task = loop.create_task(self._call(sent), context=contextvars.Context())
            # Not in the task: one that is cancelled before its first step runs nothing of its own.
            sent.task.add_done_callback(partial(self._ended, sent))

    def _take(self) -> list[_Waiting]:
        """The oldest requests that fit into one bundle; late ones are told so and left out.

        So are those that were cancelled and do not know it yet: their tasks run after this.
        """
        now_s = time.monotonic()
        taken: list[_Waiting] = []
        texts = 0
        for request in list(self._line):
            if taken and texts + len(request.tokens) > self._max_texts:
                break
            self._leave_line(request)
            if request.outcomes.done():
                continue
            deadline_s = request.options.deadline_s
            if deadline_s is not None and deadline_s <= now_s:
                _settle(request, DeadlineExceeded("the deadline passed while the text waited"))
                continue
            taken.append(request)
            texts += len(request.tokens)
        return taken

    async def _call(self, sent: _Sent) -> None:
        try:
            requests = [(request.tokens, request.options) for request in sent.requests]
            held_back = HeldBack(self._name, self._waiting_texts, self._refused_texts)
            self._refused_texts = 0
            bundle = pack(requests, time.monotonic(), held_back)
            answer = await self._replicas.classify_bundle(bundle)
            outcomes = unpack_answer(answer)
            start = 0
            for request in sent.requests:
                end = start + len(request.tokens)
                if not request.outcomes.done():
                    request.outcomes.set_result(outcomes[start:end])
                start = end
        except MuxserveError as error:
            for request in sent.requests:
                _settle(request, error)
        except Exception:
            log.exception("a call of a replica failed")
            for request in sent.requests:
                _settle(request, Internal())

    def _ended(self, sent: _Sent, task: "asyncio.Task[None]") -> None:
        """Give the call's place to the next bundle, however the call ended."""
        self._in_flight.discard(sent)
        if task.cancelled():
            # Nobody waits where it was cancelled here; who waits is told, and not left alone.
            for request in sent.requests:
                _settle(request, NotReady("the call of the replica was cancelled; try again"))
        # What was due when the call ended has run by now.
        if not self._send_is_due:
            self._send()

    def _leave_line(self, request: _Waiting) -> None:
        del self._line[request]
        self._waiting_texts -= len(request.tokens)

    def _withdraw(self, request: _Waiting) -> None:
        """Forget a cancelled request, and its bundle when nobody else waits for that."""
        self._cancelled_texts += len(request.tokens)
        if request in self._line:
            self._leave_line(request)
            return
        sent = request.sent
        if sent and sent.task and all(one.outcomes.done() for one in sent.requests):
            sent.task.cancel()


def _settle(request: _Waiting, error: MuxserveError) -> None:
    if not request.outcomes.done():
        request.outcomes.set_exception(error)
