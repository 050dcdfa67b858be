"""Which texts go into the next batch, and into which slot; and back from slots to texts.

In: the waiting texts, those with the next turn first, N and forward times. Out: a ``Plan``. Pure
functions over plain values, so the planner can be tested and simulated without a model or a clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from muxserve.engine.times import ForwardTimes


class Waiting(Protocol):
    """What the planner needs to know of a waiting text."""

    @property
    def length(self) -> int:
        """Tokens."""

    @property
    def max_num_instances(self) -> int | None:
        """Widest N that may serve it."""

    @property
    def isolation_key(self) -> str | None:
        """Texts with different keys never share a group."""


W = TypeVar("W", bound=Waiting)

#: Runs to try: halves of the largest, at positions from ending at the oldest text to beginning at
#: it. More of them found nothing better on measured times.
_HALVINGS, _POSITIONS = 2, 2

#: While callers wait for their turns, a batch is chosen from this many times its slots: lengths are
#: nearer then, and nobody's turn comes much too early.
_TURNS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Plan(Generic[W]):
    """One batch: G groups of N slots.

    Attributes:
        num_instances: N.
        texts: the distinct texts of the batch.
        slots: [G * N] index into ``texts`` of what each slot holds. Slots that would be free hold
            a text of their group once more, and its logits are averaged.
    """

    num_instances: int
    texts: list[W]
    slots: list[int]

    @property
    def groups(self) -> int:
        """Encoder rows of the batch."""
        return len(self.slots) // self.num_instances

    @property
    def length(self) -> int:
        """Tokens of the longest text."""
        return max(text.length for text in self.texts)

    def costs(self) -> list[float]:
        """What each text takes, in tokens of encoder rows.

        A text that has a group to itself takes N times what one of N does.
        """
        slots = np.bincount(self.slots, minlength=len(self.texts)).tolist()
        return [
            text.length * held / self.num_instances
            for text, held in zip(self.texts, slots, strict=True)
        ]


def plan(
    waiting: Sequence[W],
    n: int,
    times: ForwardTimes,
    widths: Sequence[int],
    max_groups: int,
    most_s: float | None = None,
) -> Plan[W]:
    """Plan the next batch: the oldest text always goes, with the neighbours that pay.

    The oldest text is the one with the next turn; with one caller, the one that came first.

    Takes the run of near lengths around the oldest text that wastes least; if texts have different
    isolation keys, a run of groups of one key each. A text that caps N is served at its cap when it
    is the oldest, and until then only joins batches that are no wider than it allows.

    Args:
        waiting: the waiting texts, oldest first; not empty.
        n: what the policy chose.
        times: predictions.
        widths: every N available, ascending.
        max_groups: most groups of a forward.
        most_s: predicted seconds that the forward may take, so that the next turn comes soon; a
            lone group may take more. With it, only the texts with the next turns go.
    """
    oldest = waiting[0]
    n = allowed_width(n, oldest.max_num_instances, widths)
    if most_s is not None:
        max_groups = _groups_within(most_s, n, oldest.length, times, max_groups)
        waiting = waiting[: _TURNS_AHEAD * max_groups * n]
    fitting = [w for w in waiting if w.max_num_instances is None or w.max_num_instances >= n]
    fitting.sort(key=lambda w: w.length)
    lengths = [w.length for w in fitting]
    alone_s = _alone_s(lengths, n, times)
    if len({w.isolation_key for w in fitting}) == 1:
        position = next(i for i, w in enumerate(fitting) if w is oldest)
        start, end = _window(lengths, alone_s, position, n, n, times, max_groups, most_s)
        chosen = fitting[start : end + 1]
        return _fill(n, [chosen[i : i + n] for i in range(0, len(chosen), n)])
    # A run of near lengths would hold a few texts of each key, in groups that are not full. So
    # each key's texts are cut into groups first, and the run is one of groups.
    groups = _cut(fitting, n)
    lengths = [fitting[group[-1]].length for group in groups]
    worth = np.array([alone_s[group].sum() for group in groups])
    position = next(
        i for i, group in enumerate(groups) if any(fitting[place] is oldest for place in group)
    )
    start, end = _window(lengths, worth, position, 1, n, times, max_groups, most_s)
    return _fill(n, [[fitting[place] for place in group] for group in groups[start : end + 1]])


def allowed_width(n: int, cap: int | None, widths: Sequence[int]) -> int:
    """The widest N that is at most ``n`` and ``cap``; the narrowest if none is."""
    limit = n if cap is None else min(n, cap)
    return max((w for w in widths if w <= limit), default=widths[0])


def sight(widths: Sequence[int], max_groups: int) -> int:
    """How many of the oldest texts are worth looking at: two of the largest batches.

    More would find nearer neighbours, but the cost of a look must not grow with the line.
    """
    return 2 * max_groups * max(widths)


def _window(
    lengths: Sequence[int],
    alone_s: np.ndarray,
    oldest: int,
    per_group: int,
    n: int,
    times: ForwardTimes,
    max_groups: int,
    most_s: float | None,
) -> tuple[int, int]:
    """First and last index of the run of near lengths around ``oldest`` that wastes least.

    A run is worth what its texts would cost in batches of their own lengths (``alone_s`` of each),
    over what it costs padded to its longest. So few groups of near lengths beat many that pad more,
    and a long text takes long neighbours with it and not the short ones, which another batch serves
    for less. Runs before, around and behind the oldest text are tried. A run is of texts, of which
    ``per_group`` make a group, or of whole groups.
    """
    worth = np.concatenate([[0.0], np.cumsum(alone_s)])
    most = min(max_groups, -(-len(lengths) // per_group), times.best_groups(n, lengths[oldest]))
    best, best_share = (oldest, oldest), 0.0
    sizes = {max(1, most >> halving) for halving in range(_HALVINGS + 1)}
    # Without the texts that would only begin one more group: it would cost as much as a full one.
    sizes.add(max(1, min(most, len(lengths) // per_group)))
    for groups in sorted(sizes):
        places = min(groups * per_group, len(lengths))
        lowest, highest = max(0, oldest - places + 1), min(oldest, len(lengths) - places)
        for step in range(_POSITIONS + 1):
            first = lowest + (highest - lowest) * step // _POSITIONS
            last = first + places - 1
            seconds = times.predict(n, lengths[last], groups)
            if most_s is not None and groups > 1 and seconds > most_s:
                continue
            share = (worth[last + 1] - worth[first]) / seconds
            if share > best_share:
                best, best_share = (first, last), share
    return best


def _groups_within(most_s: float, n: int, length: int, times: ForwardTimes, max_groups: int) -> int:
    """Most groups whose forward takes no longer; at least one."""
    groups = min(max_groups, times.best_groups(n, length))
    while groups > 1 and times.predict(n, length, groups) > most_s:
        groups -= 1
    return groups


def _alone_s(lengths: Sequence[int], n: int, times: ForwardTimes) -> np.ndarray:
    """Seconds of each text's slot in a good batch of texts of its own length: [texts]."""
    costs = []
    for bucket in times.lengths:
        groups = times.best_groups(n, bucket)
        costs.append(times.predict(n, bucket, groups) / (groups * n))
    return np.interp(lengths, times.lengths, costs)


