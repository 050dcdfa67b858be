"""A Ray Serve of a test module's own, and polling with a bound."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from muxserve.bench.server import free_port

BOUND_S = 240.0


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


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition gives something true, and give it."""
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {BOUND_S} s: {what}")
