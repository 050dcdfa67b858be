"""One replica stopped for real: the counters of the others are still told, and it is missing."""

import os
import signal
from pathlib import Path

import httpx
import pytest
from ray import serve

from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from tests.ray_serve import BOUND_S, ray_serve, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def test_stats_and_metrics_tell_of_the_others_and_then_of_all_again(tiny_family: Path):
    config = ServeConfig.model_validate(
        {
            "family": str(tiny_family),
            "engine": {"warm_up_s": 0.3, "torch_threads": 1},
            # Nobody replaces the one that is stopped while this looks at it.
            "replicas": {"num_replicas": 2, "num_cpus": 0, "health_check_period_s": 600},
        }
    )
    with ray_serve() as url, httpx.Client(base_url=url, timeout=BOUND_S) as client:
        serve.run(build_app(config))

        def engines() -> set[int]:
            return {one["pid"] for one in client.get("/stats").json()["engines"]}

        both = until(lambda: len(found := engines()) == 2 and found, "two engines")
        stopped, other = both
        os.kill(stopped, signal.SIGSTOP)
        try:
            for _ in range(2):
                stats = client.get("/stats").json()
                assert [one["pid"] for one in stats["engines"]] == [other]
                assert stats["ingress"]["missing_engines"] == 1
            metrics = client.get("/metrics").text
            assert "muxserve_missing_engines 1.0" in metrics
            assert f'muxserve_texts_total{{engine="{other}"}}' in metrics
        finally:
            os.kill(stopped, signal.SIGCONT)
        until(lambda: engines() == both, "the stopped engine's counters")
        assert client.get("/stats").json()["ingress"]["missing_engines"] == 0
