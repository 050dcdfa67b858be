"""Arrivals that do not wait for answers: what every load test here is made of.

A user is a stream of requests at random times (Poisson), at ``--rate-per-user``; users add up to
the load. Latency counts from the moment a request was due, so a slow server, or a busy load
generator, cannot hide the wait that it causes (coordinated omission).
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Group
from locust import User, constant, events, task

log = logging.getLogger(__name__)

#: Answers by the N that served them, of this process; on a master, of all workers.
WIDTHS: Counter[int] = Counter()

#: Seconds that requests under way get to end when the test stops.
_LAST_S = 35.0


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    group = parser.add_argument_group("muxserve")
    group.add_argument(
        "--rate-per-user",
        type=float,
        default=10.0,
        help="Requests per second of each user, at random times; users times this is the load.",
    )
    group.add_argument(
        "--texts", default="", help="File with a text per line; by default texts are generated."
    )
    group.add_argument(
        "--max-num-instances", type=int, default=0, help="Widest N to ask for; 0 leaves it open."
    )


class OpenLoopUser(User):
    """Sends at its rate; a subclass's ``send`` makes one request and blocks until its answer."""

    abstract = True
    wait_time = constant(0)
    send: Callable[[float], None]

    def on_start(self) -> None:
        self._under_way = Group()
        self._random = random.Random()
        self._due_s = time.perf_counter()

    @task
    def arrive(self) -> None:
        self._due_s += self._random.expovariate(self.environment.parsed_options.rate_per_user)
        gevent.sleep(max(0.0, self._due_s - time.perf_counter()))
        self._under_way.spawn(self.send, self._due_s)

    def on_stop(self) -> None:
        self._under_way.join(timeout=_LAST_S)


@events.report_to_master.add_listener
def _tell_master(client_id: str, data: dict[str, Any]) -> None:
    data["widths"] = dict(WIDTHS)
    WIDTHS.clear()


@events.worker_report.add_listener
def _hear_worker(client_id: str, data: dict[str, Any]) -> None:
    WIDTHS.update({int(n): count for n, count in data.get("widths", {}).items()})


@events.test_stop.add_listener
def _say_widths(environment: Any, **_: Any) -> None:
    if answers := sum(WIDTHS.values()):
        mean = sum(n * count for n, count in WIDTHS.items()) / answers
        shares = ", ".join(f"N={n}: {count / answers:.1%}" for n, count in sorted(WIDTHS.items()))
        log.info("served at a mean N of %.2f (%s)", mean, shares)
