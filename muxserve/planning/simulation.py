"""Engines without a model: arrivals and forward times in; latencies, N and replicas over time out.

A discrete-event simulation of replicas whose lines are served by the engine's own policy and
planner, so N is what an engine would choose. Only the clock and the forwards are simulated. Pure:
the same arrivals and times give the same result.
"""

import heapq
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Protocol

from muxserve.engine.batching import next_batch
from muxserve.engine.line import BULK_TEXTS
from muxserve.engine.policy import widest_drain_s, work_s
from muxserve.engine.room import Room
from muxserve.engine.slots import Plan, sight
from muxserve.engine.stats import EngineStats
from muxserve.engine.times import ForwardTimes
from muxserve.engine.turns import Turns


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
    """The replicas that serve.

    Attributes:
        count: how many there are at first. Each has a line of its own; a text goes to the shortest.
        widths: every N that the load may choose, ascending.
        target_s: the latency target.
        in_flight: forwards that one replica runs at once.
        max_groups: most groups of a forward.
        max_waiting: how many texts of one caller alone a line takes; more are shed.
    """

    count: int
    widths: Sequence[int]
    target_s: float
    in_flight: int = 1
    max_groups: int = 32
    max_waiting: int = 4096


class Scaler(Protocol):
    """Decides how many replicas there are.

    Attributes:
        every_s: seconds between its decisions.
        start_s: seconds from a decision until a replica that it added serves.
        until_s: its last decision.
    """

    every_s: float
    start_s: float
    until_s: float

    def replicas(self, now_s: float, asked: int, running: Mapping[int, EngineStats]) -> int:
        """Replicas to ask for.

        Args:
            now_s: seconds since the beginning.
            asked: how many are asked for now.
            running: counters of each that serves, by its number.
        """


@dataclass(eq=False, slots=True)
class SimulatedText:
    """A text that arrives."""

    arrival_s: float
    length: int
    max_num_instances: int | None = None
    isolation_key: str | None = None
    caller: str = ""
    weight: float = 1.0


@dataclass(slots=True)
class Simulated:
    """What would happen.

    Attributes:
        seconds: from the first moment to the last answer.
        arrivals_s, latencies_s, num_instances, callers: of each answered text, in the order of
            answers.
        shed: texts refused for want of room, of all callers; ``shed_by`` of each.
        slots, filled_slots: of all forwards.
        busy_s: seconds that forwards took, of all replicas together.
        replicas: (seconds, how many were asked for from then on).
    """

    seconds: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    num_instances: list[int] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    shed: int = 0
    shed_by: Counter[str] = field(default_factory=Counter)
    slots: int = 0
    filled_slots: int = 0
    busy_s: float = 0.0
    replicas: list[tuple[float, int]] = field(default_factory=list)

    def quantile_s(self, q: float) -> float:
        """Latency quantile in seconds; infinite if it falls on texts that were shed."""
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


def simulate(
    texts: Sequence[SimulatedText],
    times: ForwardTimes,
    replicas: Replicas,
    scaler: Scaler | None = None,
) -> Simulated:
    """Serve ``texts``, in order of arrival, with forwards that take as long as ``times`` say."""
    return _Simulation(times, replicas, scaler).run(texts)


@dataclass(eq=False, slots=True)
class _Replica:
    """One line, and the forwards that serve it; ``leaving`` once it takes no more texts."""

    number: int
    ready: bool
    room: Room
    leaving: bool = False
    line: Turns[SimulatedText] = field(default_factory=Turns)
    running: list[Plan[SimulatedText]] = field(default_factory=list)
    stats: EngineStats = field(default_factory=EngineStats)

    @property
    def texts(self) -> int:
        return len(self.line) + sum(len(batch.texts) for batch in self.running)


