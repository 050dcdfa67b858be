"""The engine: texts or token ids in, answers out; what a Python program holds.

It tokenizes, puts requests in the line and turns logits into answers; ``workers`` has the threads
that serve the line.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from muxserve.engine.config import EngineConfig, available_cores
from muxserve.engine.forward import Executor, load_to_serve, make_executor
from muxserve.engine.futures import Waker
from muxserve.engine.line import Line
from muxserve.engine.request import Outcome, Prediction, Request, RequestOptions, Tokens
from muxserve.engine.scores import Classification, Tagging, label_scores, word_labels
from muxserve.engine.stats import EngineStats
from muxserve.engine.times import grid
from muxserve.engine.tokens import TextEncoder
from muxserve.engine.widths import allowed_widths
from muxserve.engine.workers import Workers
from muxserve.errors import DeadlineExceeded, InvalidInput, MuxserveError
from muxserve.models.family import Family

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
            executor: what runs the forwards; by default as the config says.
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
        threads = self.config.torch_threads or available_cores()
        executor = executor or make_executor(
            family,
            self.config.runtime,
            threads=threads,
            in_flight=self.config.forwards_in_flight,
        )
        self.in_flight = executor.in_flight
        self._line = Line(self.config.max_waiting_texts, self.widths[-1])
        self._waker: Waker | None = None
        self._workers = Workers(
            self._line,
            executor,
            self.times,
            self.widths,
            target_s=self._target_s,
            max_groups=self.config.max_groups,
            of_tokens=family.spec.of_tokens,
        )
        self._workers.start(family.pad_id, self.config.warm_up_s, on_progress)

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
        loaded = load_to_serve(
            family,
            config.dtype,
            runtime=config.runtime,
            verify_checksums=config.verify_checksums,
        )
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
        options = options or RequestOptions()
        left_s = None if options.deadline_s is None else options.deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                outcomes = await self.predict_async(tokens, options)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was there") from None
        return self._classifications(_predictions(outcomes), tokens, raw_scores)

    async def predict_async(
        self, tokens: Sequence[Tokens], options: RequestOptions
    ) -> list[Outcome]:
        """Submit one request and await its outcomes, as ``predict_each``.

        Raises:
            Overloaded, NotReady, InvalidInput: as ``submit``.
        """
        (answer,) = await self.predict_each([(tokens, options)])
        if isinstance(answer, MuxserveError):
            try:
                raise answer
            finally:
                # Its traceback holds this frame, which would hold it: a cycle.
                del answer
        return answer

    async def predict_each(
        self, requests: Sequence[tuple[Sequence[Tokens], RequestOptions]]
    ) -> list[list[Outcome] | MuxserveError]:
        """Submit requests and await all of their outcomes.

        The event loop is woken once for all of them. Cancelling the awaiting task takes the texts
        out of the line. A deadline keeps texts from being computed; a caller who does not want to
        wait longer cancels.

        Args:
            requests: tokens of each text, and the options; at least one.

        Returns:
            For each request the outcome of every text, or the error with which it was refused.
        """
        loop = asyncio.get_running_loop()
        waker = self._waker
        if waker is None or waker.loop is not loop:
            waker = self._waker = Waker(loop)
        done: asyncio.Future[None] = loop.create_future()
        missing = [None] * len(requests)

        def count_down(_: Request) -> None:
            missing.pop()
            # Two threads may both find it empty; the loop passes over the second call.
            if not missing:
                waker.wake(done)

        submitted: list[Request | MuxserveError] = []
        for tokens, options in requests:
            request = Request(tokens, options, count_down)
            try:
                self.submit(request)
                submitted.append(request)
            except MuxserveError as error:
                # Without its traceback, which would hold this frame: a cycle.
                submitted.append(error.with_traceback(None))
                missing.pop()
        try:
            if missing:
                await done
        except asyncio.CancelledError:
            for one in submitted:
                if isinstance(one, Request):
                    one.cancel()
            raise
        return [one if isinstance(one, MuxserveError) else _outcomes(one) for one in submitted]

    def stats(self) -> EngineStats:
        """A copy of the counters."""
        return self._workers.stats()

    @property
    def alive(self) -> bool:
        """Whether every forward thread runs; once false, requests are refused."""
        return self._workers.alive

    def check_health(self) -> None:
        """Raise where the engine will not recover by itself.

        Raises:
            RuntimeError: a forward thread has ended, or hangs.
        """
        if not self.alive:
            raise RuntimeError("the forward thread has ended")
        most_s = self.config.forward_timeout_s
        if (seconds := self._workers.longest_forward_s()) > most_s:
            raise RuntimeError(
                f"a forward has run for {seconds:.0f} s, over engine.forward_timeout_s {most_s:g}"
            )

    def close(self) -> None:
        """Refuse new requests, serve what waits, and end the forward threads."""
        self._line.close()
        self._workers.join()

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
