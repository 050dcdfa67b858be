"""Counters of an engine, written by its forward threads and copied for readers."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine started.

    Attributes:
        waiting: texts in the line now.
        drain_s: predicted seconds to serve what waits and what runs now, each text at the widest N
            that it allows: how long the line is when width is all spent.
        joined: texts that came into the line.
        texts: texts answered, each copy counted.
        batches: forwards.
        slots: slots of all batches; ``filled_slots`` of them held a text for the first time.
        texts_by_num_instances: distinct texts computed at each N.
        last_num_instances: N of the last batch, 0 before the first.
        shed, expired, cancelled, failed: texts refused, late, no longer wanted, and failed.
        forward_s: seconds spent in forwards, of all that ran at once together.
        line_s, computed_s: seconds that distinct texts waited in the line, and were in forwards,
            summed over texts.
        plan_s: seconds spent deciding and planning.
        work_s: predicted seconds of this engine that the computed texts would have taken in full
            batches at the widest N that each allows. Its growth per second is the share of the
            engine that the traffic needs at least, whatever N served it.
    """

    waiting: int = 0
    drain_s: float = 0.0
    joined: int = 0
    texts: int = 0
    batches: int = 0
    slots: int = 0
    filled_slots: int = 0
    texts_by_num_instances: dict[int, int] = field(default_factory=dict)
    last_num_instances: int = 0
    shed: int = 0
    expired: int = 0
    cancelled: int = 0
    failed: int = 0
    forward_s: float = 0.0
    line_s: float = 0.0
    computed_s: float = 0.0
    plan_s: float = 0.0
    work_s: float = 0.0

    @property
    def occupancy(self) -> float:
        """Filled slots / slots, over all batches; 1 before the first."""
        return self.filled_slots / self.slots if self.slots else 1.0

    def count(
        self, n: int, *, slots: int, distinct: int, answered: int, seconds: float, work_s: float
    ) -> None:
        """One forward at N=n: its slots, the distinct texts in them, and the texts answered."""
        self.batches += 1
        self.slots += slots
        self.filled_slots += distinct
        self.texts += answered
        by_n = self.texts_by_num_instances
        by_n[n] = by_n.get(n, 0) + distinct
        self.last_num_instances = n
        self.forward_s += seconds
        self.computed_s += seconds * distinct
        self.work_s += work_s
