"""Answers counted second by second; tallies can be added in any order.

Each process of the load generator fills a tally and hands it over every second; the parts of all
processes are added. A day's soak takes a few megabytes, because latencies are counted in buckets
of 1 % width. It imports nothing heavy, because it runs inside Locust.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Each bucket of latencies is this much wider than the one before; quantiles are as exact as that.
BUCKET_RATIO = 1.01
_LOG_RATIO = math.log(BUCKET_RATIO)
#: The shortest latency that is told from zero.
SHORTEST_S = 1e-5
#: The status of an answer that is as it should be, over every protocol.
OK = "200"


def bucket_of(seconds: float) -> int:
    """Number of the bucket of a latency."""
    return max(0, math.ceil(math.log(max(seconds, SHORTEST_S) / SHORTEST_S) / _LOG_RATIO))


def seconds_of(bucket: int) -> float:
    """The middle of a bucket."""
    return SHORTEST_S * math.exp(_LOG_RATIO * (bucket - 0.5)) if bucket else SHORTEST_S


def quantile_s(buckets: Mapping[int, int], q: float) -> float | None:
    """Quantile of latencies that were counted in buckets; None without any."""
    count = sum(buckets.values())
    if not count:
        return None
    wanted, seen = min(count - 1, int(q * count)), 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen > wanted:
            return seconds_of(bucket)
    raise AssertionError("unreachable: counts add up")


@dataclass
class Second:
    """The requests that were due in one second, and the texts whose answers came in it.

    Attributes:
        due: requests that were due.
        latencies: buckets of those that were answered, from when they were due.
        lags: buckets of how late the generator itself sent them.
        statuses: what became of them: ``200``, another status, or a word such as ``connection``.
        texts: texts of requests that were answered.
        widths: those texts by the N that served them.
        judged, correct: texts (or words) with a known label, and those that got it.
        compared, agreed: texts (or words) whose N=1 answer is known, and those that equal it.
        completed: texts whose answers came in this second, whenever they were due.
    """

    due: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    lags: Counter[int] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    judged: int = 0
    correct: int = 0
    compared: int = 0
    agreed: int = 0
    completed: int = 0

    def add(self, other: "Second") -> None:
        """Add another part of the same second, or another second."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))

    @property
    def errors(self) -> int:
        """Requests that were not answered as they should be."""
        return sum(count for status, count in self.statuses.items() if status != OK)


_COUNTS = ("due", "texts", "judged", "correct", "compared", "agreed", "completed")
_COUNTERS = {"latencies": int, "lags": int, "statuses": str, "widths": int}


@dataclass
class Tally:
    """Seconds by their number from the start, and what the first failure of each kind said."""

    seconds: dict[int, Second] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    #: CPU seconds of the generator's processes over the run.
    cpu_s: float = 0.0

    def at(self, second: float) -> Second:
        """The second that a time falls in."""
        number = int(second)
        found = self.seconds.get(number)
        if found is None:
            found = self.seconds[number] = Second()
        return found

    def add(self, other: "Tally") -> None:
        """Add another process's, or a later, part."""
        for number, one in other.seconds.items():
            self.at(number).add(one)
        for status, message in other.examples.items():
            self.examples.setdefault(status, message)
        self.cpu_s += other.cpu_s

    def total(self, numbers: Iterable[int] | None = None) -> Second:
        """Some seconds as one; all by default."""
        summed = Second()
        for number in self.seconds if numbers is None else numbers:
            if number in self.seconds:
                summed.add(self.seconds[number])
        return summed

    def as_json(self) -> dict[str, Any]:
        """Plain types with text keys, for JSON and for Locust's messages."""
        return {
            "cpu_s": self.cpu_s,
            "examples": self.examples,
            "seconds": {
                str(number): {
                    **{name: getattr(one, name) for name in _COUNTS if getattr(one, name)},
                    **{
                        name: {str(key): count for key, count in getattr(one, name).items()}
                        for name in _COUNTERS
                        if getattr(one, name)
                    },
                }
                for number, one in self.seconds.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Tally":
        """What ``as_json`` gave."""
        tally = cls(examples=dict(content["examples"]), cpu_s=content["cpu_s"])
        for number, one in content["seconds"].items():
            second = tally.at(int(number))
            for name in _COUNTS:
                setattr(second, name, one.get(name, 0))
            for name, key in _COUNTERS.items():
                counts = {key(value): count for value, count in one.get(name, {}).items()}
                getattr(second, name).update(counts)
        return tally
