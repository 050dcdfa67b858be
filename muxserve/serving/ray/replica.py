"""A Ray deployment that holds one engine: bundles of token ids in, flat arrays of logits out.

The engine loads and warms up in the constructor, so Ray calls the replica running only when it can
answer. It never sees text, and one failed text never fails its bundle.
"""

import logging
import time
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from typing import Any

import ray

from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.engine.request import Outcome
from muxserve.errors import MuxserveError
from muxserve.serving.backend import counters
from muxserve.serving.bundles import Bundle, BundleAnswer, pack_answer, unpack
from muxserve.serving.demand import DemandMeter
from muxserve.serving.ray.cycle_collector import collect_rarely
from muxserve.serving.ray.metrics import RayMetrics


def log_through_ray() -> None:
    """Send what muxserve logs in this process to where Ray Serve's own log goes, in its format.

    Tuned for throughput, Ray holds a thousand lines back until one of them is an error. Warnings
    are flushed too: they are for people who look now.
    """
    of_ray = logging.getLogger("ray.serve")
    logging.getLogger("muxserve").parent = of_ray
    for handler in of_ray.handlers:
        if isinstance(handler, MemoryHandler):
            handler.flushLevel = min(handler.flushLevel, logging.WARNING)


def load_engine(family: str, config: EngineConfig) -> Engine:
    """The engine of this Ray process.

    Its forward has as many threads as Ray reserved CPUs for the process: the others belong to other
    replicas. Ray sets OMP_NUM_THREADS to that number too, but not where the user had set it, and
    OpenMP reads it for the main thread, which is not the one that runs forwards.
    """
    log_through_ray()
    if config.torch_threads is None:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        config = config.model_copy(update={"torch_threads": max(1, int(cpus))})
    return Engine.from_family(family, config)


async def predict_bundle(engine: Engine, bundle: Bundle) -> BundleAnswer:
    """Submit every request of a bundle and await all of their outcomes."""
    requests = unpack(bundle, time.monotonic())
    outcomes: list[Outcome] = []
    answers = await engine.predict_each(requests)
    for (tokens, _), answer in zip(requests, answers, strict=True):
        outcomes += [answer] * len(tokens) if isinstance(answer, MuxserveError) else answer
    spec = engine.family.spec
    return pack_answer(outcomes, len(spec.labels), of_tokens=spec.of_tokens)


class MuxReplica:
    """One engine of a family."""

    def __init__(self, family: str, config: EngineConfig) -> None:
        self._engine = load_engine(family, config)
        self._demand = DemandMeter(time.monotonic())
        RayMetrics(self._stats_here)
        collect_rarely()

    async def predict_bundle(self, bundle: Bundle) -> BundleAnswer:
        """Answer every text of a bundle."""
        if bundle.held_back is not None:
            self._demand.held_back(bundle.held_back, time.monotonic())
        return await predict_bundle(self._engine, bundle)

    async def stats(self) -> dict[str, Any]:
        """The engine's counters."""
        return counters(self._engine)

    def _stats_here(self) -> tuple[Mapping[str, Any], bool]:
        return {"engines": [counters(self._engine)]}, self._engine.alive

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What came since the last call; called by Ray, for the autoscaling policy."""
        return self._demand.measure(self._engine.stats(), time.monotonic())

    async def check_health(self) -> None:
        """Raise where a forward thread has ended or hangs; Ray then replaces the replica."""
        self._engine.check_health()
