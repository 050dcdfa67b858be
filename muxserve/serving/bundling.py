"""Requests of one ingress in, few calls of replicas out: Ray's cost is paid per bundle.

There is no timer. While a call is free, a request is sent at once; while all calls are under way,
the next requests gather into bundles, in turns of their callers. A request that is cancelled or
late before it is sent is never sent.
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

from muxserve.engine.line import BULK_TEXTS
from muxserve.engine.request import Outcome, RequestOptions, Tokens
from muxserve.engine.room import Holdings
from muxserve.engine.turns import Turns
from muxserve.errors import DeadlineExceeded, MuxserveError, NotReady
from muxserve.serving.bundles import Bundle, BundleAnswer, pack, unpack_answer
from muxserve.serving.config import IngressConfig
from muxserve.serving.demand import HeldBack
from muxserve.serving.errors import Internal

log = logging.getLogger(__name__)


class Replicas(Protocol):
    """Engine processes, as a bundler sees them."""

    async def predict_bundle(self, bundle: Bundle) -> BundleAnswer:
        """Answer a bundle on some replica; raises MuxserveError where none can."""
        ...

    async def ready(self) -> bool:
        """Whether some replica is alive."""
        ...

    async def stats(self) -> list[dict[str, Any]]:
        """Counters of every replica."""
        ...


@dataclass(eq=False, slots=True)
class _Queued:
    """A request that waits for a bundle, or for its bundle's answer."""

    tokens: Sequence[Tokens]
    options: RequestOptions
    outcomes: "asyncio.Future[list[Outcome]]"
    sent: "_Sent | None" = None

    @property
    def caller(self) -> str:
        """Who asks."""
        return self.options.caller


@dataclass(eq=False, slots=True)
class _Sent:
    """A bundle under way; ``little`` where it is one of those that ask for little."""

    requests: list[_Queued]
    little: bool
    task: "asyncio.Task[None] | None" = field(default=None)


