"""The texts of one execution in, logits or a failure for each out.

Triton's queue is the line: requests gather there during one execution, and the next execution
brings them. The engine's policy chooses N and the engine's planner fills the slots, batch after
batch until no text waits. Equal texts are computed once, and a failed forward is run again in
halves, so that only the culprit fails.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from muxserve.engine.policy import choose
from muxserve.engine.slots import Plan, plan, unplan
from muxserve.engine.times import ForwardTimes, grid, measure
from muxserve.triton.runtime.facts import Facts, Tuning
from muxserve.triton.runtime.rows import Options

#: A forward at N: [G * N, L] int64 padded token ids to float32 logits, [G * N, labels] for texts or
#: [G * N, L, labels] for tokens.
Forward = Callable[[int, np.ndarray], np.ndarray]


@dataclass(eq=False)
class Text:
    """One text of a request, and its result.

    Attributes:
        ids: [length] token ids.
        options: the options of its request.
        logits: [labels] float32 of the text, or [tokens, labels] of its tokens.
        num_instances: the N that served it.
        failure: why it has no logits.
    """

    ids: np.ndarray
    options: Options
    logits: np.ndarray | None = None
    num_instances: int = 0
    failure: str | None = None


@dataclass(eq=False)
class DistinctText:
    """A distinct text, waiting for all texts equal to it; a ``Waiting`` for the planner."""

    ids: np.ndarray
    isolation_key: str | None
    max_num_instances: int | None
    texts: list[Text] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.ids)


class SlotFiller:
    """Answers the texts of one execution at a time. Must be used from one thread only."""

    def __init__(self, facts: Facts, tuning: Tuning, forward: Forward) -> None:
        self._facts = facts
        self._tuning = tuning
        self._forward = forward
        self.times: ForwardTimes = grid(facts.max_length, tuning.max_groups, facts.padded_length)

    def warm_up(self) -> None:
        """Measure the forward times of every N."""
        measure(self.times, self._facts.widths, self._warm, budget_s=self._tuning.warm_up_s)

    def answer(self, texts: Sequence[Text]) -> Iterator[list[Text]]:
        """Answer every text; yields, after each forward, the texts that it answered."""
        waiting = _line(texts)
        widths, target_s = self._facts.widths, self._tuning.latency_target_ms / 1000
        while waiting:
            choice = choose(waiting, self.times, widths, target_s)
            batch = self._plan(waiting, choice.num_instances)
            waiting = _without(waiting, batch.texts)
            self._run(batch)
            yield [text for entry in batch.texts for text in entry.texts]

    def _plan(self, waiting: Sequence[DistinctText], n: int) -> Plan[DistinctText]:
        return plan(waiting, n, self.times, self._facts.widths, self._tuning.max_groups)

    def _warm(self, n: int, length: int, groups: int) -> None:
        self._forward(n, np.full((n * groups, length), self._facts.pad_id, dtype=np.int64))

    def _run(self, batch: Plan[DistinctText]) -> None:
        n = batch.num_instances
        length = self._facts.padded_length or batch.length
        ids = np.full((len(batch.slots), length), self._facts.pad_id, dtype=np.int64)
        for slot, index in enumerate(batch.slots):
            entry = batch.texts[index]
            ids[slot, : entry.length] = entry.ids
        started = time.perf_counter()
        try:
            logits = self._forward(n, ids)
            if not np.isfinite(logits).all():
                raise FloatingPointError("the forward gave a score that is not a finite number")
        except Exception as error:
            self._retry_in_halves(batch, error)
            return
        self.times.observe(n, batch.length, batch.groups, time.perf_counter() - started)
        rows = unplan(logits, batch.slots, len(batch.texts))
        for entry, row in zip(batch.texts, rows, strict=True):
            own = row[: entry.length] if self._facts.of_tokens else row
            for text in entry.texts:
                text.logits, text.num_instances = own, n

    def _retry_in_halves(self, batch: Plan[DistinctText], error: Exception) -> None:
        if len(batch.texts) == 1:
            for text in batch.texts[0].texts:
                text.failure = f"the forward failed for this text: {error}"
            return
        middle = len(batch.texts) // 2
        for half in (batch.texts[:middle], batch.texts[middle:]):
            rest = half
            while rest:
                retry = self._plan(rest, batch.num_instances)
                rest = _without(rest, retry.texts)
                self._run(retry)


def _line(texts: Sequence[Text]) -> list[DistinctText]:
    """The distinct texts in order of arrival."""
    entries: dict[tuple[bytes, str | None], DistinctText] = {}
    for text in texts:
        key = text.ids.tobytes(), text.options.isolation_key
        cap = text.options.max_num_instances
        entry = entries.get(key)
        if entry is None:
            entry = entries[key] = DistinctText(text.ids, text.options.isolation_key, cap)
        elif cap is not None:
            before = entry.max_num_instances
            entry.max_num_instances = cap if before is None else min(before, cap)
        entry.texts.append(text)
    return list(entries.values())


def _without(waiting: Sequence[DistinctText], taken: Sequence[DistinctText]) -> list[DistinctText]:
    gone = {id(entry) for entry in taken}
    return [entry for entry in waiting if id(entry) not in gone]


def activate(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """The scores of logits [..., labels], as ``muxserve.engine.scores`` computes them."""
    if problem_type == "single_label_classification":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if problem_type == "multi_label_classification":
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))
    return logits
