"""The engine: line -> policy -> slots -> forward -> answers, in one thread of its own.

There is no batching timer: while one forward runs, requests gather, and when it ends the next batch
is planned from what waits. Idle, a lone request runs at once at N=1; loaded, batches fill by
themselves.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from muxserve.engine.config import EngineConfig, available_cores
from muxserve.engine.forward import DTYPES, Executor, TorchExecutor
from muxserve.engine.line import Entry, Line
from muxserve.engine.policy import choose
from muxserve.engine.request import Outcome, Prediction, Request, RequestOptions, Tokens
from muxserve.engine.scores import Classification, Tagging, label_scores, word_labels
from muxserve.engine.slots import Plan, plan, unplan
from muxserve.engine.stats import EngineStats
from muxserve.engine.times import grid, measure
from muxserve.engine.tokens import TextEncoder
from muxserve.engine.widths import allowed_widths
from muxserve.errors import (
    DeadlineExceeded,
    ForwardFailed,
    InvalidInput,
    MuxserveError,
    NotReady,
)
from muxserve.models.family import Family

log = logging.getLogger(__name__)

#: Texts of one call to ``classify`` that are submitted together, and such bundles in flight.
_BUNDLE_TEXTS, _BUNDLES_IN_FLIGHT = 256, 4


class Engine:
    """Serves one family in this process. Use it as a context manager, or call ``close``."""

    def __init__(
        self,
        family: Family,
        config: EngineConfig | None = None,
        *,
        executor: Executor | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Measure forward times, then start serving; returns when ready.

        Args:
            family: a loaded family.
            config: settings; defaults serve.
            executor: what runs the forwards; torch in this process by default.
            on_progress: called with the share of the warm-up done.

        Raises:
            FamilyError: where the config wants an N that the family does not have.
        """
        self.config = config or EngineConfig()
        self.family = family
        self.widths = allowed_widths(family.spec, family.widths, self.config)
        self.encoder = TextEncoder.of_family(family)
        self.times = grid(family.spec.max_length, self.config.max_groups, family.padded_length)
        self._target_s = self.config.latency_target_ms / 1000
        self._executor = executor or TorchExecutor(
            family.models,
            pad_id=family.pad_id,
            padded_length=family.padded_length,
            threads=self.config.torch_threads or available_cores(),
        )
        self._line = Line(self.config.max_waiting_texts)
        self._stats = EngineStats()
        self._running: list[Entry] = []
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(on_progress,), name="muxserve-forward", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    @classmethod
    def from_family(
        cls,
        family: str | Path,
        config: EngineConfig | None = None,
        *,
        on_progress: Callable[[float], None] | None = None,
    ) -> "Engine":
        """Load a family by shipped name or folder, in the settings' dtype, and start.

        Raises:
            FamilyError: as ``Family.load``.
        """
        config = config or EngineConfig()
        loaded = Family.load(family, dtype=DTYPES[config.dtype])
        return cls(loaded, config, on_progress=on_progress)

    def submit(self, request: Request) -> None:
        """Put a request in the line and return at once; ``request.on_done`` tells the end.

        Raises:
            Overloaded: the line is full.
            NotReady: the engine is closed.
            InvalidInput: the request allows only an N below the narrowest one.
        """
        cap = request.options.max_num_instances
        if cap is not None and cap < self.widths[0]:
            raise InvalidInput(
                f"the narrowest N here is {self.widths[0]}, got {cap}", field="max_num_instances"
            )
        if not request.tokens:
            raise InvalidInput("a request needs at least one text", field="inputs")
        self._line.join(request, self._target_s)

    def classify(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = True,
        raw_scores: bool = False,
        options: RequestOptions | None = None,
    ) -> list[Classification]:
        """Classify texts and wait for all of them, in order.

        Raises:
            MuxserveError: for the first text that has no answer, and for a family that labels
                words.
        """
        self._check_task(of_tokens=False)
        tokens = self.encoder.encode(texts, truncate=truncate)
        predictions = self._predict(tokens, options or RequestOptions())
        return self._classifications(predictions, tokens, raw_scores)

    def tag(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = True,
        raw_scores: bool = False,
        options: RequestOptions | None = None,
    ) -> list[Tagging]:
        """Label every word of texts and wait for all of them, in order.

        Raises:
            MuxserveError: for the first text that has no answer, and for a family that labels
                texts.
        """
        self._check_task(of_tokens=True)
        tokens = self.encoder.encode(texts, truncate=truncate)
        predictions = self._predict(tokens, options or RequestOptions())
        return [
            Tagging(
                word_labels(prediction.logits, one.words, self.family.spec, raw=raw_scores),
                prediction.num_instances,
                one.truncated,
            )
            for prediction, one in zip(predictions, tokens, strict=True)
        ]

    def _predict(self, tokens: Sequence[Tokens], options: RequestOptions) -> list[Prediction]:
        """Predictions in order; raises the error of the first text that has none."""
        outcomes: list[Outcome] = []
        in_flight: deque[Request] = deque()
        for start in range(0, len(tokens), _BUNDLE_TEXTS):
            if len(in_flight) == _BUNDLES_IN_FLIGHT:
                outcomes += _outcomes(in_flight.popleft())
            request = Request(tokens[start : start + _BUNDLE_TEXTS], options)
            self.submit(request)
            in_flight.append(request)
        for request in in_flight:
            outcomes += _outcomes(request)
        return _predictions(outcomes)

    async def classify_async(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = True,
        raw_scores: bool = False,
        options: RequestOptions | None = None,
    ) -> list[Classification]:
        """``classify`` for an event loop: other tasks go on meanwhile."""
        self._check_task(of_tokens=False)
        tokens = self.encoder.encode(texts, truncate=truncate)
        outcomes = await answer(self, tokens, options or RequestOptions())
        return self._classifications(_predictions(outcomes), tokens, raw_scores)

    def stats(self) -> EngineStats:
        """A copy of the counters."""
        return replace(
            self._stats,
            waiting=self._line.texts,
            shed=self._line.shed,
            expired=self._line.expired,
            cancelled=self._line.cancelled,
            texts_by_num_instances=dict(self._stats.texts_by_num_instances),
        )

    @property
    def alive(self) -> bool:
        """Whether the forward thread runs; once false, requests are refused."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Refuse new requests, serve what waits, and end the forward thread."""
        self._line.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_task(self, *, of_tokens: bool) -> None:
        spec = self.family.spec
        if spec.of_tokens != of_tokens:
            what, method = ("words", "tag") if spec.of_tokens else ("texts", "classify")
            raise InvalidInput(f"the family {spec.name} labels {what}; call {method}()")

    def _classifications(
        self, predictions: Sequence[Prediction], tokens: Sequence[Tokens], raw_scores: bool
    ) -> list[Classification]:
        return [
            Classification(
                label_scores(prediction.logits, self.family.spec, raw=raw_scores),
                prediction.num_instances,
                one.truncated,
            )
            for prediction, one in zip(predictions, tokens, strict=True)
        ]

    def _serve(self, on_progress: Callable[[float], None] | None) -> None:
        """The forward thread: warm up, then plan and run until the line is closed and empty."""
        try:
            self._executor.prepare()
            measure(
                self.times,
                self.widths,
                self._warm,
                budget_s=self.config.warm_up_s,
                on_progress=on_progress,
            )
        except BaseException as error:
            self._failure = error
            self._line.close()
            return
        finally:
            self._ready.set()
        try:
            self._serve_line()
        except BaseException:
            # Nobody may wait for a thread that is gone; the health check tells who looks.
            log.exception("the forward thread ended by an error")
            gone = NotReady("the engine stopped by an internal error")
            self._line.abort(gone)
            for entry in self._running:
                entry.settle_rest(gone)

    def _serve_line(self) -> None:
        while waiting := self._line.waiting():
            choice = choose(
                (entry.length for entry in waiting), self.times, self.widths, self._target_s
            )
            batch = plan(
                waiting, choice.num_instances, self.times, self.widths, self.config.max_groups
            )
            self._line.take(batch.texts)
            self._running = batch.texts
            self._run(batch)

    def _warm(self, n: int, length: int, groups: int) -> None:
        """One forward of ``groups`` full groups of ``length`` tokens of padding."""
        row = np.full(length, self.family.pad_id, dtype=np.int64)
        self._executor.run(n, [row] * (n * groups))

    def _run(self, batch: Plan[Entry]) -> None:
        started = time.perf_counter()
        try:
            logits = self._executor.run(
                batch.num_instances, [batch.texts[i].ids for i in batch.slots]
            )
            if not np.isfinite(logits).all():
                raise FloatingPointError("the forward gave a score that is not a finite number")
        except Exception as error:
            self._retry_in_halves(batch, error)
            return
        seconds = time.perf_counter() - started
        self.times.observe(batch.num_instances, batch.length, batch.groups, seconds)
        self._stats.count(
            batch.num_instances,
            slots=len(batch.slots),
            distinct=len(batch.texts),
            answered=sum(len(entry.waiters) for entry in batch.texts),
            seconds=seconds,
        )
        answers = unplan(logits, batch.slots, len(batch.texts))
        for entry, row in zip(batch.texts, answers, strict=True):
            own = row[: entry.length] if self.family.spec.of_tokens else row
            entry.settle(Prediction(own, batch.num_instances))

    def _retry_in_halves(self, batch: Plan[Entry], error: Exception) -> None:
        """Run each half of a failed batch by itself, so that only the culprit fails."""
        if len(batch.texts) == 1:
            log.error("the forward failed for one text", exc_info=error)
            self._stats.failed += len(batch.texts[0].waiters)
            batch.texts[0].settle(ForwardFailed(f"the forward failed: {error}"))
            return
        middle = len(batch.texts) // 2
        for half in (batch.texts[:middle], batch.texts[middle:]):
            rest = half
            while rest:
                retry = plan(
                    rest, batch.num_instances, self.times, self.widths, self.config.max_groups
                )
                taken = {id(entry) for entry in retry.texts}
                rest = [entry for entry in rest if id(entry) not in taken]
                self._run(retry)


