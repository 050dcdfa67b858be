"""A replica that is removed serves what waits for it, and gets nothing more."""

import time
from typing import Any

import numpy as np
import pytest
from ray import serve

from muxserve.engine.config import EngineConfig
from muxserve.engine.request import RequestOptions, Tokens
from muxserve.serving.bundles import Bundle, pack
from muxserve.serving.ray.replica import MuxReplica
from tests.ray_serve import BOUND_S, ray_serve, until

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

TEXTS, BUNDLES = 64, 40


def deploy(family: Any, count: int) -> Any:
    """Replicas alone, as ``build_app`` deploys them. Again, and Ray replaces those that run."""
    deployment = serve.deployment(MuxReplica).options(
        num_replicas=count,
        max_ongoing_requests=1024,
        graceful_shutdown_timeout_s=BOUND_S,
        ray_actor_options={"num_cpus": 0.5},
    )
    config = EngineConfig(warm_up_s=0.5, max_groups=1, num_instances=1, torch_threads=1)
    return serve.run(deployment.bind(str(family), config), name="replicas", route_prefix=None)


def bundle(rng: np.random.Generator) -> Bundle:
    """Texts that are all different, so that none is computed once for another."""
    texts = [Tokens(rng.integers(5, 30, 24)) for _ in range(TEXTS)]
    return pack([(texts, RequestOptions())], time.monotonic())


def pids(handle: Any) -> set[int]:
    return {answer["pid"] for answer in handle.broadcast("stats").results(timeout_s=BOUND_S)}


def test_a_replica_that_is_removed_serves_what_waits_and_gets_nothing_more(tiny_family):
    rng = np.random.default_rng(0)
    with ray_serve():
        handle = deploy(tiny_family, 2)
        before = until(lambda: (found := pids(handle)) and len(found) == 2 and found, "two run")
        calls = [handle.predict_bundle.remote(bundle(rng)) for _ in range(BUNDLES)]
        waiting = until(
            lambda: (
                (lines := [one["waiting"] for one in handle.broadcast("stats").results()])
                and min(lines) > TEXTS
                and lines
            ),
            "texts wait for both",
        )
        assert len(waiting) == 2
        handle = deploy(tiny_family, 1)
        until(
            lambda: (found := pids(handle)) and len(found) == 1 and found.isdisjoint(before),
            "a new one is all there is",
        )
        calls += [handle.predict_bundle.remote(bundle(rng)) for _ in range(BUNDLES // 4)]
        answers = [call.result(timeout_s=BOUND_S) for call in calls]
        assert all(not answer.errors for answer in answers)
        assert all((answer.num_instances == 1).all() for answer in answers)
        assert sum(len(answer.logits) for answer in answers) == TEXTS * len(calls)
        (left,) = handle.broadcast("stats").results()
        assert left["shed"] == left["failed"] == left["cancelled"] == left["waiting"] == 0
        assert TEXTS * BUNDLES // 4 <= left["texts"] < TEXTS * len(calls), (
            "those that went served what waited for them"
        )
