"""Autoscaling for real: Ray nodes with a GPU each that exists on paper, and engines on the CPU.

Width first, then a replica on another node, then away with it and its node without a lost request,
then none at all and back. What is asserted are counters and Ray Serve's own states, in their
order; no times.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import ray._private.state
import torch
from ray import serve
from ray.cluster_utils import Cluster

from muxserve.loadtest.servers.muxserve import free_port
from muxserve.models import MuxBertForSequenceClassification
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from tests.conftest import tiny_config, write_family
from tests.ray_serve import BOUND_S, NODE, ray_cluster, until

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def slow_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that are large enough for a few clients to be more than one core can serve."""
    folder = tmp_path_factory.mktemp("slow")
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    config = tiny_config(**sizes, gaussian_hadamard_norm=512**0.5)
    MuxBertForSequenceClassification(config).save_pretrained(folder / "weights")
    write_family(folder, "sequence-classification", ["negative", "positive"])
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without GPUs, and one node with one."""
    with ray_cluster(gpu_nodes=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def url(cluster: Cluster, slow_family: Path) -> str:
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    config = ServeConfig.model_validate(
        {
            "family": str(slow_family),
            # A replica that was removed is waited for, and so is one that starts from none.
            "ingress": {"replica_wait_s": BOUND_S},
            "limits": {"request_timeout_s": BOUND_S},
            "engine": {"warm_up_s": 1, "max_groups": 2, "torch_threads": 1},
            "replicas": {
                "num_cpus": 0,
                "num_gpus": 1,
                "min_replicas": 0,
                "max_replicas": 2,
                "target_drain_ms": 200,
                "upscale_delay_s": 3,
                "downscale_delay_s": 4,
                "downscale_to_zero_delay_s": 4,
                "look_back_s": 2,
                "measure_every_s": 0.5,
            },
        }
    )
    serve.run(build_app(config))
    return f"http://127.0.0.1:{port}"


@dataclass
class Clients:
    """Clients that send one request after another until they are told to stop.

    Several texts to a request, where the engine is to be the limit and not Ray's Python proxy.
    """

    url: str
    texts: int
    statuses: Counter[int] = field(default_factory=Counter)
    threads: list[threading.Thread] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, count: int) -> "Clients":
        for _ in range(count):
            thread = threading.Thread(target=self._ask, daemon=True)
            self.threads.append(thread)
            thread.start()
        return self

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(BOUND_S)
        assert not any(thread.is_alive() for thread in self.threads)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=BOUND_S) as client:
            while not self.stopped.is_set():
                # No two are equal: equal texts that wait are computed once.
                texts = [
                    "".join(random.choices("bcdfghjklmnpqrstvwxz", k=28)) for _ in range(self.texts)
                ]
                response = client.post("/predict", json={"inputs": texts})
                with self.lock:
                    self.statuses[response.status_code] += 1


def engines(url: str) -> list[dict[str, Any]]:
    return httpx.get(f"{url}/stats", timeout=BOUND_S).json()["engines"]


def states() -> dict[str, int]:
    """How many replicas Ray Serve says are in each state."""
    deployment = serve.status().applications["default"].deployments["MuxReplica"]
    return dict(deployment.replica_states)


def nodes_of(kind: str) -> set[str]:
    """The nodes where replicas of a deployment live."""
    # Ray's public list of actors needs its dashboard, which is another heavy process.
    actors = ray._private.state.actors().values()
    return {
        actor["Address"]["NodeID"]
        for actor in actors
        if actor["State"] == "ALIVE" and f"#{kind}" in (actor["Name"] or "")
    }


def test_width_then_replicas_then_fewer_then_none_and_nobody_is_lost(cluster, url):
    until(lambda: states() == {"RUNNING": 1}, "one replica runs")
    assert httpx.post(f"{url}/predict", json={"inputs": "good"}, timeout=BOUND_S).status_code == 200
    (alone,) = engines(url)
    assert list(alone["texts_by_num_instances"]) == ["1"], "a lone text is served at N=1"
    first_nodes = nodes_of("MuxReplica")
    assert len(first_nodes) == 1

    # Width first: while one replica is all that was asked for, N goes up.
    load = Clients(url, texts=16).start(16)

    def widened() -> bool:
        (engine,) = engines(url)
        return engine["texts_by_num_instances"].get("5", 0) > 0

    until(widened, "N widens")
    assert sum(states().values()) == 1, "width is spent before replicas"

    # Then a replica. There is no node for it yet: it waits for one, as for Kubernetes to add it.
    until(lambda: sum(states().values()) == 2, f"a second replica is asked for: {engines(url)}")
    assert states() == {"RUNNING": 1, "STARTING": 1}
    cluster.add_node(**NODE, num_gpus=1)
    until(lambda: states() == {"RUNNING": 2}, "the second replica runs")
    until(
        lambda: len(found := engines(url)) == 2 and all(one["texts"] > 0 for one in found),
        "both serve",
    )
    assert len(nodes_of("MuxReplica")) == 2, "on a node of its own"

    # Less comes: one goes, while a client still asks.
    load.stop()
    trickle = Clients(url, texts=1).start(1)
    until(lambda: states() == {"RUNNING": 1}, "one replica is left")
    served = trickle.statuses.total()
    until(lambda: trickle.statuses.total() > served + 10, "it serves")
    assert len(engines(url)) == 1

    # Its node is empty, and goes too, while the client still asks.
    (emptied,) = (node for node in cluster.worker_nodes if node.node_id not in nodes_of("Mux"))
    cluster.remove_node(emptied)
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the head and one node are left")
    served = trickle.statuses.total()
    until(lambda: trickle.statuses.total() > served + 50, "it serves without that node")
    assert states() == {"RUNNING": 1}
    trickle.stop()
    assert load.statuses.keys() == {200}, load.statuses
    assert trickle.statuses.keys() == {200}, trickle.statuses
    counted = httpx.get(f"{url}/stats", timeout=BOUND_S).json()["ingress"]
    assert counted["texts"] == 1 + 16 * load.statuses.total() + trickle.statuses.total()
    assert counted["cancelled"] == counted["shed"] == 0

    # Nothing comes: none is left. The next request waits for one.
    until(lambda: sum(states().values()) == 0, "none is left")
    assert engines(url) == []
    response = httpx.post(f"{url}/predict", json={"inputs": "good"}, timeout=BOUND_S)
    assert response.status_code == 200
    assert states() == {"RUNNING": 1}
