"""What a server says of itself while it is loaded: occupancy, line, stages and processor time."""

import http.client
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

PERIOD_S = 1.0


#: Counters of an engine's ``/stats`` that figures are made of.
_COUNTERS = ("slots", "filled_slots", "batches", "waiting", "line_s", "plan_s", "computed_s")


@dataclass(frozen=True)
class Look:
    """Counters at one time, from the start of the server.

    Attributes:
        unix_s: when.
        cpu_s: processor seconds of its processes; NaN where they are not known.
        counters: of its engines, summed; those that it does not tell are 0.
        stages: seconds of its requests by stage, summed; empty where it does not tell.
    """

    unix_s: float
    cpu_s: float
    counters: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    stages: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stats: Mapping[str, Any], unix_s: float = 0.0, cpu_s: float = math.nan) -> "Look":
        """What ``/stats`` answered."""
        engines = [one for one in stats.get("engines", []) if "slots" in one]
        counters = {name: sum(one.get(name, 0) for one in engines) for name in _COUNTERS}
        return cls(unix_s, cpu_s, counters, stats.get("stages", {}))


class Watch:
    """Looks at a server every second until the block ends, on a thread of its own."""

    def __init__(
        self, cpu_seconds: Callable[[], float], stats: Callable[[], dict[str, Any]] | None
    ) -> None:
        """Watch a server.

        Args:
            cpu_seconds: of the server until now.
            stats: what its ``/stats`` answers; None where it has none.
        """
        self.looks: list[Look] = []
        self._cpu_seconds, self._stats = cpu_seconds, stats
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._look()
            if self._done.wait(PERIOD_S):
                self._look()
                return

    def _look(self) -> None:
        now, cpu_s = time.time(), self._cpu_seconds()
        try:
            content = self._stats() if self._stats is not None else {}
            self.looks.append(Look.of(content, now, cpu_s))
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            # A server that is full or gone may not answer; the next look may.
            return


def between(looks: list[Look], start_unix_s: float, end_unix_s: float) -> tuple[Look, Look] | None:
    """The looks nearest to both ends; None where there are not two."""
    if len(looks) < 2:
        return None
    first = min(looks, key=lambda one: abs(one.unix_s - start_unix_s))
    last = min(looks, key=lambda one: abs(one.unix_s - end_unix_s))
    return (first, last) if last.unix_s > first.unix_s else None


def stages_ms(first: Look, last: Look) -> dict[str, float] | None:
    """Where the milliseconds of a request of one text went, on average between two looks.

    ``transport`` is what the way to the engine and back took, ``ingress`` what is neither
    tokenizing nor waiting for an answer: reading, checking, writing JSON. None where the server
    does not tell, or answered no texts.
    """
    if not first.stages or not last.stages:
        return None
    ingress = {name: last.stages[name] - first.stages[name] for name in last.stages}
    if not ingress["requests"]:
        return None
    engine = {name: last.counters[name] - first.counters[name] for name in _COUNTERS}
    requests, texts = max(1, ingress["requests"]), max(1, engine["filled_slots"])
    line, computed = engine["line_s"] / texts, engine["computed_s"] / texts
    # A text waits while its batch is planned; the line's time has that in it.
    plan = engine["plan_s"] / max(1, engine["batches"])
    backend = ingress["backend_s"] / requests
    seconds = {
        "ingress": ingress["total_s"] / requests - backend - ingress["tokens_s"] / requests,
        "tokens": ingress["tokens_s"] / requests,
        "transport": backend - line - computed,
        "line": line - plan,
        "plan": plan,
        "forward": computed,
    }
    return {name: 1000 * value for name, value in seconds.items()}
