"""Updates of a running application, and the loss of a node, in a Ray started by this process."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from tests.chaos.expected import FAMILY
from tests.chaos.harness import Scale, Server, broken, until, until_async
from tests.ray_serve import NODE, ray_cluster, ray_serve

_TIMEOUT_S = 30.0


def _config(**changes: Any) -> ServeConfig:
    settings = {
        "family": FAMILY,
        "engine.warm_up_s": 0.5,
        "engine.torch_threads": 1,
        "limits.request_timeout_s": _TIMEOUT_S,
        "ingress.num_replicas": 2,
        "replicas.num_replicas": 2,
        "replicas.num_cpus": 0,
    }
    return ServeConfig.model_validate(
        settings | {key.replace("__", "."): value for key, value in changes.items()}
    )


def _deploy(args: dict[str, Any], **replicas: Any) -> None:
    """Deploy a changed file as ``serve deploy`` and KubeRay do, and return at once.

    Args:
        args: arguments of the application; a change replaces every process.
        replicas: options of the engines' deployment; a change applies to the running engines.
    """
    settings = _config(**args).model_dump(mode="json", exclude_unset=True)
    application = {
        "name": "default",
        "route_prefix": "/",
        "import_path": "deployments.sentiment:app",
        "args": settings,
        "deployments": [{"name": "MuxReplica", **replicas}] if replicas else [],
    }
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def _runs() -> bool:
    return serve.status().applications["default"].status == "RUNNING"


@contextlib.contextmanager
def updatable() -> Iterator[Server]:
    """Two ingresses and two replicas behind Ray Serve's proxy."""
    with ray_serve() as url:
        _deploy({})
        until(_runs, "the application runs", 300)
        yield Server(int(url.rpartition(":")[2]))


async def rolling_update(server: Server, scale: Scale) -> dict[str, Any]:
    """Change settings of the engine: every process is replaced, one after another."""

    async def update() -> None:
        before = server.engines()
        await asyncio.to_thread(_deploy, {"engine__latency_target_ms": 60.0})
        await until_async(
            lambda: len(server.engines()) == 2 and not set(server.engines()) & set(before),
            "both engines are new",
            300,
        )
        await until_async(_runs, "the update is through", 300)

    return await broken(server, scale, update, timeout_s=_TIMEOUT_S, counted=False)


async def update_in_place(server: Server, scale: Scale) -> dict[str, Any]:
    """Change the number of replicas and the health check period: running replicas stay."""
    args: dict[str, Any] = {"engine__latency_target_ms": 70.0}
    await asyncio.to_thread(_deploy, args)
    await asyncio.sleep(1)
    await until_async(_runs, "the settings from before", 300)
    before = set(server.engines())

    async def update() -> None:
        more = {"num_replicas": 3, "health_check_period_s": 5.0}
        await asyncio.to_thread(_deploy, args, **more)
        await until_async(lambda: len(server.engines()) == 3, "three engines", 300)
        assert before < set(server.engines()), "an engine was replaced"
        await asyncio.to_thread(_deploy, args, **{**more, "num_replicas": 2})
        await until_async(lambda: len(server.engines()) == 2, "two engines again")

    return await broken(server, scale, update, timeout_s=_TIMEOUT_S, counted=False)


#: The cluster of the last ``two_nodes``; ``node_removed`` removes one of its nodes.
_clusters: list[Cluster] = []


@contextlib.contextmanager
def two_nodes() -> Iterator[Server]:
    """A head with the ingress, and two nodes with a replica each."""
    with ray_cluster(gpu_nodes=2) as cluster:
        _clusters.append(cluster)
        try:
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            serve.run(
                build_app(
                    _config(
                        ingress__num_replicas=1,
                        ingress__num_cpus=2,
                        replicas__num_gpus=1,
                        replicas__health_check_period_s=2,
                    )
                )
            )
            yield Server(port)
        finally:
            _clusters.clear()


async def node_removed(server: Server, scale: Scale) -> dict[str, Any]:
    (cluster,) = _clusters

    async def remove() -> None:
        (node, *_) = cluster.worker_nodes
        await asyncio.to_thread(cluster.remove_node, node)
        await until_async(lambda: len(server.engines()) == 1, "one replica is left")
        await asyncio.sleep(scale.seconds)
        # Ray installs a signal handler, which only the main thread may do: the clients wait.
        cluster.add_node(**NODE, num_gpus=1)
        await until_async(lambda: len(server.engines()) == 2, "a replica on the new node", 120)

    allowed = ["overloaded", "not_ready"]
    return await broken(server, scale, remove, timeout_s=_TIMEOUT_S, allowed=allowed)
