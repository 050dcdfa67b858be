"""Which N: the smallest whose predicted drain time of the line meets the latency target.

In: length, cap on N and isolation key of the texts that wait and of those in forwards that run, the
forward times, the target. Out: N, the most groups of the batch, and how many texts make it worth
starting. Pure functions: no clock, no model, no state.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from muxserve.engine.load import Load
from muxserve.engine.slots import Waiting, allowed_width
from muxserve.engine.times import ForwardTimes

#: Where no N meets the target, a wider N must drain the line this much faster to be worth it.
WORTH_WIDENING = 0.95

#: The share of the latency target within which the line is to be drained. The rest is for what a
#: text waits before the line is looked at: until a forward that runs already has ended.
DRAIN_SHARE = 0.5

#: The share of the latency target that one forward may take while somebody who asks for little
#: waits beside one who floods: he waits for the end of one that runs, and then for his own.
TURN_SHARE = 0.1
#: But no turn is shorter than so many forwards of one group: a large model would otherwise compute
#: little else than what each forward costs at least.
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

    Where none does, the smallest N that drains it nearly as fast as the fastest. Only an N that
    needs fewer groups than every narrower one is considered: the same groups at a wider N cost as
    much, whatever a noisy measurement says. So a lone text is always served at the narrowest N.

    Args:
        texts: each waiting text that was looked at; not empty.
        times: predictions.
        widths: every N that may be chosen, ascending.
        target_s: the latency target.
        behind: more texts that wait behind those; they are taken to be alike.
    """
    return _choose(Load.of(texts, times, widths, behind), times, widths, target_s)


def _choose(load: Load, times: ForwardTimes, widths: Sequence[int], target_s: float) -> Choice:
    choices: list[Choice] = []
    fewest = math.inf
    for n in widths:
        needed = load.groups(n)
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
        enough: texts that must wait for it to pay while other forwards run; with fewer, what
            comes meanwhile gathers. 1 where nothing runs: then the next forward starts at once.
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
    """N, G and the moment of the next forward.

    Texts that other forwards hold count as load too: in a closed loop their senders come back. And
    where forwards run at once, none takes more than its share, or the others would idle.

    Groups are counted as the planner makes them: each isolation key has groups of its own, and a
    text that caps N takes a slot of a group that is no wider than it allows. So an N that would
    only leave more slots free is not chosen. The oldest text goes next, so N is at most its cap.

    Args:
        waiting: each text that waits, oldest first; not empty.
        running: each text in the forwards that run now.
        times: predictions for a forward beside ``in_flight - 1`` others.
        widths: every N that may be chosen, ascending.
        target_s: texts are to be answered within this time.
        in_flight: forwards that may run at once.
        max_groups: most groups of a forward.
        behind: texts that wait behind ``waiting``, where the line is too long to look at.
    """
    load = Load.of([*waiting, *running], times, widths, behind)
    oldest = waiting[0]
    n = _choose(load, times, widths, DRAIN_SHARE * target_s * in_flight).num_instances
    n = allowed_width(n, oldest.max_num_instances, widths)
    needed, filled = load.batches(n)
    groups = min(max_groups, -(-needed // in_flight))
    if not running:
        return Decision(n, groups, 1)
    good = min(groups, times.best_groups(n, oldest.length)) * filled
    share = -(-load.total // in_flight)
    # Half of a good batch starts: what comes back from the others is never all there at once.
    return Decision(n, groups, min(share, max(filled, -(-good // 2))))


def turn_s(head: Waiting, n: int, times: ForwardTimes, target_s: float) -> float:
    """Seconds that a forward may take where callers wait for their turns; ``head`` goes next."""
    return max(TURN_SHARE * target_s, TURN_GROUPS * times.predict(n, head.length, 1))


def widest_drain_s(texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]) -> float:
    """Predicted seconds to serve texts in good batches, each at the widest N that it allows.

    One forward after another; what is left of the line once width is all spent.
    """
    return _drain_s(Load.of(list(texts), times, widths).groups(widths[-1]), times)


def work_s(texts: Iterable[Waiting], times: ForwardTimes, widths: Sequence[int]) -> float:
    """Seconds that texts take among many others: of each, its slot of a good batch.

    Unlike a drain time it has no half-empty batches: a lone text counts as one slot. Where texts
    have an isolation key the slots that the key's texts leave free are nobody else's, so they
    count whole groups.
    """
    load = Load.of(list(texts), times, widths)
    slots = {(n, length): count / n for (length, n), count in load.free.items()}
    total = 0.0
    for needed in (slots, load.groups_of_keys(widths[-1])):
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
