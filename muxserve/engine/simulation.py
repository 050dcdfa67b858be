"""Arrivals and forward times in, latencies and N over time out: the engine without a model.

A discrete-event simulation of replicas whose lines are served by the engine's own policy and
planner, so that what it says of N is what the engine would do. Only the clock and the forwards are
simulated. Pure: the same arrivals and times give the same result.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from muxserve.engine.policy import decide
from muxserve.engine.slots import Plan, plan, sight
from muxserve.engine.times import ForwardTimes


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of Poisson arrivals.

    Attributes:
        rate: texts per second.
        seconds: how long it lasts.
    """

    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Replicas:
    """What serves.

    Attributes:
        count: replicas, each with a line of its own; a text goes to the shortest.
        widths: every N that load may choose, ascending.
        target_s: the latency target.
        in_flight: forwards that one replica runs at once.
        max_groups: most groups of a forward.
        max_waiting: texts that one line takes; more are shed.
    """

    count: int
    widths: Sequence[int]
    target_s: float
    in_flight: int = 1
    max_groups: int = 32
    max_waiting: int = 4096


@dataclass(eq=False, slots=True)
class SimulatedText:
    """One text on its way."""

    arrival_s: float
    length: int
    max_num_instances: int | None = None
    isolation_key: str | None = None


@dataclass(slots=True)
class Simulated:
    """What would have happened.

    Attributes:
        seconds: from the first moment to the last answer.
        arrivals_s, latencies_s, num_instances: of each answered text, in the order of answers.
        shed: texts refused by a full line.
        slots, filled_slots: of all forwards.
        busy_s: seconds that forwards took, of all replicas together.
    """

    seconds: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    num_instances: list[int] = field(default_factory=list)
    shed: int = 0
    slots: int = 0
    filled_slots: int = 0
    busy_s: float = 0.0

    def quantile_s(self, q: float) -> float:
        """Latency quantile in seconds; infinite where texts were shed beyond it."""
        rank = int(q * (len(self.latencies_s) + self.shed))
        if rank >= len(self.latencies_s):
            return float("inf")
        return sorted(self.latencies_s)[rank]

    @property
    def mean_num_instances(self) -> float:
        """N that served, mean over texts; NaN without any."""
        return sum(self.num_instances) / len(self.num_instances) if self.num_instances else _NAN


_NAN = float("nan")


def poisson_arrivals(
    phases: Sequence[Phase], lengths: Sequence[int], seed: int = 0
) -> list[SimulatedText]:
    """Texts of lengths drawn from ``lengths``, arriving at random at each phase's rate."""
    rng = random.Random(seed)
    texts: list[SimulatedText] = []
    start = 0.0
    for phase in phases:
        now, end = start, start + phase.seconds
        while phase.rate > 0 and (now := now + rng.expovariate(phase.rate)) < end:
            texts.append(SimulatedText(now, rng.choice(lengths)))
        start = end
    return texts


def simulate(texts: Sequence[SimulatedText], times: ForwardTimes, replicas: Replicas) -> Simulated:
    """Serve ``texts``, in order of arrival, with forwards that take as long as ``times`` say."""
    result = Simulated()
    lines: list[dict[SimulatedText, None]] = [{} for _ in range(replicas.count)]
    running: list[list[Plan[SimulatedText]]] = [[] for _ in range(replicas.count)]
    ends: list[tuple[float, int, int, Plan[SimulatedText]]] = []
    started = 0

    def start_forwards(index: int, now: float) -> None:
        nonlocal started
        line, own = lines[index], running[index]
        while line and len(own) < replicas.in_flight:
            waiting = list(islice(line, sight(replicas.widths, replicas.max_groups)))
            decision = decide(
                [text.length for text in waiting],
                [text.length for batch in own for text in batch.texts],
                times,
                replicas.widths,
                replicas.target_s,
                in_flight=replicas.in_flight,
                max_groups=replicas.max_groups,
                behind=len(line) - len(waiting),
            )
            if len(waiting) < decision.enough:
                return
            batch = plan(
                waiting, decision.num_instances, times, replicas.widths, decision.max_groups
            )
            for text in batch.texts:
                del line[text]
            own.append(batch)
            seconds = times.predict(batch.num_instances, batch.length, batch.groups)
            result.busy_s += seconds
            result.slots += len(batch.slots)
            result.filled_slots += len(batch.texts)
            started += 1
            heapq.heappush(ends, (now + seconds, started, index, batch))

    def finish_until(now: float) -> None:
        while ends and ends[0][0] <= now:
            end, _, index, batch = heapq.heappop(ends)
            result.seconds = end
            running[index].remove(batch)
            for text in batch.texts:
                result.arrivals_s.append(text.arrival_s)
                result.latencies_s.append(end - text.arrival_s)
                result.num_instances.append(batch.num_instances)
            start_forwards(index, end)

    for text in texts:
        finish_until(text.arrival_s)
        index = min(
            range(replicas.count),
            key=lambda i: len(lines[i]) + sum(len(batch.texts) for batch in running[i]),
        )
        if len(lines[index]) >= replicas.max_waiting:
            result.shed += 1
            continue
        lines[index][text] = None
        start_forwards(index, text.arrival_s)
    finish_until(float("inf"))
    return result
