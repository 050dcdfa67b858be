"""The ceiling of serving: plain loops of forwards over texts sorted by length."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from muxserve.engine.forward import TorchExecutor
from muxserve.models.family import Family

#: Groups per forward that are tried, to find the best batch size of each N.
BATCH_GROUPS = (4, 8, 16, 32, 64)
#: Seconds of forwards that each batch size is tried for.
TRIAL_S = 2.0

Batch = list[np.ndarray]


@dataclass(frozen=True)
class OfflineRate:
    """What the loops reached.

    Attributes:
        texts_per_s: texts per second.
        groups: groups per forward.
        loops: loops side by side that the cores were shared out to.
    """

    texts_per_s: float
    groups: int
    loops: int


def offline_rate(
    family: Family,
    n: int,
    rows: Sequence[np.ndarray],
    *,
    threads: int,
    passes: int = 1,
    on_progress: Callable[[str], None] = lambda _: None,
) -> OfflineRate:
    """Texts per second at N=n over ``rows``, sorted by length, in the best way tried.

    Tried are one loop whose forwards use every core, and a loop per core, at several batch sizes.

    Args:
        family: a loaded family.
        n: N.
        rows: token ids of each text.
        threads: CPU threads in all.
        passes: how often all rows are run for the figure; the median pass counts.
        on_progress: told what is being tried.
    """
    ordered = sorted(rows, key=len)
    trials: dict[tuple[int, int], float] = {}
    for loops in sorted({1, threads}):
        for groups in BATCH_GROUPS:
            if trials and groups * n > len(ordered):
                break
            on_progress(f"N={n}, {groups} groups a forward, {loops} loops")
            # A spread of lengths, so that every batch size is tried on the same mix.
            batches = _batches(ordered, n, groups)[:: max(1, len(ordered) // (groups * n * 6))]
            with _loops(family, threads, loops) as run:
                run([(n, batch) for batch in batches[:loops]])
                started, texts = time.perf_counter(), 0
                for index in range(0, len(batches), loops):
                    some = batches[index : index + loops]
                    run([(n, batch) for batch in some])
                    texts += sum(map(len, some))
                    if time.perf_counter() - started > TRIAL_S and texts >= 2 * groups * n:
                        break
                trials[loops, groups] = texts / (time.perf_counter() - started)
    loops, groups = max(trials, key=lambda tried: trials[tried])
    rates = []
    with _loops(family, threads, loops) as run:
        for _ in range(passes):
            on_progress(f"N={n}, whole pass at {groups} groups, {loops} loops")
            started = time.perf_counter()
            run([(n, batch) for batch in _batches(ordered, n, groups)])
            rates.append(len(ordered) / (time.perf_counter() - started))
    return OfflineRate(sorted(rates)[len(rates) // 2], groups, loops)


@contextmanager
def _loops(
    family: Family, threads: int, loops: int
) -> Iterator[Callable[[Iterable[tuple[int, Batch]]], None]]:
    """Threads that take batches from one list, each with its share of the cores."""
    executor = TorchExecutor(
        family.models,
        pad_id=family.pad_id,
        padded_length=family.padded_length,
        threads=threads,
        in_flight=loops,
    )
    with ThreadPoolExecutor(loops, initializer=executor.prepare) as pool:

        def run(work: Iterable[tuple[int, Batch]]) -> None:
            for done in [pool.submit(executor.run, n, batch) for n, batch in work]:
                done.result()

        yield run


def _batches(ordered: Sequence[np.ndarray], n: int, groups: int) -> list[Batch]:
    """Consecutive batches; the last one is filled up to whole groups by repetition."""
    size = n * groups
    batches = [list(ordered[i : i + size]) for i in range(0, len(ordered), size)]
    batches[-1] += [batches[-1][-1]] * (-len(batches[-1]) % n)
    return batches
