"""The forward threads: wait for texts, decide, plan, run, settle, until the line is closed.

One thread at a time decides and plans; as many forwards run at once as the executor says. There is
no batching timer: texts gather while forwards run. ``policy`` decides and ``slots`` picks the
texts; only this module owns the threads and the counters.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muxserve.engine.batching import next_batch
from muxserve.engine.forward import Executor
from muxserve.engine.line import Line, WaitingText
from muxserve.engine.memory import Trimmer
from muxserve.engine.policy import widest_drain_s, work_s
from muxserve.engine.request import Prediction
from muxserve.engine.slots import Plan, plan, sight, unplan
from muxserve.engine.stats import EngineStats
from muxserve.engine.times import ForwardTimes, SpreadGain
from muxserve.engine.warmup import good_row, measured_beside, warm_up
from muxserve.errors import ForwardFailed, MuxserveError, NotReady

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """A planned batch.

    Attributes:
        batch: what runs.
        alone: no other forward runs beside it.
        as_measured: it runs beside as many others as at warm-up, so its time may correct those.
    """

    batch: Plan[WaitingText]
    alone: bool
    as_measured: bool


class Workers:
    """Serves a line with an executor."""

    def __init__(
        self,
        line: Line,
        executor: Executor,
        times: ForwardTimes,
        widths: Sequence[int],
        *,
        target_s: float,
        max_groups: int,
        of_tokens: bool,
    ) -> None:
        """Prepare the threads, which ``start`` starts.

        Args:
            line: where texts wait.
            executor: what runs forwards.
            times: an empty table, filled at warm-up.
            widths: every N that the load may choose.
            target_s: the latency target.
            max_groups: most groups of a forward.
            of_tokens: whether logits are of each token of a text.
        """
        self._line = line
        self._executor = executor
        self._times = times
        self._widths = list(widths)
        self._target_s = target_s
        self._max_groups = max_groups
        self._sight = sight(self._widths, max_groups)
        self._of_tokens = of_tokens
        self._gain = SpreadGain()
        self._beside = measured_beside(executor)
        self._stats = EngineStats()
        self._planning = threading.Lock()
        # Guards the counters and the times too.
        self._state = threading.Condition()
        # By thread: what counts as running, until its last forward has ended; when the forward
        # began that runs now, on the monotonic clock; and the texts that it took out of the line,
        # until all of them are settled.
        self._running: dict[int, Step] = {}
        self._began_s: dict[int, float] = {}
        self._taken: dict[int, Sequence[WaitingText]] = {}
        self._ended = False
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._good_row = np.zeros(0, dtype=np.int64)
        self._threads: list[threading.Thread] = []

    def start(
        self, pad_id: int, budget_s: float, on_progress: Callable[[float], None] | None
    ) -> None:
        """Measure forward times for about ``budget_s`` seconds, then serve; returns when ready.

        Raises:
            Exception: whatever made the first forwards fail.
        """
        self._good_row = good_row(self._times, pad_id)
        for index in range(self._executor.in_flight):
            thread = threading.Thread(
                target=self._thread,
                args=(index, pad_id, budget_s, on_progress),
                name=f"muxserve-forward-{index}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def alive(self) -> bool:
        """Whether every forward thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    def longest_forward_s(self) -> float:
        """Seconds that the oldest running forward has taken so far; 0 without one."""
        return time.monotonic() - min(tuple(self._began_s.values()), default=time.monotonic())

    def join(self) -> None:
        """Wait for the threads, which end once the line is closed and empty."""
        for thread in self._threads:
            thread.join()

    def stats(self) -> EngineStats:
        """A copy of the counters."""
        with self._state:
            running = [text for step in self._running.values() for text in step.batch.texts]
            stats = replace(
                self._stats,
                waiting=self._line.texts,
                joined=self._line.joined,
                shed=self._line.shed,
                expired=self._line.expired,
                cancelled=self._line.cancelled,
                texts_by_num_instances=dict(self._stats.texts_by_num_instances),
            )
        # Outside the lock: the forward threads must not wait for a look at a long line.
        texts = [*self._line.snapshot(), *running]
        drain_s = widest_drain_s(texts, self._times, self._widths)
        stats.drain_s = drain_s / self._executor.in_flight
        return stats

    def _thread(
        self,
        index: int,
        pad_id: int,
        budget_s: float,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        """One forward thread: the first one warms up, then all serve until the line has ended."""
        try:
            self._executor.prepare()
            if index == 0:
                spread = warm_up(
                    self._executor,
                    self._times,
                    self._widths,
                    pad_id,
                    budget_s=budget_s,
                    on_progress=on_progress,
                )
                if spread is not None:
                    self._gain.start(spread)
        except BaseException as error:
            self._failure = error
            self._line.close()
        finally:
            if index == 0:
                self._ready.set()
        self._ready.wait()
        try:
            if self._failure is None:
                self._serve(index)
        except BaseException as error:
            # Nobody may wait for a thread that is gone; the health check reports it.
            log.exception("a forward thread ended by an error")
            internal = NotReady("the engine stopped by an internal error")
            self._abort(error if isinstance(error, NotReady) else internal)
        finally:
            if index == 0:
                with self._state:
                    self._ended = True
                    self._state.notify_all()

    def _serve(self, index: int) -> None:
        trimmer = Trimmer()
        while True:
            if index:
                # Only the first thread runs forwards that may spread over all cores: every thread
                # that does keeps a pool of threads of its own.
                with self._state:
                    self._state.wait_for(lambda: self._running or self._ended)
            with self._planning:
                step = self._next(first=index == 0)
            if step is not None:
                self._run(step.batch, alone=step.alone, observe=step.as_measured)
                self._taken.pop(threading.get_ident())
                with self._state:
                    self._running.pop(threading.get_ident(), None)
                self._line.wake()
                if index == 0:
                    trimmer.step(time.monotonic())
            elif index == 0 or self._ended:
                return

    def _next(self, *, first: bool) -> Step | None:
        """Wait until there is something worth running, and take it.

        Returns None once the line is closed and empty, and for threads other than the first also
        while nothing runs.
        """
        while True:
            wakes = self._line.wakes
            with self._state:
                running = list(self._running.values())
            if not (first or running):
                return None
            waiting = self._line.waiting(self._sight)
            started_s = time.perf_counter()
            if not waiting and not self._line.open:
                return None
            if not waiting or any(step.alone for step in running):
                self._line.gather(1 if not waiting else float("inf"), wakes)
                continue
            batch = next_batch(
                waiting,
                [text for step in running for text in step.batch.texts],
                self._line.floods,
                self._times,
                self._widths,
                self._target_s,
                in_flight=self._executor.in_flight,
                max_groups=self._max_groups,
                behind=max(0, self._line.distinct - len(waiting)),
                last=not self._line.open,
            )
            if isinstance(batch, int):
                self._line.gather(batch, wakes)
                continue
            self._line.take(batch.texts, batch.costs() if self._line.shared else None)
            self._taken[threading.get_ident()] = batch.texts
            alone = (
                self._executor.spreads
                and not running
                and len(batch.texts) == len(waiting)
                and self._gain.pays()
            )
            step = Step(batch, alone, as_measured=len(running) >= self._beside)
            planned_s = time.perf_counter()
            with self._state:
                self._running[threading.get_ident()] = step
                self._state.notify_all()
                self._stats.plan_s += planned_s - started_s
                self._stats.line_s += sum(planned_s - text.joined_s for text in batch.texts)
            return step

    def _abort(self, outcome: MuxserveError) -> None:
        """Close the line, and tell everyone who waits for it or for what this thread took."""
        self._line.abort(outcome)
        with self._state:
            self._running.pop(threading.get_ident(), None)
        self._line.wake()
        for text in self._taken.pop(threading.get_ident(), ()):
            text.settle_rest(outcome)

    def _run(
        self,
        batch: Plan[WaitingText],
        *,
        alone: bool = False,
        observe: bool = False,
        last: bool = True,
    ) -> None:
        """Run a batch and settle its texts; in halves where the forward fails.

        Args:
            batch: what to run.
            alone: no other forward runs meanwhile.
            observe: whether its time may correct what is predicted.
            last: this thread runs nothing more of what it took.
        """
        started = time.perf_counter()
        try:
            rows = [batch.texts[i].ids for i in batch.slots]
            logits = self._forward(batch.num_instances, rows, alone=alone)
        except Exception as error:
            self._retry_in_halves(batch, error)
            return
        seconds = time.perf_counter() - started
        answers = unplan(logits, batch.slots, len(batch.texts))
        with self._state:
            if last:
                # Before anyone is answered: a caller that asks again at once finds this one free.
                self._running.pop(threading.get_ident(), None)
            if alone:
                self._gain.observe(
                    seconds / self._times.predict(batch.num_instances, batch.length, batch.groups)
                )
            elif observe:
                self._times.observe(batch.num_instances, batch.length, batch.groups, seconds)
            self._stats.count(
                batch.num_instances,
                slots=len(batch.slots),
                distinct=len(batch.texts),
                answered=sum(len(text.waiters) for text in batch.texts),
                seconds=seconds,
                work_s=work_s(batch.texts, self._times, self._widths) / self._executor.in_flight,
            )
        for text, row in zip(batch.texts, answers, strict=True):
            own = row[: text.length] if self._of_tokens else row
            text.settle(Prediction(own, batch.num_instances))

    def _forward(self, n: int, rows: Sequence[np.ndarray], *, alone: bool = False) -> np.ndarray:
        self._began_s[threading.get_ident()] = time.monotonic()
        try:
            logits = self._executor.run(n, rows, alone=alone)
        finally:
            del self._began_s[threading.get_ident()]
        if not np.isfinite(logits).all():
            raise FloatingPointError("the forward gave a score that is not a finite number")
        return logits

    def _retry_in_halves(self, batch: Plan[WaitingText], error: Exception) -> None:
        """Run each half of a failed batch by itself, so that only the culprit fails.

        Raises:
            NotReady: forwards fail whatever the text is.
        """
        if len(batch.texts) == 1:
            self._check_forwards(batch.num_instances)
            log.error("the forward failed for one text", exc_info=error)
            with self._state:
                self._stats.failed += len(batch.texts[0].waiters)
            batch.texts[0].settle(ForwardFailed(f"the forward failed: {error}"))
            return
        middle = len(batch.texts) // 2
        for half in (batch.texts[:middle], batch.texts[middle:]):
            rest = half
            while rest:
                retry = plan(rest, batch.num_instances, self._times, self._widths, self._max_groups)
                taken = {id(text) for text in retry.texts}
                rest = [text for text in rest if id(text) not in taken]
                self._run(retry, last=False)

    def _check_forwards(self, n: int) -> None:
        """Run a row that worked at warm-up, before a text gets the blame.

        After some errors, such as most of a GPU's, every later call of the process fails. Then the
        engine has to end, so that the health check has the replica replaced: failing fast, it would
        draw requests to itself.

        Raises:
            NotReady: if that row fails too.
        """
        try:
            self._forward(n, [self._good_row] * n)
        except Exception as error:
            raise NotReady(f"every forward fails, the engine stopped: {error}") from error
