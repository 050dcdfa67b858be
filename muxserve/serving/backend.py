"""The joint between an ingress and whatever answers: tokens of one request in, outcomes out.

``LocalBackend`` is the engine of this process; ``muxserve.serving.bundling`` has the one that calls
replicas. A backend never looks at texts, and never answers a request that was cancelled.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from muxserve.engine.engine import Engine
from muxserve.engine.request import Outcome, RequestOptions, Tokens
from muxserve.serving.demand import DemandMeter


class Backend(Protocol):
    """Answers requests for an ingress."""

    async def predict(self, tokens: Sequence[Tokens], options: RequestOptions) -> list[Outcome]:
        """One outcome for each text, in order. Cancelling the awaiting task withdraws the request.

        Raises:
            MuxserveError: where the request has no outcomes at all, such as Overloaded.
        """
        ...

    def refused(self, texts: int) -> None:
        """Note texts that the ingress refused for want of room: autoscaling counts them."""
        ...

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...

    async def stats(self) -> dict[str, Any]:
        """Counters: ``engines``, one entry for each behind this backend, and what else there is."""
        ...


class LocalBackend:
    """The engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._demand = DemandMeter(time.monotonic())

    def demand(self) -> dict[str, float]:
        """What came since the last call, for the autoscaling policy."""
        return self._demand.measure(self._engine.stats(), time.monotonic())

    def refused(self, texts: int) -> None:
        self._demand.refused(texts)

    async def predict(self, tokens: Sequence[Tokens], options: RequestOptions) -> list[Outcome]:
        return await self._engine.predict_async(tokens, options)

    async def ready(self) -> bool:
        return self._engine.alive

    async def stats(self) -> dict[str, Any]:
        return {"engines": [counters(self._engine)]}


def counters(engine: Engine) -> dict[str, Any]:
    """An engine's counters as JSON has them, with its settings and its process.

    JSON's keys are strings, so N is one too.
    """
    stats = engine.stats()
    values = asdict(stats)
    values["texts_by_num_instances"] = {
        str(n): texts for n, texts in sorted(stats.texts_by_num_instances.items())
    }
    values["occupancy"] = stats.occupancy
    values["capacity"] = engine.config.max_waiting_texts
    values["latency_target_s"] = engine.config.latency_target_ms / 1000
    values["pid"] = os.getpid()
    return values
