"""The first forwards: how long each takes, and whether a lone one is quicker on every core.

In: an executor and an empty table of times. Out: the table, filled. Called by the first forward
thread, before it serves.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from muxserve.engine.forward import Executor
from muxserve.engine.times import ForwardTimes, measure


def measured_beside(executor: Executor) -> int:
    """Forwards that run beside one that is measured.

    Predictions are of a forward among as many as may run at once, since all of them drain a line.
    Forwards that share a device take longer beside each other; those with cores of their own do
    not, and are measured more quietly by themselves.
    """
    return 0 if executor.spreads else executor.in_flight - 1


def good_row(times: ForwardTimes, pad_id: int) -> np.ndarray:
    """Token ids of a short row of padding: at warm-up it runs at every N."""
    return np.full(times.lengths[0], pad_id, dtype=np.int64)


def warm_up(
    executor: Executor,
    times: ForwardTimes,
    widths: Sequence[int],
    pad_id: int,
    *,
    budget_s: float,
    on_progress: Callable[[float], None] | None,
) -> float | None:
    """Fill ``times``, and see whether a lone forward is quicker on every core.

    Args:
        executor: prepared for the calling thread.
        times: an empty table.
        widths: every N.
        pad_id: token id of padding.
        budget_s: about how many seconds to measure.
        on_progress: called with the share of it that is done.

    Returns:
        Seconds of a lone forward on every core over those on its share of them; None if a lone
        forward cannot spread.

    Raises:
        Exception: whatever made a forward fail.
    """

    def run(n: int, length: int, groups: int, alone: bool = False) -> None:
        row = np.full(length, pad_id, dtype=np.int64)
        executor.run(n, [row] * (n * groups), alone=alone)

    beside = measured_beside(executor)
    if beside:
        with ThreadPoolExecutor(beside, initializer=executor.prepare) as others:

            def run_beside(n: int, length: int, groups: int) -> None:
                futures = [others.submit(run, n, length, groups) for _ in range(beside)]
                run(n, length, groups)
                for future in futures:
                    future.result()

            measure(times, widths, run_beside, budget_s=budget_s, on_progress=on_progress)
    else:
        measure(times, widths, run, budget_s=budget_s, on_progress=on_progress)
    if not executor.spreads:
        return None
    n, length = widths[0], times.lengths[0]
    for _ in range(3):  # the first ones start threads
        started = time.perf_counter()
        run(n, length, 1, alone=True)
        seconds = time.perf_counter() - started
    return seconds / times.predict(n, length, 1)