class BundlingBackend:
    """Answers requests by calling replicas, several to a call. Belongs to one event loop.

    While one caller floods, callers who ask for little get as many calls again, for bundles of
    their own. So they wait neither for the flood's calls nor for its texts.
    """

    def __init__(self, replicas: Replicas, config: IngressConfig, widest: int = 1) -> None:
        """Call replicas.

        Args:
            replicas: what answers.
            config: how many calls, and of how many texts.
            widest: the widest N there, for what a text costs.
        """
        self._replicas = replicas
        self._max_calls = config.max_calls_in_flight
        self._max_texts = config.max_texts_per_bundle
        self._widest = widest
        self._line: Turns[_Queued] = Turns()
        self._holdings = Holdings(BULK_TEXTS)
        self._waiting_texts = 0
        self._in_flight: set[_Sent] = set()
        # Calls under way, of those who ask for little beside a flood and of everybody else.
        self._calls = {True: 0, False: 0}
        self._send_is_due = False
        self._bundles = 0
        self._bundled_texts = 0
        self._cancelled_texts = 0
        self._name = uuid.uuid4().hex
        self._refused_texts = 0

    def refused(self, texts: int) -> None:
        self._refused_texts += texts

    async def predict(self, tokens: Sequence[Tokens], options: RequestOptions) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        waiting = _Queued(tokens, options, loop.create_future())
        self._line.add(waiting, options.caller, self._cost(waiting), options.weight)
        self._holdings.add(options.caller, len(tokens))
        self._waiting_texts += len(tokens)
        self._send_soon(loop, self._asks_little(options.caller))
        try:
            return await waiting.outcomes
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise
        finally:
            self._holdings.remove(options.caller, len(tokens))

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

    def _asks_little(self, caller: str) -> bool:
        """Whether a caller asks for little beside a flood."""
        floods = self._holdings.floods
        return bool(floods) and caller not in floods

    def _send_soon(self, loop: asyncio.AbstractEventLoop, little: bool) -> None:
        """Send after the callbacks that are due: requests that came together go together."""
        if not self._send_is_due and self._calls[little] < self._max_calls:
            self._send_is_due = True
            loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        loop = asyncio.get_running_loop()
        for little in (True, False):
            while self._calls[little] < self._max_calls and (requests := self._take(little)):
                self._send_one(loop, _Sent(requests, little))

    def _send_one(self, loop: asyncio.AbstractEventLoop, sent: _Sent) -> None:
        for request in sent.requests:
            request.sent = sent
        self._in_flight.add(sent)
        self._calls[sent.little] += 1
        self._bundles += 1
        self._bundled_texts += sum(len(request.tokens) for request in sent.requests)
        # Ray Serve cancels what a request called when the request is cancelled, and knows it
        # by context variables. A bundle belongs to many requests, so it runs in none's context.
        sent.task = loop.create_task(self._call(sent), context=contextvars.Context())
        # Not in the task: one that is cancelled before its first step runs nothing of its own.
        sent.task.add_done_callback(partial(self._ended, sent))

    def _take(self, little: bool) -> list[_Queued]:
        """The requests with the next turns, as many as fit into one bundle.

        Late ones get their error and are left out. So are cancelled ones whose tasks have not run
        yet.

        Args:
            little: take only those of callers who ask for little beside a flood. Without a flood
                there are none.
        """
        now_s = time.monotonic()
        floods = self._holdings.floods
        taken: list[_Queued] = []
        gone: list[_Queued] = []
        texts = 0
        if little and not floods:
            return []
        for request in self._line.order(by_turns=self._holdings.contended):
            if floods and (request.caller in floods) == little:
                continue
            if taken and texts + len(request.tokens) > self._max_texts:
                break
            if request.outcomes.done():
                gone.append(request)
                continue
            deadline_s = request.options.deadline_s
            if deadline_s is not None and deadline_s <= now_s:
                _settle(request, DeadlineExceeded("the deadline passed while the text waited"))
                gone.append(request)
                continue
            taken.append(request)
            texts += len(request.tokens)
        self._line.take(taken, [one.caller for one in taken])
        self._waiting_texts -= texts
        for request in gone:
            self._leave_line(request)
        return taken

    def _cost(self, request: _Queued) -> float:
        """Tokens of encoder rows that a request takes, where its texts fill every slot."""
        tokens = sum(len(one.ids) for one in request.tokens)
        return tokens / min(request.options.max_num_instances or self._widest, self._widest)

    async def _call(self, sent: _Sent) -> None:
        try:
            requests = [(request.tokens, request.options) for request in sent.requests]
            held_back = HeldBack(self._name, self._waiting_texts, self._refused_texts)
            self._refused_texts = 0
            bundle = pack(requests, time.monotonic(), held_back)
            answer = await self._replicas.predict_bundle(bundle)
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
        self._calls[sent.little] -= 1
        if task.cancelled():
            # Nobody waits where ``_withdraw`` cancelled it; otherwise those who wait get an error.
            for request in sent.requests:
                _settle(request, NotReady("the call of the replica was cancelled; try again"))
        # What was due when the call ended has run by now.
        if not self._send_is_due:
            self._send()

    def _leave_line(self, request: _Queued) -> None:
        self._line.remove(request, request.caller)
        self._waiting_texts -= len(request.tokens)

    def _withdraw(self, request: _Queued) -> None:
        """Forget a cancelled request, and cancel its bundle when nobody else waits for it."""
        self._cancelled_texts += len(request.tokens)
        if self._line.holds(request, request.caller):
            self._leave_line(request)
            return
        sent = request.sent
        if sent and sent.task and all(one.outcomes.done() for one in sent.requests):
            sent.task.cancel()


def _settle(request: _Queued, error: MuxserveError) -> None:
    if not request.outcomes.done():
        request.outcomes.set_exception(error)
