"""Bundles in, their answers out, through a Triton server instead of replicas of our own.

The ingress, its limits, protocols and autoscaling stay; Triton gathers bundles of every ingress,
fills the slots and runs the forward.
"""

import asyncio
import time
from typing import Any

import numpy as np

from muxserve.engine.request import Outcome
from muxserve.models.family import Family
from muxserve.serving.bundles import Bundle, BundleAnswer, pack_answer, unpack
from muxserve.triton.client import TritonModel
from muxserve.triton.config import TritonConfig


class TritonReplicas:
    """A Triton model, as a bundler sees replicas."""

    def __init__(self, family: Family, config: TritonConfig) -> None:
        self._spec = family.spec
        self._model = TritonModel(family, config)

    async def predict_bundle(self, bundle: Bundle) -> BundleAnswer:
        """Answer every text of a bundle; requests that allow the same share a call."""
        now_s = time.monotonic()
        together: dict[tuple[int | None, str | None], list[int]] = {}
        texts: list[np.ndarray] = []
        deadlines: list[float | None] = []
        for tokens, options in unpack(bundle, now_s):
            key = options.max_num_instances, options.isolation_key
            together.setdefault(key, []).extend(range(len(texts), len(texts) + len(tokens)))
            texts += [one.ids for one in tokens]
            deadlines += [options.deadline_s] * len(tokens)
        outcomes: list[Outcome | None] = [None] * len(texts)

        async def call(cap: int | None, isolation_key: str | None, indices: list[int]) -> None:
            # The last deadline: those who wait for a request keep its own.
            due = [deadlines[index] for index in indices]
            last_s = None if None in due else max(one for one in due if one is not None)
            answers = await self._model.predict(
                [texts[index] for index in indices],
                max_num_instances=cap,
                isolation_key=isolation_key,
                deadline_s=last_s,
            )
            for index, outcome in zip(indices, answers, strict=True):
                outcomes[index] = outcome

        async with asyncio.TaskGroup() as calls:
            for (cap, isolation_key), indices in together.items():
                calls.create_task(call(cap, isolation_key, indices))
        return pack_answer(
            [outcome for outcome in outcomes if outcome is not None],
            len(self._spec.labels),
            of_tokens=self._spec.of_tokens,
        )

    async def ready(self) -> bool:
        """Whether the Triton model answers."""
        return await self._model.ready()

    async def stats(self) -> list[dict[str, Any]]:
        """Counters of the Triton model and of the calls to it."""
        return [await self._model.stats()]
