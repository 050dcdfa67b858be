"""What a server says of itself while it is loaded: occupancy, line and processor time."""

import http.client
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

PERIOD_S = 1.0


@dataclass(frozen=True)
class Look:
    """Counters at one time; from the start of the server, summed over its engines.

    Attributes:
        unix_s: when.
        cpu_s: processor seconds of its processes; NaN where they are not known.
        slots, filled: slots of all batches, and those with a text.
        waiting: texts in line.
    """

    unix_s: float
    cpu_s: float
    slots: int = 0
    filled: int = 0
    waiting: int = 0


class Watch:
    """Looks every second until the block ends, on a thread of its own."""

    def __init__(
        self, cpu_seconds: Callable[[], float], stats: Callable[[], dict[str, Any]] | None
    ) -> None:
        """Args:
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
            engines = [one for one in content.get("engines", []) if "slots" in one]
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            # A server that is full or gone may not answer; the next look may.
            if not math.isnan(cpu_s) and self._stats is None:
                self.looks.append(Look(now, cpu_s))
            return
        self.looks.append(
            Look(
                now,
                cpu_s,
                sum(one["slots"] for one in engines),
                sum(one["filled_slots"] for one in engines),
                sum(one["waiting"] for one in engines),
            )
        )


def between(looks: list[Look], start_unix_s: float, end_unix_s: float) -> tuple[Look, Look] | None:
    """The looks nearest to both ends; None where there are not two."""
    if len(looks) < 2:
        return None
    first = min(looks, key=lambda one: abs(one.unix_s - start_unix_s))
    last = min(looks, key=lambda one: abs(one.unix_s - end_unix_s))
    return (first, last) if last.unix_s > first.unix_s else None
