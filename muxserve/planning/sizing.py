"""How many replicas a load needs at each N: the fewest that meet the latency target when simulated.

Only forwards are counted. The cores that HTTP and tokenizing take come on top.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muxserve.engine.config import EngineConfig
from muxserve.engine.widths import allowed_widths
from muxserve.errors import InvalidInput
from muxserve.models.family import FamilySpec
from muxserve.planning.search import bracket_limit
from muxserve.planning.simulation import Replicas, Simulated, SimulatedText, simulate
from muxserve.planning.times_file import MachineTimes

#: Stretches of time that a summary's timeline has.
TIMELINE = 12


@dataclass(frozen=True)
class Sizing:
    """The fewest replicas that meet the target at one choice of N, or the most that were tried.

    Attributes:
        choice: an N, or ``elastic`` where the load chooses it.
        replicas: how many.
        forwards: how many forwards all replicas run at once.
        meets_target: whether 99% of the texts are answered in time, and none is shed.
        simulated: what would happen.
        quality: mean measured quality of the N that served; None if one was not measured.
    """

    choice: str
    replicas: int
    forwards: int
    meets_target: bool
    simulated: Simulated
    quality: float | None

    def summary(self) -> dict[str, Any]:
        """The figures as JSON has them, with N over time; a quantile that was shed is None."""
        one = self.simulated
        return {
            "num_instances": self.choice,
            "replicas": self.replicas,
            "meets_target": self.meets_target,
            "mean_num_instances": _finite(one.mean_num_instances),
            "p50_ms": _finite(1000 * one.quantile_s(0.5)),
            "p99_ms": _finite(1000 * one.quantile_s(0.99)),
            "shed": one.shed,
            "utilization": one.busy_s / one.seconds / self.forwards if one.seconds else 0.0,
            "occupancy": one.filled_slots / one.slots if one.slots else 1.0,
            "quality": self.quality,
            "timeline": _timeline(one),
        }


def size_each_choice(
    arrivals: Sequence[SimulatedText],
    measured: MachineTimes,
    spec: FamilySpec,
    target_s: float,
    max_replicas: int,
) -> list[Sizing]:
    """Size every N by itself, then all of them together where the load may choose.

    Args:
        arrivals: the load.
        measured: forward times of the machine that would serve it.
        spec: the family; an N that it does not have is left out.
        target_s: 99% of the texts are to be answered within this time.
        max_replicas: the most to try.

    Raises:
        InvalidInput: if no N of the family was measured.
    """
    known = [n for n in measured.times.widths if n in {m.num_instances for m in spec.members}]
    if not known:
        raise InvalidInput(
            f"the times are of N={measured.times.widths}, the family has other members",
            field="times",
        )
    elastic = allowed_widths(spec, known, EngineConfig())
    choices = [(str(n), [n]) for n in known]
    if len(elastic) > 1:
        choices.append(("elastic", elastic))
    return [
        _size(choice, widths, arrivals, measured, spec, target_s, max_replicas)
        for choice, widths in choices
    ]


def _size(
    choice: str,
    widths: list[int],
    arrivals: Sequence[SimulatedText],
    measured: MachineTimes,
    spec: FamilySpec,
    target_s: float,
    max_replicas: int,
) -> Sizing:
    tried: dict[int, Simulated] = {}

    def meets_target(count: int) -> bool:
        return tried[count].shed == 0 and tried[count].quantile_s(0.99) <= target_s

    def are_too_few(count: int) -> bool:
        replicas = Replicas(count, widths, target_s, in_flight=measured.in_flight)
        tried[count] = simulate(arrivals, measured.times, replicas)
        return not meets_target(count)

    def between(too_few: int, enough: int) -> int:
        return (too_few + enough) // 2

    too_few, enough = bracket_limit(are_too_few, 1, between, most=max_replicas)
    count = too_few if enough is None else enough
    return Sizing(
        choice,
        count,
        count * measured.in_flight,
        enough is not None,
        tried[count],
        _quality(tried[count].num_instances, spec),
    )


def _quality(num_instances: Sequence[int], spec: FamilySpec) -> float | None:
    of = {m.num_instances: m.quality.value for m in spec.members if m.quality is not None}
    if not num_instances or any(n not in of for n in set(num_instances)):
        return None
    return sum(of[n] for n in num_instances) / len(num_instances)


def _timeline(one: Simulated) -> list[dict[str, float]]:
    """Arrivals per second, mean N and mean latency of equal stretches of time, by arrival."""
    if not one.arrivals_s:
        return []
    width = max(one.arrivals_s) / TIMELINE or 1.0
    stretches: list[list[int]] = [[] for _ in range(TIMELINE)]
    for index, arrival_s in enumerate(one.arrivals_s):
        stretches[min(TIMELINE - 1, int(arrival_s / width))].append(index)
    return [
        {
            "from_s": number * width,
            "texts_per_s": len(stretch) / width,
            "mean_num_instances": sum(one.num_instances[i] for i in stretch) / len(stretch),
            "mean_ms": 1000 * sum(one.latencies_s[i] for i in stretch) / len(stretch),
        }
        for number, stretch in enumerate(stretches)
        if stretch
    ]


def _finite(value: float) -> float | None:
    """The value, or None for infinity and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
