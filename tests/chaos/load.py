"""An open loop of clients, and the checks on their answers.

Requests are sent at random times whatever the server does. Each must be answered exactly once and
in time, with its own label or a documented error.
"""

import asyncio
import inspect
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import muxserve.errors
import muxserve.serving.errors
from muxserve.errors import MuxserveError
from tests.chaos.clients import HOST, GrpcDoor, HttpPool, InferDoor, PredictDoor, Reply
from tests.chaos.expected import known_labels, labels

#: An answer is late if it comes this long after its deadline; clients share the server's cores.
SLACK_S = 5.0
#: The allowed errors; ``internal`` is documented too, but would be a bug.
DOCUMENTED = {
    (kind.status, kind.code)
    for module in (muxserve.errors, muxserve.serving.errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, MuxserveError) and kind.code != "internal"
}
DOCUMENTED_GRPC = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("RESOURCE_EXHAUSTED", "UNIMPLEMENTED"),
}


class Door(Protocol):
    """A way in."""

    async def ask(self, text: str, timeout_s: float, num_instances: int | None) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Answered:
    """The outcome of one request.

    Attributes:
        reply: the reply; None if nothing came within the deadline and the slack.
        right: whether the label is that of its own text.
        at_s, seconds: when it was sent, from the start of the load, and how long it took.
    """

    reply: Reply | None
    right: bool
    at_s: float
    seconds: float


