"""Which N: the smallest whose predicted drain time of the line meets the latency target.

In: the lengths of the texts that wait and of those in forwards that run, the forward times, the
target. Out: N, the most groups of the batch, and how many texts make it worth starting. Pure
functions: no clock, no model, no state.
"""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from muxserve.engine.slots import Waiting, allowed_width
from muxserve.engine.times import ForwardTimes

#: Where no N meets the target, a wider N must drain the line this much faster to be worth it.
WORTH_WIDENING = 0.95

#: The share of the latency target within which the line is to be drained. The rest is for what a
#: text waits before the line is looked at: until a forward that runs already has ended.
DRAIN_SHARE = 0.5


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
    lengths: Iterable[int],
    times: ForwardTimes,
    widths: Sequence[int],
    target_s: float,
    *,
    behind: int = 0,
) -> Choice:
    """The smallest N that drains the line within the target.

    Where none does, the smallest N that drains it nearly as fast as the fastest. Only an N that
    needs fewer groups than every narrower one is considered: the same groups at a wider N cost as
    much, whatever a noisy measurement says. So a lone text is always served at the narrowest N.

    Args:
        lengths: tokens of each waiting text that was looked at; not empty.
        times: predictions.
        widths: every N that may be chosen, ascending.
        target_s: the latency target.
        behind: more texts that wait behind those; they are taken to be of the same lengths.
    """
    ordered = sorted(lengths)
    share = (len(ordered) + behind) / len(ordered)
    ends = [bisect.bisect_right(ordered, bucket) for bucket in times.lengths]
    starts = [0, *ends[:-1]]
    buckets = {
        bucket: math.ceil((end - start) * share)
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


@dataclass(frozen=True, slots=True)
class Decision:
    """What the next forward should be.

    Attributes:
        num_instances: N.
        max_groups: most groups G, so that forwards that run at once share what there is.
        enough: texts that must wait for it to pay while other forwards run; with fewer, what
            comes meanwhile gathers. 1 where nothing runs: then the next forward starts at once.
    """

    num_instances: int
    max_groups: int
    enough: int


def decide(
    waiting: Sequence[int],
    running: Sequence[int],
    times: ForwardTimes,
    widths: Sequence[int],
    target_s: float,
    *,
    in_flight: int,
    max_groups: int,
    behind: int = 0,
) -> Decision:
    """N, G and the moment of the next forward.

    Texts that other forwards hold count as load too: in a closed loop their senders come back. And
    where forwards run at once, none takes more than its share, or the others would idle.

    Args:
        waiting: tokens of each text that waits, oldest first; not empty.
        running: tokens of each text in the forwards that run now.
        times: predictions for a forward beside ``in_flight - 1`` others.
        widths: every N that may be chosen, ascending.
        target_s: texts are to be answered within this time.
        in_flight: forwards that may run at once.
        max_groups: most groups of a forward.
        behind: texts that wait behind ``waiting``, where the line is too long to look at.
    """
    budget_s = DRAIN_SHARE * target_s * in_flight
    n = choose([*waiting, *running], times, widths, budget_s, behind=behind).num_instances
    share = -(-(len(waiting) + behind + len(running)) // in_flight)
    groups = min(max_groups, -(-share // n))
    if not running:
        return Decision(n, groups, 1)
    good = min(groups, times.best_groups(n, waiting[0])) * n
    # Half of a good batch starts: what comes back from the others is never all there at once.
    return Decision(n, groups, min(share, max(n, -(-good // 2))))


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


def widest_drain_s(texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]) -> float:
    """Predicted seconds to serve texts in good batches, each at the widest N that it allows.

    One forward after another; what is left of the line once width is all spent.
    """
    return sum(
        drain_s(buckets, times, n) for n, buckets in _at_widest(texts, times, widths).items()
    )


def work_s(texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]) -> float:
    """Seconds that texts take among many others: of each, its slot of a good batch.

    Unlike a drain time it has no half-empty batches: a lone text counts as one slot.
    """
    total = 0.0
    for n, buckets in _at_widest(texts, times, widths).items():
        for length, count in buckets.items():
            groups = times.best_groups(n, length)
            total += count * times.predict(n, length, groups) / (groups * n)
    return total


def _at_widest(
    texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]
) -> dict[int, Counter[int]]:
    """How many texts there are of each length bucket, by the widest N that they allow."""
    found: dict[int, Counter[int]] = {}
    alike = Counter((text.length, text.max_num_instances) for text in texts)
    for (length, cap), count in alike.items():
        n = allowed_width(widths[-1], cap, widths)
        found.setdefault(n, Counter())[times.bucket(length)] += count
    return found
