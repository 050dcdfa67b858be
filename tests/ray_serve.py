"""A Ray Serve of a test module's own, and polling with a bound."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from muxserve.loadtest.servers.muxserve import free_port

BOUND_S = 240.0
#: Of this machine alone, but not 127.0.0.1: Ray replaces that by the outer address when it
#: connects, where these nodes do not listen.
LOOPBACK = "127.0.0.2"
#: Arguments of one node of a cluster of several.
NODE = {
    "num_cpus": 1,
    "object_store_memory": 80 * 2**20,
    "node_ip_address": LOOPBACK,
    "include_dashboard": False,
}


@contextmanager
def ray_serve(metrics_port: int | None = None) -> Iterator[str]:
    """Ray Serve with its Python proxy on a free port; gives the base URL.

    Args:
        metrics_port: where Ray's metrics are scraped; by default a port that Ray chooses.
    """
    port = free_port()
    # A short path: Ray's sockets live in it, and theirs may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="mux", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            namespace="serve",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            log_to_driver=False,
            _metrics_export_port=metrics_port,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@contextmanager
def ray_cluster(gpu_nodes: int) -> Iterator[Cluster]:
    """A head without GPUs, and nodes with one each, which exists on paper only; connected."""
    with tempfile.TemporaryDirectory(prefix="mux", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "num_cpus": 2, "temp_dir": folder}
        )
        try:
            for _ in range(gpu_nodes):
                cluster.add_node(**NODE, num_gpus=1)
            ray.init(
                address=cluster.address,
                namespace="serve",
                _node_ip_address=LOOPBACK,
                log_to_driver=False,
            )
            yield cluster
        finally:
            # Without a connection serve.shutdown would look for some Ray of this machine, and end
            # whatever serves there.
            if ray.is_initialized():
                serve.shutdown()
                ray.shutdown()
            cluster.shutdown()


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition gives something true, and give it."""
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {BOUND_S} s: {what}")