@dataclass
class Load:
    """Requests to one server, and their answers by number.

    Attributes:
        port: port of HTTP.
        grpc_port: port of gRPC; None leaves gRPC out.
        rate: requests per second, over all doors.
        timeout_s: deadline of each request.
        num_instances: widest N that requests allow; at 1 the labels are known.
        every_second_elastic: let half of the requests allow any N; their labels are not compared.
        source: address of the clients.
    """

    port: int
    grpc_port: int | None = None
    rate: float = 40.0
    timeout_s: float = 20.0
    num_instances: int | None = 1
    every_second_elastic: bool = False
    source: str = HOST
    sent: int = 0
    answers: dict[int, Answered] = field(default_factory=dict)

    async def run(
        self, seconds: float, during: Callable[[], Awaitable[Any]] | None = None
    ) -> "Load":
        """Send for ``seconds``, or until ``during`` has ended if that takes longer."""
        pool = HttpPool(self.port, self.source)
        known = known_labels()
        doors, over_grpc = self._doors(pool)
        trouble = None if during is None else asyncio.create_task(_called(during))
        rng = random.Random(self.rate)
        began_s = time.monotonic()
        due_s, tasks = began_s, set[asyncio.Task[None]]()
        while time.monotonic() < began_s + seconds or (trouble and not trouble.done()):
            due_s += rng.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            number = self.sent
            self.sent += 1
            text, label = known[number % len(known)]
            one = self._one(number, doors[number % len(doors)], text, label, began_s)
            tasks.add(task := asyncio.create_task(one))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        pool.close()
        if over_grpc is not None:
            await over_grpc.close()
        if trouble is not None:
            await trouble
        return self

    async def capacity(self, seconds: float, clients: int = 48) -> float:
        """Answered requests per second in a closed loop of ``clients``."""
        pool = HttpPool(self.port, self.source)
        doors, over_grpc = self._doors(pool)
        known, numbers, answered = known_labels(), itertools.count(), 0
        end_s = time.monotonic() + seconds

        async def client() -> None:
            nonlocal answered
            while time.monotonic() < end_s:
                number = next(numbers)
                door, n = doors[number % len(doors)], self._width(number)
                reply = await door.ask(known[number % len(known)][0], self.timeout_s, n)
                answered += reply.status == 200

        began_s = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        pool.close()
        if over_grpc is not None:
            await over_grpc.close()
        return answered / (time.monotonic() - began_s)

    def _doors(self, pool: HttpPool) -> tuple[list[Door], GrpcDoor | None]:
        over_http: list[Door] = [PredictDoor(pool), InferDoor(pool, labels())]
        if self.grpc_port is None:
            return over_http, None
        over_grpc = GrpcDoor(self.grpc_port, labels())
        return [*over_http, over_grpc], over_grpc

    def _width(self, number: int) -> int | None:
        """The widest N that a request allows. Their number is odd, so all doors get both kinds."""
        return None if self.every_second_elastic and number % 2 else self.num_instances

    async def _one(self, number: int, door: Door, text: str, label: str, began_s: float) -> None:
        sent_s = time.monotonic()
        reply: Reply | None = None
        try:
            async with asyncio.timeout(self.timeout_s + SLACK_S):
                reply = await door.ask(text, self.timeout_s, self._width(number))
        except TimeoutError:
            pass
        assert number not in self.answers, f"request {number} was answered twice"
        known = [label] if self._width(number) == 1 else labels()
        right = reply is not None and reply.status == 200 and reply.label in known
        seconds = time.monotonic() - sent_s
        self.answers[number] = Answered(reply, right, sent_s - began_s, seconds)

    def check(self, allowed: Collection[str] = (), connections_may_end: bool = False) -> None:
        """Raise AssertionError unless every promise was kept.

        Args:
            allowed: error codes that this failure may cause; for gRPC the name of their status
                counts.
            connections_may_end: whether the process that holds the connections dies here.
        """
        assert self.sent, "nothing was sent"
        assert len(self.answers) == self.sent, (
            f"{self.sent - len(self.answers)} requests have no answer at all"
        )
        hung = [number for number, one in self.answers.items() if one.reply is None]
        assert not hung, f"{len(hung)} requests hung past their deadline of {self.timeout_s} s"
        replies = [one.reply for one in self.answers.values() if one.reply is not None]
        for number, one in self.answers.items():
            reply = one.reply
            assert reply is None or reply.status != 200 or one.right, (
                f"request {number} got the label {reply.label!r}, which is not its own"
            )
        odd = Counter(
            (one.status, one.code)
            for one in replies
            if one.status > 1 and one.status != 200 and (one.status, one.code) not in DOCUMENTED
        )
        odd += Counter(
            (1, one.code) for one in replies if one.status == 1 and one.code not in DOCUMENTED_GRPC
        )
        assert not odd, f"errors that no document has: {dict(odd)}"
        grpc_names = {_GRPC[code] for code in allowed if code in _GRPC}
        others = {
            code: count
            for code, count in self.errors.items()
            if code not in {*allowed, *grpc_names}
            and not (connections_may_end and code == "connection_ended")
        }
        assert not others, f"errors that this must not cause: {others}"

    @property
    def errors(self) -> Counter[str]:
        """Numbers of failed requests by error code."""
        replies = [one.reply for one in self.answers.values()]
        return Counter(
            "hung" if one is None else one.code for one in replies if one is None or one.code
        )

    @property
    def right(self) -> int:
        """Number of requests that got their own label."""
        return sum(one.right for one in self.answers.values())

    def quantile_ms(self, q: float, after_s: float = 0.0) -> float:
        """Latency quantile of the answered requests that were sent after ``after_s``."""
        found = sorted(
            one.seconds
            for one in self.answers.values()
            if one.reply is not None and one.reply.status == 200 and one.at_s >= after_s
        )
        return 1000 * found[min(len(found) - 1, int(q * len(found)))] if found else float("nan")

    def last_error_s(self) -> float:
        """When the last failed request was sent; 0 if none failed."""
        bad = [one.at_s for one in self.answers.values() if one.reply is None or one.reply.code]
        return max(bad, default=0.0)

    def figures(self) -> dict[str, Any]:
        """The figures for the table of docs/reliability.md."""
        return {
            "requests": self.sent,
            "right": self.right,
            "errors": dict(sorted(self.errors.items())),
            "p50_ms": round(self.quantile_ms(0.5), 1),
            "p99_ms": round(self.quantile_ms(0.99), 1),
        }


#: The gRPC status name of each error code.
_GRPC = {
    "overloaded": "UNAVAILABLE",
    "not_ready": "UNAVAILABLE",
    "deadline_exceeded": "DEADLINE_EXCEEDED",
    "forward_failed": "INTERNAL",
    "invalid_input": "INVALID_ARGUMENT",
}


async def _called(during: Callable[[], Awaitable[Any]]) -> Any:
    return await during()


def fates_of(answers: Sequence[Answered]) -> Counter[str]:
    """The counts that a server must report for these answers."""
    found: Counter[str] = Counter()
    for one in answers:
        reply = one.reply
        if reply is None or reply.status == 0:
            found["unknown"] += 1
        elif reply.status == 200:
            found["answered"] += 1
        elif reply.status == 504 or reply.code == "DEADLINE_EXCEEDED":
            found["expired"] += 1
        elif reply.status == 500 or reply.code == "INTERNAL":
            found["failed"] += 1
        else:
            found["refused"] += 1
    return found
