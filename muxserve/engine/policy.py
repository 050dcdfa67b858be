"""Which N: the smallest whose predicted drain time of the line meets the latency target.

In: the lengths of the texts that wait, the forward times, the target. Out: N and the batch's
groups. A pure function: no clock, no model, no state.
"""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from muxserve.engine.times import ForwardTimes

#: Where no N meets the target, a wider N must drain the line this much faster to be worth it.
WORTH_WIDENING = 0.95


@dataclass(frozen=True, slots=True)
class Choice:
    """What the policy decided.

    Attributes:
        num_instances: N of the next batch.
        drain_s: predicted seconds to serve everything that waits, at this N.
    """

    num_instances: int
    drain_s: float


def choose(
    lengths: Iterable[int], times: ForwardTimes, widths: Sequence[int], target_s: float
) -> Choice:
    """The smallest N that drains the line within the target.

    Where none does, the smallest N that drains it nearly as fast as the fastest. Only an N that
    needs fewer groups than every narrower one is considered: the same groups at a wider N cost as
    much, whatever a noisy measurement says. So a lone text is always served at the narrowest N.

    Args:
        lengths: tokens of each waiting text.
        times: predictions.
        widths: every N that may be chosen, ascending.
        target_s: the latency target.
    """
    ordered = sorted(lengths)
    ends = [bisect.bisect_right(ordered, bucket) for bucket in times.lengths]
    starts = [0, *ends[:-1]]
    buckets = {
        bucket: end - start
        for bucket, start, end in zip(times.lengths, starts, ends, strict=True)
        if end > start
    }
    choices: list[Choice] = []
    fewest = math.inf
    for n in widths:
        groups = sum(-(-texts // n) for texts in buckets.values())
        if choices and groups >= fewest:
            continue
        fewest = groups
        choice = Choice(n, drain_s(buckets, times, n))
        if choice.drain_s <= target_s:
            return choice
        choices.append(choice)
    best = min(choice.drain_s for choice in choices)
    return next(choice for choice in choices if choice.drain_s * WORTH_WIDENING <= best)


def drain_s(buckets: Mapping[int, int], times: ForwardTimes, n: int) -> float:
    """Predicted seconds to serve ``buckets`` (length bucket -> texts) at N=n, in good batches."""
    total = 0.0
    for length, texts in buckets.items():
        groups = -(-texts // n)
        size = times.best_groups(n, length)
        full, rest = divmod(groups, size)
        total += full * times.predict(n, length, size)
        if rest:
            total += times.predict(n, length, rest)
    return total
