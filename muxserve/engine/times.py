"""How long a forward takes for each N, length and number of groups: measured, then kept current.

In: times measured at warm-up and while running. Out: predictions for the policy and the planner.
"""

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Weight of the newest observation in the running correction.
SMOOTHING = 0.1
#: The part of a deviation that is attributed to the machine.
SHARED = 0.8
#: A batch size is large enough once it reaches this share of the best texts per second.
GOOD_ENOUGH = 0.95


class ForwardTimes:
    """Seconds of one forward, on a grid of N, length bucket and groups.

    Between grid points, predictions are linear in length and in groups. Corrections follow what is
    observed, as exponential averages, so that a slow moment fades. Most of a deviation is
    attributed to the machine and corrects everything, the rest only its (N, length bucket);
    otherwise a busy machine would seem to slow down just the N that it runs.
    """

    def __init__(self, lengths: Sequence[int], groups: Sequence[int]) -> None:
        """Make an empty table.

        Args:
            lengths: length buckets in tokens, ascending.
            groups: numbers of groups, ascending from 1.
        """
        self.lengths = list(lengths)
        self.groups = list(groups)
        self._seconds: dict[tuple[int, int], list[float]] = {}
        self._machine = 1.0
        self._correction: dict[tuple[int, int], float] = {}

    def set(self, n: int, length: int, seconds: Sequence[float]) -> None:
        """Store measured seconds at a length bucket, one for each entry of ``groups``."""
        if len(seconds) != len(self.groups):
            raise ValueError(f"{len(self.groups)} times expected, got {len(seconds)}")
        self._seconds[n, length] = list(seconds)
        self._correction[n, length] = 1.0

    def dump(self) -> dict[str, Any]:
        """The table as JSON has it, without the running correction."""
        return {
            "lengths": self.lengths,
            "groups": self.groups,
            "seconds": [
                {"num_instances": n, "length": length, "seconds": seconds}
                for (n, length), seconds in sorted(self._seconds.items())
            ],
        }

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> "ForwardTimes":
        """Make a table of what ``dump`` returned.

        Raises:
            ValueError: for anything else.
        """
        try:
            times = cls(values["lengths"], values["groups"])
            for cell in values["seconds"]:
                times.set(cell["num_instances"], cell["length"], cell["seconds"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a table of forward times: {error!r}") from None
        return times

    @property
    def widths(self) -> list[int]:
        """Every N in the table, ascending."""
        return sorted({n for n, _ in self._seconds})

    def bucket(self, length: int) -> int:
        """The smallest length bucket that holds a text of ``length`` tokens."""
        index = bisect.bisect_left(self.lengths, length)
        return self.lengths[min(index, len(self.lengths) - 1)]

    def predict(self, n: int, length: int, groups: int) -> float:
        """Seconds of a forward of ``groups`` groups of N=n, padded to ``length`` tokens."""
        upper = self.bucket(length)
        seconds = self._at_bucket(n, upper, groups)
        index = self.lengths.index(upper)
        if index == 0 or length >= upper:
            return seconds
        lower = self.lengths[index - 1]
        below = self._at_bucket(n, lower, groups)
        return below + (seconds - below) * (length - lower) / (upper - lower)

    def best_groups(self, n: int, length: int) -> int:
        """The fewest groups that reach nearly the best texts per second at this N and length."""
        bucket = self.bucket(length)
        rates = [g / self._at_bucket(n, bucket, g) for g in self.groups]
        enough = GOOD_ENOUGH * max(rates)
        return next(g for g, rate in zip(self.groups, rates, strict=True) if rate >= enough)

    def observe(self, n: int, length: int, groups: int, seconds: float) -> None:
        """Correct predictions near (n, length) by one measured forward."""
        key = n, self.bucket(length)
        ratio = seconds / self.predict(n, length, groups)
        # One stalled forward must not triple the predictions for the next hundred.
        ratio = min(max(ratio, 0.25), 4.0)
        self._machine *= 1 + SMOOTHING * SHARED * (ratio - 1)
        self._correction[key] *= 1 + SMOOTHING * (1 - SHARED) * (ratio - 1)

    def _at_bucket(self, n: int, bucket: int, groups: int) -> float:
        seconds = self._seconds[n, bucket]
        correction = self._machine * self._correction[n, bucket]
        index = bisect.bisect_left(self.groups, groups)
        if index == 0:
            return seconds[0] * correction
        if index == len(self.groups):
            return seconds[-1] * correction * groups / self.groups[-1]
        low, high = self.groups[index - 1], self.groups[index]
        share = (groups - low) / (high - low)
        return (seconds[index - 1] * (1 - share) + seconds[index] * share) * correction


class SpreadGain:
    """Whether a forward that runs alone is quicker on every core, as recently measured.

    On a quiet machine it is. If other programs use the cores, the threads of one forward wait for
    each other at every operation, and it can be many times slower.
    """

    #: Below this ratio all cores pay: a forward that takes them keeps others from starting.
    _PAYS = 0.9
    #: Each chance that is not taken multiplies the ratio by this, so that it is tried again.
    _FORGET = 0.98

    def __init__(self) -> None:
        self._ratio = 1.0

    def start(self, ratio: float) -> None:
        """Set the first measured ratio."""
        self._ratio = ratio

    def pays(self) -> bool:
        """Whether the next lone forward should take every core; counts as a chance."""
        if self._ratio < self._PAYS:
            return True
        self._ratio *= self._FORGET
        return False

    def observe(self, ratio: float) -> None:
        """Note a forward's seconds on every core over those predicted on its share of them."""
        self._ratio += 2 * SMOOTHING * (min(ratio, 4.0) - self._ratio)


def grid(max_length: int, max_groups: int, fixed_length: int | None) -> ForwardTimes:
    """An empty table: lengths 16, 32, ... up to the maximum, groups 1, 2, 4, ... up to theirs."""
    if fixed_length is not None:
        lengths = [fixed_length]
    else:
        lengths = [length for length in (16, 32, 64, 128, 256, 512) if length < max_length]
        lengths.append(max_length)
    groups = [1]
    while groups[-1] * 2 <= max_groups:
        groups.append(groups[-1] * 2)
    return ForwardTimes(lengths, groups)


def measure(
    times: ForwardTimes,
    widths: Sequence[int],
    run: Callable[[int, int, int], None],
    *,
    budget_s: float,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Fill ``times`` by running forwards, small ones first, for about ``budget_s`` seconds.

    Cells that the budget does not reach are scaled from the nearest smaller one, which overstates
    them a little; running corrects it.

    Args:
        times: the table to fill.
        widths: every N.
        run: runs one forward of (n, length, groups).
        on_progress: called with the share of cells done.
    """
    started = time.perf_counter()
    measured: dict[tuple[int, int, int], float] = {}
    cells = [
        (g * length, n, length, g) for n in widths for length in times.lengths for g in times.groups
    ]
    cells.sort()
    for done, (_, n, length, g) in enumerate(cells):
        smaller = measured.get((n, length, g // 2))
        left = budget_s - (time.perf_counter() - started)
        if smaller is not None and 4 * smaller > left:
            measured[n, length, g] = 2 * smaller
        else:
            seconds = []
            for _ in range(2):  # the first run of a shape allocates
                at = time.perf_counter()
                run(n, length, g)
                seconds.append(time.perf_counter() - at)
            measured[n, length, g] = min(seconds)
        if on_progress:
            on_progress((done + 1) / len(cells))
    for n in widths:
        for length in times.lengths:
            times.set(n, length, [measured[n, length, g] for g in times.groups])
