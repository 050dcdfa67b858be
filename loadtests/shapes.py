"""Loads over time, in users; each user is ``--rate-per-user`` requests per second.

    locust -f loadtests/locustfile.py,loadtests/shapes.py --host http://127.0.0.1:8000 \
      --headless OneText --load burst --steady 5 --factor 10
"""

import math
from collections.abc import Callable
from typing import Any

from locust import LoadTestShape, events

#: Users that start or stop per second: a burst is a burst.
_AT_ONCE = 1000.0


def burst(at: float, factor: float) -> float:
    """Steady load, ``factor`` times that, and steady load again."""
    return factor if 1 <= at < 2 else 1.0


def steps(at: float, factor: float) -> float:
    """Five steps up to ``factor`` times the load: where does latency leave its target?"""
    return 1 + (factor - 1) * int(at) / 4


def diurnal(at: float, factor: float) -> float:
    """A day: one wave between the steady load and ``factor`` times it."""
    return 1 + (factor - 1) * (1 - math.cos(2 * math.pi * at / 10)) / 2


#: Each load with its length, in stretches; it gives the load over the steady one at a moment.
LOADS: dict[str, tuple[int, Callable[[float, float], float]]] = {
    "burst": (3, burst),
    "steps": (5, steps),
    "diurnal": (10, diurnal),
}


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    group = parser.add_argument_group("muxserve load over time")
    group.add_argument("--load", choices=LOADS, default="burst", help="How the load changes.")
    group.add_argument("--steady", type=int, default=5, help="Users of steady load.")
    group.add_argument("--factor", type=float, default=10.0, help="Of the peak over that.")
    group.add_argument("--stretch", type=float, default=30.0, help="Seconds of each stretch.")


class OverTime(LoadTestShape):
    """Users as ``--load`` says."""

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        stretches, times = LOADS[options.load]
        at = self.get_run_time() / options.stretch
        if at >= stretches:
            return None
        return max(1, round(options.steady * times(at, options.factor))), _AT_ONCE
