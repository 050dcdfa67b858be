"""How many groups texts make: one isolation key to a group, none wider than its texts allow.

The policy counts with it. Pure, and quick for texts that may share a group with any other.
"""

import bisect
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from muxserve.engine.slots import Waiting, allowed_width
from muxserve.engine.times import ForwardTimes

#: Length bucket of a text, and the widest N that it allows.
_Alike = tuple[int, int]
#: How many texts of each kind one isolation key has, longest first.
_OfKey = tuple[tuple[_Alike, int], ...]

_LENGTH, _CAP, _KEY = map(attrgetter, ("length", "max_num_instances", "isolation_key"))
_ALL = attrgetter("length", "max_num_instances", "isolation_key")
_NONE = {None}


@dataclass(slots=True)
class TextCounts:
    """Texts, counted by kind to tell how many groups they make.

    Attributes:
        free: texts without an isolation key, by kind.
        keyed: how many keys have just these texts. Which key does not matter, so a thousand keys of
            one text each cost no more than a few.
        looked: texts that were looked at.
        total: the same, and the texts behind them. These are assumed to be alike, and those with
            keys to make as many more groups: the planner does not see them beside each other.
    """

    free: Mapping[_Alike, int]
    keyed: Mapping[_OfKey, int]
    looked: int
    total: int

    @classmethod
    def of(
        cls, texts: Collection[Waiting], times: ForwardTimes, widths: Sequence[int], behind: int = 0
    ) -> "TextCounts":
        """Count texts; those without keys and caps are quick to count."""
        if not any(map(_CAP, texts)) and _NONE.issuperset(map(_KEY, texts)):
            return cls._of_lengths(list(map(_LENGTH, texts)), times, widths, behind)
        free: dict[_Alike, int] = {}
        by_key: dict[str, dict[_Alike, int]] = {}
        lengths = {length: times.bucket(length) for length in set(map(_LENGTH, texts))}
        limits = {cap: allowed_width(widths[-1], cap, widths) for cap in set(map(_CAP, texts))}
        for (length, cap, key), count in Counter(map(_ALL, texts)).items():
            alike = lengths[length], limits[cap]
            own = free if key is None else by_key.get(key)
            if own is None:
                by_key[key] = {alike: count}
            else:
                own[alike] = own.get(alike, 0) + count
        keyed = Counter(tuple(sorted(own.items(), reverse=True)) for own in by_key.values())
        return cls(free, keyed, len(texts), len(texts) + behind)

    @classmethod
    def _of_lengths(
        cls, lengths: list[int], times: ForwardTimes, widths: Sequence[int], behind: int = 0
    ) -> "TextCounts":
        """Count texts without keys and caps; sorts ``lengths``."""
        lengths.sort()
        ends = [bisect.bisect_right(lengths, bucket) for bucket in times.lengths]
        free = {
            (bucket, widths[-1]): end - start
            for bucket, start, end in zip(times.lengths, [0, *ends[:-1]], ends, strict=True)
            if end > start
        }
        return cls(free, {}, len(lengths), len(lengths) + behind)

    def groups(self, n: int) -> Mapping[tuple[int, int], int]:
        """Groups of all texts at N=n, or as wide as they allow, by (N, length bucket)."""
        texts: dict[tuple[int, int], int] = {}
        for (length, limit), count in self.free.items():
            at = n if n < limit else limit, length
            texts[at] = texts.get(at, 0) + count
        groups = {at: -(-self._scaled(count) // at[0]) for at, count in texts.items()}
        if self.keyed:
            for at, count in self.groups_of_keys(n).items():
                groups[at] = groups.get(at, 0) + self._scaled(count)
        return groups

    def groups_of_keys(self, n: int) -> Mapping[tuple[int, int], int]:
        """Groups of the texts with keys that were looked at, by (N, length bucket).

        A key's texts are cut longest first, as the planner does: it has few, and a group of them
        may hold several lengths.
        """
        groups: Counter[tuple[int, int]] = Counter()
        for own, keys in self.keyed.items():
            slots: dict[int, int] = {}  # that the last group at this N has left
            for (length, limit), count in own:
                width = min(n, limit)
                over = count - slots.get(width, 0)
                more = -(-over // width) if over > 0 else 0
                slots[width] = more * width - over
                if more:
                    groups[width, length] += more * keys
        return groups

    def batches(self, n: int) -> tuple[int, int]:
        """Groups of all texts that may be in batches at N=n, and the texts in one of them."""
        texts = sum(count for (_, limit), count in self.free.items() if limit >= n)
        groups = -(-self._scaled(texts) // n)
        if not self.keyed:
            return groups, n
        for own, keys in self.keyed.items():
            fitting = sum(count for (_, limit), count in own if limit >= n)
            texts += fitting * keys
            groups += self._scaled(-(-fitting // n) * keys)
        return groups, min(n, -(-self._scaled(texts) // groups))

    def _scaled(self, count: int) -> int:
        return count if self.total == self.looked else -(-count * self.total // self.looked)
