"""The ceiling: a plain loop of forwards over length-sorted texts, nothing else running."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from muxserve.engine.forward import TorchExecutor
from muxserve.models.family import Family

#: Groups per forward that are tried, to find the best batch size of each N.
BATCH_GROUPS = (4, 8, 16, 32, 64)
#: Seconds of forwards that each batch size is tried for.
TRIAL_S = 2.0


@dataclass(frozen=True)
class OfflineRate:
    """What the loop reached: texts per second, and at which groups per forward."""

    texts_per_s: float
    groups: int


def offline_rate(
    family: Family,
    n: int,
    rows: Sequence[np.ndarray],
    *,
    threads: int,
    passes: int = 1,
    on_progress: Callable[[str], None] = lambda _: None,
) -> OfflineRate:
    """Texts per second at N=n over ``rows``, sorted by length, at the best batch size.

    Args:
        family: a loaded family.
        n: N.
        rows: token ids of each text.
        threads: CPU threads.
        passes: how often all rows are run for the figure; the median pass counts.
        on_progress: told what is being tried.
    """
    executor = TorchExecutor(
        family.models, pad_id=family.pad_id, padded_length=family.padded_length, threads=threads
    )
    executor.prepare()
    ordered = sorted(rows, key=len)
    trials: dict[int, float] = {}
    for groups in BATCH_GROUPS:
        if trials and groups * n > len(ordered):
            break
        on_progress(f"N={n}, {groups} groups a forward")
        # A spread of lengths, so that every batch size is tried on the same mix.
        batches = _batches(ordered, n, groups)[:: max(1, len(ordered) // (groups * n * 6))]
        executor.run(n, batches[0])
        started, texts = time.perf_counter(), 0
        for batch in batches:
            executor.run(n, batch)
            texts += len(batch)
            if time.perf_counter() - started > TRIAL_S and texts >= 2 * groups * n:
                break
        trials[groups] = texts / (time.perf_counter() - started)
    best = max(trials, key=lambda groups: trials[groups])
    rates = []
    for _ in range(passes):
        on_progress(f"N={n}, whole pass at {best} groups")
        started = time.perf_counter()
        for batch in _batches(ordered, n, best):
            executor.run(n, batch)
        rates.append(len(ordered) / (time.perf_counter() - started))
    return OfflineRate(sorted(rates)[len(rates) // 2], best)


def _batches(ordered: Sequence[np.ndarray], n: int, groups: int) -> list[list[np.ndarray]]:
    """Consecutive batches; the last one is filled up to whole groups by repetition."""
    size = n * groups
    batches = [list(ordered[i : i + size]) for i in range(0, len(ordered), size)]
    batches[-1] += [batches[-1][-1]] * (-len(batches[-1]) % n)
    return batches