class _Simulation:
    """The state of one simulation."""

    def __init__(self, times: ForwardTimes, replicas: Replicas, scaler: Scaler | None) -> None:
        self._times = times
        self._settings = replicas
        self._scaler = scaler
        self._sight = sight(replicas.widths, replicas.max_groups)
        self._numbers = count()
        self._order = count()
        self._now = 0.0
        self._replicas = [self._replica(ready=True) for _ in range(replicas.count)]
        # (when, order, whose, batch that ends); without a batch a replica is ready, and without a
        # replica the scaler decides.
        self._events: list[tuple[float, int, _Replica | None, Plan[SimulatedText] | None]] = []
        self._nowhere: list[SimulatedText] = []
        self._result = Simulated(replicas=[(0.0, replicas.count)])

    def _replica(self, *, ready: bool) -> _Replica:
        room = Room(self._settings.max_waiting, BULK_TEXTS, lambda: self._now)
        return _Replica(next(self._numbers), ready, room)

    def run(self, texts: Sequence[SimulatedText]) -> Simulated:
        if self._scaler is not None:
            self._at(self._scaler.every_s, None)
        for text in texts:
            self._go_on_until(text.arrival_s)
            self._arrive(text, text.arrival_s)
        self._go_on_until(float("inf"))
        return self._result

    def _at(
        self, when: float, replica: _Replica | None, batch: Plan[SimulatedText] | None = None
    ) -> None:
        heapq.heappush(self._events, (when, next(self._order), replica, batch))

    def _go_on_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            now, _, replica, batch = heapq.heappop(self._events)
            self._now = now
            if replica is None:
                self._scale(now)
            elif batch is None:
                replica.ready = True
                waiting, self._nowhere = self._nowhere, []
                for text in waiting:
                    self._arrive(text, now)
            else:
                self._finish(replica, batch, now)

    def _arrive(self, text: SimulatedText, now: float) -> None:
        self._now = now
        serving = [one for one in self._replicas if one.ready and not one.leaving]
        if not serving:
            self._nowhere.append(text)
            return
        replica = min(serving, key=lambda one: one.texts)
        if not replica.room.admits(text.caller, 1, text.weight):
            self._result.shed += 1
            self._result.shed_by[text.caller] += 1
            replica.stats.shed += 1
            return
        replica.stats.joined += 1
        replica.room.add(text.caller, 1)
        widest, cap = self._settings.widths[-1], text.max_num_instances
        cost = text.length / (widest if cap is None else min(cap, widest))
        replica.line.add(text, text.caller, cost, text.weight)
        self._start_forwards(replica, now)

    def _start_forwards(self, replica: _Replica, now: float) -> None:
        settings, times, line, own = self._settings, self._times, replica.line, replica.running
        while line and len(own) < settings.in_flight:
            waiting = list(islice(line.order(by_turns=replica.room.contended), self._sight))
            batch = next_batch(
                waiting,
                [text for batch in own for text in batch.texts],
                replica.room.floods,
                times,
                settings.widths,
                settings.target_s,
                in_flight=settings.in_flight,
                max_groups=settings.max_groups,
                behind=len(line) - len(waiting),
            )
            if isinstance(batch, int):
                return
            self._take(replica, batch)
            own.append(batch)
            seconds = times.predict(batch.num_instances, batch.length, batch.groups)
            self._result.busy_s += seconds
            self._result.slots += len(batch.slots)
            self._result.filled_slots += len(batch.texts)
            self._at(now + seconds, replica, batch)

    def _take(self, replica: _Replica, batch: Plan[SimulatedText]) -> None:
        callers = [text.caller for text in batch.texts]
        replica.line.take(batch.texts, callers, batch.costs() if replica.line.shared else None)
        for caller in callers:
            replica.room.remove(caller, 1)

    def _finish(self, replica: _Replica, batch: Plan[SimulatedText], now: float) -> None:
        result = self._result
        result.seconds = now
        replica.running.remove(batch)
        replica.stats.count(
            batch.num_instances,
            slots=len(batch.slots),
            distinct=len(batch.texts),
            answered=len(batch.texts),
            seconds=self._times.predict(batch.num_instances, batch.length, batch.groups),
            work_s=work_s(batch.texts, self._times, self._settings.widths)
            / self._settings.in_flight,
        )
        for text in batch.texts:
            result.arrivals_s.append(text.arrival_s)
            result.latencies_s.append(now - text.arrival_s)
            result.num_instances.append(batch.num_instances)
            result.callers.append(text.caller)
        self._start_forwards(replica, now)

    def _scale(self, now: float) -> None:
        scaler = self._scaler
        assert scaler is not None
        asked = [one for one in self._replicas if not one.leaving]
        running = {one.number: self._stats(one) for one in asked if one.ready}
        wanted = scaler.replicas(now, len(asked), running)
        for _ in range(wanted - len(asked)):
            replica = self._replica(ready=False)
            self._replicas.append(replica)
            self._at(now + scaler.start_s, replica)
        # Those that do not serve yet go first, then the youngest.
        for replica in sorted(asked, key=lambda one: (one.ready, -one.number))[
            : max(0, len(asked) - wanted)
        ]:
            replica.leaving = True
        if wanted != len(asked):
            self._result.replicas.append((now, wanted))
        self._replicas = [
            one for one in self._replicas if not one.leaving or one.texts or not one.ready
        ]
        if now + scaler.every_s <= scaler.until_s:
            self._at(now + scaler.every_s, None)

    def _stats(self, replica: _Replica) -> EngineStats:
        texts = [
            *replica.line.order(),
            *(text for batch in replica.running for text in batch.texts),
        ]
        drain_s = widest_drain_s(texts, self._times, self._settings.widths)
        return replace(
            replica.stats,
            waiting=len(replica.line),
            drain_s=drain_s / self._settings.in_flight,
        )
