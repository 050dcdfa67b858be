"""Which N: the smallest that is predicted to drain the line within the latency target.

In: length, cap on N and isolation key of the waiting texts and of those in running forwards, the
forward times, the target. Out: N, the most groups of the batch, and how many texts make it worth
starting. Pure functions: no clock, no model, no state.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from muxserve.engine.grouping import TextCounts
from muxserve.engine.slots import Waiting, allowed_width
from muxserve.engine.times import ForwardTimes

#: If no N meets the target, a wider N must drain the line this much faster to be worth it.
WORTH_WIDENING = 0.95

#: The share of the latency target in which the line is to drain. The rest is for the wait before
#: the line is looked at: until a forward that runs already has ended.
DRAIN_SHARE = 0.5

#: The share of the latency target that one forward may take while a caller that asks for little
#: waits beside one that floods: it waits for a running forward to end, and then for its own.
TURN_SHARE = 0.1
#: But no turn is shorter than this many forwards of one group. A large model would otherwise spend
#: most of its time on what every forward costs at least.
TURN_GROUPS = 2


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
    texts: Collection[Waiting],
    times: ForwardTimes,
    widths: Sequence[int],
    target_s: float,
    *,
    behind: int = 0,
) -> Choice:
    """The smallest N that drains the line within the target.

    If none does, the smallest N that drains it nearly as fast as the fastest. Only an N that
    needs fewer groups than every narrower one is considered: the same groups at a wider N cost as
    much, whatever a noisy measurement says. So a lone text is always served at the narrowest N.

    Args:
        texts: each waiting text that was looked at; not empty.
        times: predictions.
        widths: every N that may be chosen, ascending.
        target_s: the latency target.
        behind: more texts that wait behind those; they are assumed to be alike.
    """
    return _choose(TextCounts.of(texts, times, widths, behind), times, widths, target_s)


def _choose(
    counts: TextCounts, times: ForwardTimes, widths: Sequence[int], target_s: float
) -> Choice:
    choices: list[Choice] = []
    fewest = math.inf
    for n in widths:
        needed = counts.groups(n)
        groups = sum(needed.values())
        if choices and groups >= fewest:
            continue
        fewest = groups
        choice = Choice(n, _drain_s(needed, times))
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
        enough: how many texts must wait for it to pay while other forwards run; with fewer, more
            are waited for. 1 if nothing runs: then the next forward starts at once.
    """

    num_instances: int
    max_groups: int
    enough: int


def decide(
    waiting: Sequence[Waiting],
    running: Sequence[Waiting],
    times: ForwardTimes,
    widths: Sequence[int],
    target_s: float,
    *,
    in_flight: int,
    max_groups: int,
    behind: int = 0,
) -> Decision:
    """Decide N, G and the moment of the next forward.

    Texts in other forwards count as load too: in a closed loop their senders come back. And if
    several forwards run at once, none takes more than its share, or the others would idle.

    Groups are counted as the planner makes them: each isolation key has groups of its own, and a
    text that caps N takes a slot of a group that is no wider than it allows. So an N that would
    only leave more slots free is not chosen. The oldest text goes next, so N is at most its cap.

    Args:
        waiting: the waiting texts, oldest first; not empty.
        running: the texts in the forwards that run now.
        times: predictions for a forward beside ``in_flight - 1`` others.
        widths: every N that may be chosen, ascending.
        target_s: texts are to be answered within this time.
        in_flight: forwards that may run at once.
        max_groups: most groups of a forward.
        behind: texts that wait behind ``waiting``, if the line is too long to look at.
    """
    counts = TextCounts.of([*waiting, *running], times, widths, behind)
    oldest = waiting[0]
    n = _choose(counts, times, widths, DRAIN_SHARE * target_s * in_flight).num_instances
    n = allowed_width(n, oldest.max_num_instances, widths)
    needed, filled = counts.batches(n)
    groups = min(max_groups, -(-needed // in_flight))
    if not running:
        return Decision(n, groups, 1)
    good = min(groups, times.best_groups(n, oldest.length)) * filled
    share = -(-counts.total // in_flight)
    # Half a good batch is enough: texts that come back from the others never come all at once.
    return Decision(n, groups, min(share, max(filled, -(-good // 2))))


def turn_s(head: Waiting, n: int, times: ForwardTimes, target_s: float) -> float:
    """Seconds that a forward may take while callers wait for their turns; ``head`` goes next."""
    return max(TURN_SHARE * target_s, TURN_GROUPS * times.predict(n, head.length, 1))


def widest_drain_s(texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]) -> float:
    """Predicted seconds to serve texts in good batches, each at the widest N that it allows.

    One forward after another: how long the line is once all width is spent.
    """
    return _drain_s(TextCounts.of(list(texts), times, widths).groups(widths[-1]), times)


def work_s(texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]) -> float:
    """Seconds that texts take among many others: each takes its slot of a good batch.

    Unlike a drain time, this has no half-empty batches: a lone text counts as one slot. Texts with
    an isolation key count whole groups, because nobody else may use the slots they leave free.
    """
    counts = TextCounts.of(list(texts), times, widths)
    slots = {(n, length): count / n for (length, n), count in counts.free.items()}
    total = 0.0
    for needed in (slots, counts.groups_of_keys(widths[-1])):
        for (n, length), groups in needed.items():
            good = times.best_groups(n, length)
            total += groups * times.predict(n, length, good) / good
    return total


def _drain_s(groups: Mapping[tuple[int, int], int], times: ForwardTimes) -> float:
    """Predicted seconds of groups, counted by N and length bucket, in good batches."""
    total = 0.0
    for (n, length), count in groups.items():
        if count == 1:  # every look at a short line
            total += times.predict(n, length, 1)
            continue
        size = times.best_groups(n, length)
        full, rest = divmod(count, size)
        total += full * times.predict(n, length, size)
        if rest:
            total += times.predict(n, length, rest)
    return total
