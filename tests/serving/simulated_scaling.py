"""The autoscaling policy on simulated engines, with what Ray does around it."""

from collections import deque
from collections.abc import Callable, Mapping

from muxserve.engine.stats import EngineStats
from muxserve.planning.simulation import Phase, Replicas, Simulated, poisson_arrivals, simulate
from muxserve.serving.demand import DemandMeter
from muxserve.serving.ray.autoscaling import Pending, Scaling, seen_by, target_replicas
from tests.engine.simulated_times import linear_times

#: A slow engine, so that half an hour takes seconds: about 4 texts/s at N=1 and 20 at N=5.
TIMES = linear_times(fixed=0.5, per_token=5e-3)
ONE_AT_WIDEST = 1 / (TIMES.predict(5, 32, 8) / 40)
LOOK_BACK_S = 30.0


class Scaled:
    """Measures, averages and decides as Ray and the policy do, every five seconds."""

    every_s = 5.0

    def __init__(self, scaling: Scaling, until_s: float, start_s: float) -> None:
        self.start_s = start_s
        self.until_s = until_s
        self.scaling = scaling
        #: (seconds, N of the last batch) at each decision.
        self.widths: list[tuple[float, set[int]]] = []
        self._meters: dict[int, DemandMeter] = {}
        self._measured: dict[int, deque[tuple[float, dict[str, float]]]] = {}
        self._pending: Pending | None = None

    def replicas(self, now_s: float, asked: int, running: Mapping[int, EngineStats]) -> int:
        self.widths.append((now_s, {stats.last_num_instances for stats in running.values()}))
        metrics: dict[str, dict[int, float]] = {}
        for number, stats in running.items():
            if number not in self._meters:
                self._meters[number] = DemandMeter(now_s - self.every_s)
                self._measured[number] = deque()
            measured = self._measured[number]
            measured.append((now_s, self._meters[number].measure(stats, now_s)))
            while measured[0][0] <= now_s - LOOK_BACK_S:
                measured.popleft()
            for name in measured[0][1]:
                values = [values[name] for _, values in measured]
                metrics.setdefault(name, {})[number] = sum(values) / len(values)
        wanted, self._pending = target_replicas(
            seen_by(asked, metrics), self.scaling, self._pending, now_s
        )
        return wanted


def scaled(
    phases: list[Phase],
    *,
    count: int = 1,
    start_s: float = 60.0,
    max_waiting: int = 4096,
    settings: Callable[[Scaling], Scaling] = lambda scaling: scaling,
) -> tuple[Simulated, Scaled]:
    """Serve Poisson arrivals with the policy's defaults; at most eight replicas."""
    scaler = Scaled(
        settings(Scaling(1, 8, 5.0, 30.0, 300.0, 300.0)),
        sum(phase.seconds for phase in phases),
        start_s,
    )
    replicas = Replicas(
        count=count, widths=[1, 2, 5], target_s=5.0, max_groups=8, max_waiting=max_waiting
    )
    arrivals = poisson_arrivals(phases, [32])
    return simulate(arrivals, TIMES, replicas, scaler), scaler