async def answer(
    engine: Engine, tokens: Sequence[Tokens], options: RequestOptions
) -> list[Outcome]:
    """Submit one request and await its outcomes on the running loop.

    Cancelling the awaiting task, or the deadline, takes the texts out of the line.

    Raises:
        Overloaded, NotReady, InvalidInput: as ``Engine.submit``.
        DeadlineExceeded: the deadline passed first.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake(_: Request) -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, done)

    request = Request(tokens, options, wake)
    engine.submit(request)
    try:
        if options.deadline_s is None:
            await done
        else:
            async with asyncio.timeout(max(0.0, options.deadline_s - time.monotonic())):
                await done
    except TimeoutError:
        request.cancel()
        raise DeadlineExceeded("the deadline passed before the answer was there") from None
    except asyncio.CancelledError:
        request.cancel()
        raise
    return _outcomes(request)


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _predictions(outcomes: Sequence[Outcome]) -> list[Prediction]:
    """Predictions; raises the error of the first text that has none."""
    predictions = []
    for outcome in outcomes:
        if isinstance(outcome, MuxserveError):
            raise outcome
        predictions.append(outcome)
    return predictions


def _outcomes(request: Request) -> list[Outcome]:
    """Wait for a request's outcomes."""
    request.wait()
    return [outcome for outcome in request.outcomes if outcome is not None]
