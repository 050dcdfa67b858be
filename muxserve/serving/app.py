"""Settings in, a Ray Serve application out: an ingress alone, or one in front of engine replicas.

A family that cannot be served fails here, before Ray deploys anything.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from muxserve.engine.config import EngineConfig
from muxserve.errors import FamilyError
from muxserve.extras import require
from muxserve.models.family import (
    FAMILY_FILE,
    check_family,
    read_spec,
    resolve,
    shipped_families,
)
from muxserve.serving.access.keys import narrowest, read_keys
from muxserve.serving.config import ReplicasConfig, ServeConfig
from muxserve.serving.ray.autoscaling import DrainPolicy
from muxserve.serving.ray.ingress import MuxIngress
from muxserve.serving.ray.placement import needs, shortfall
from muxserve.serving.ray.replica import MuxReplica
from muxserve.serving.security import SecurityConfig

log = logging.getLogger(__name__)


def build_app(config: ServeConfig) -> serve.Application:
    """The application that these settings describe.

    Raises:
        FamilyError: naming the file and the field.
    """
    # A plain ServeConfig: a subclass of it may live in a module that a worker cannot import.
    config = ServeConfig.model_validate(config.model_dump())
    config = config.model_copy(
        update={"family": checked_family(config), "security": _checked_security(config)}
    )
    if config.ingress.grpc_port is not None:
        require("ingress.grpc_port", "triton", "tritonclient", field="ingress.grpc_port")
    if config.engine.runtime == "openvino":
        require("engine.runtime=openvino", "openvino", "openvino", field="engine.runtime")
    _warn_of_shortfall(config)
    engines = {
        **_scaling(config.replicas, config.engine),
        "ray_actor_options": _resources(config.replicas),
        "health_check_period_s": config.replicas.health_check_period_s,
    }
    ingress = {"max_ongoing_requests": config.ingress.max_ongoing_requests}
    if config.arrangement == "together":
        return _deployment(MuxIngress, config, **engines, **ingress).bind(config)
    if config.backend == "triton":
        require("backend=triton", "triton", "tritonclient", field="backend")
        # Triton runs the forwards, so what scales here is the ingress.
        resources = {"ray_actor_options": {"num_cpus": config.ingress.num_cpus}}
        return _deployment(
            MuxIngress, config, **_scaling(config.replicas, None), **resources, **ingress
        ).bind(config)
    replicas = _deployment(
        MuxReplica, config, **engines, max_ongoing_requests=config.replicas.max_ongoing_bundles
    )
    entrance = _deployment(
        MuxIngress,
        config,
        **ingress,
        num_replicas=config.ingress.num_replicas,
        max_replicas_per_node=config.ingress.max_replicas_per_node,
        ray_actor_options={"num_cpus": config.ingress.num_cpus},
    )
    return entrance.bind(config, replicas.bind(config.family, config.engine))


def checked_family(config: ServeConfig) -> str:
    """Check the family, all but the values of its weights, and the settings against it.

    Returns:
        The family as another process finds it: a shipped name, or an absolute folder.

    Raises:
        FamilyError: naming the file and the field.
    """
    folder = resolve(config.family)
    spec = check_family(folder, verify_checksums=config.engine.verify_checksums)
    widths = [member.num_instances for member in spec.members]
    pinned, cap = config.engine.num_instances, config.engine.max_num_instances
    for setting, fits in (
        ("num_instances", pinned is None or pinned in widths),
        ("max_num_instances", cap is None or cap >= widths[0]),
    ):
        if not fits:
            raise FamilyError(
                f"{folder / FAMILY_FILE}: engine.{setting} is {getattr(config.engine, setting)}, "
                f"the members are {widths}",
                field=setting,
            )
    if config.family in shipped_families() and not (Path(config.family) / FAMILY_FILE).is_file():
        return config.family
    return str(folder.resolve())


def _checked_security(config: ServeConfig) -> SecurityConfig:
    """The settings with the absolute path of the keys file, once that was read here.

    Raises:
        InvalidInput: naming the file and the place.
    """
    security = config.security
    if security.keys_file is None:
        return security
    path = Path(security.keys_file).absolute()
    read_keys(path, config.limits, narrowest(read_spec(resolve(config.family)), config))
    return security.model_copy(update={"keys_file": str(path)})


def _warn_of_shortfall(config: ServeConfig) -> None:
    """Say what a cluster lacks; it may grow, so the application waits for it."""
    if not ray.is_initialized():
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if missing := shortfall(needs(config), nodes):
        log.warning("%s; the application waits until the cluster has grown", missing)


def _deployment(kind: type, config: ServeConfig, **options: Any) -> serve.Deployment:
    # Made here and not by a decorator, so that the classes can be used without Ray Serve too.
    deployment = cast(serve.Deployment, serve.deployment(kind))
    return deployment.options(
        logging_config={"enable_access_log": config.access_log},
        # A replica that is removed gets as long as any request may take, so that none is lost.
        graceful_shutdown_timeout_s=config.limits.request_timeout_s + 5,
        **options,
    )


def _scaling(replicas: ReplicasConfig, engine: EngineConfig | None) -> dict[str, Any]:
    """Ray's options for a number of replicas; without an engine, Ray's own policy scales them."""
    spread = {"max_replicas_per_node": replicas.max_replicas_per_node}
    if replicas.max_replicas is None:
        return {"num_replicas": replicas.num_replicas, **spread}
    options: dict[str, Any] = {
        "min_replicas": replicas.fewest,
        "initial_replicas": replicas.first,
        "max_replicas": replicas.max_replicas,
        "look_back_period_s": replicas.look_back_s,
        "metrics_interval_s": replicas.measure_every_s,
    }
    delays = {
        "upscale_delay_s": replicas.upscale_delay_s,
        "downscale_delay_s": replicas.downscale_delay_s,
        "downscale_to_zero_delay_s": replicas.downscale_delay_s
        if replicas.downscale_to_zero_delay_s is None
        else replicas.downscale_to_zero_delay_s,
    }
    if engine is None:
        # Ray's own target is 2, for replicas that work on a request; an ingress waits for Triton.
        options |= delays | {"target_ongoing_requests": replicas.target_ongoing_requests}
    else:
        target_ms = replicas.target_drain_ms or engine.latency_target_ms
        # The policy has delays of its own, and Ray would wait once more after them.
        options |= dict.fromkeys(delays, 0.0)
        options["policy"] = AutoscalingPolicy(
            policy_function=f"{DrainPolicy.__module__}:{DrainPolicy.__name__}",
            policy_kwargs={"target_drain_s": target_ms / 1000, **delays},
        )
    with warnings.catch_warnings():
        # Ray means to replace metrics_interval_s by variables that it does not read yet.
        warnings.filterwarnings("ignore", "The `metrics_interval_s`", DeprecationWarning)
        return {"autoscaling_config": AutoscalingConfig(**options), **spread}


def _resources(config: ReplicasConfig) -> dict[str, float]:
    return {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