def _cut(texts: Sequence[Waiting], n: int) -> list[list[int]]:
    """Places of the texts in groups of one key each, by the longest of each group.

    Longest first, so that a group that is not full is one of short texts.

    Args:
        texts: by length.
        n: most texts of a group.
    """
    by_key: dict[str | None, list[int]] = {}
    for place, text in enumerate(texts):
        by_key.setdefault(text.isolation_key, []).append(place)
    groups = [
        places[max(0, end - n) : end]
        for places in by_key.values()
        for end in range(len(places), 0, -n)
    ]
    groups.sort(key=lambda group: group[-1])
    return groups


def _fill(n: int, groups: Sequence[Sequence[W]]) -> Plan[W]:
    """The plan of groups; texts of a group that is not full are repeated in its free slots."""
    texts: list[W] = []
    slots: list[int] = []
    for group in groups:
        first = len(texts)
        texts += group
        slots += [first + i % len(group) for i in range(n)]
    return Plan(n, texts, slots)


def unplan(logits: np.ndarray, slots: Sequence[int], texts: int) -> np.ndarray:
    """Mean logits of each text over its slots: [slots, ..., labels] to [texts, ..., labels]."""
    if texts == len(slots):
        return logits  # a full batch holds every text once, in order
    sums = np.zeros((texts, *logits.shape[1:]), dtype=np.float32)
    np.add.at(sums, slots, logits)
    counts = np.bincount(slots, minlength=texts).reshape(-1, *(1 for _ in logits.shape[1:]))
    return np.asarray(sums / counts, dtype=np.float32)
