"""Rules of serveConfigV2: Ray takes it, its application exists, and its replicas have a place."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from muxserve.errors import InvalidInput, one_line
from muxserve.serving.config import ServeConfig
from muxserve.serving.manifest import KUBERNETES_PORT, config_model
from muxserve.triton.channel import RENEW_S
from tests.kubernetes.pods import pods_of
from tests.kubernetes.rendering import Doc, of_kind, title
from tests.kubernetes.rules_names import matches
from tests.kubernetes.rules_pods import pre_stop_s, quantity

#: Seconds that app.py gives a replica beyond the longest request.
SHUTDOWN_MARGIN_S = 5
#: Seconds for which the cluster's DNS may go on to say what was true before (CoreDNS' default).
DNS_REMEMBERS_S = 30


def serve_config_is_rays(docs: list[Doc]) -> list[str]:
    """It is Ray's schema, without a field that Ray would ignore; for every pod, on port 8000."""
    problems = []
    for where, content in _contents(docs):
        try:
            parsed = ServeDeploySchema.model_validate(content)
        except ValidationError as error:
            problems.append(f"{where}: {one_line(error)}")
            continue
        problems += [f"{where}: {name}: Ray knows no such field" for name in _unknown(content)]
        if parsed.proxy_location != "EveryNode":
            problems.append(f"{where}: proxy_location: must be EveryNode")
        if (parsed.http_options.host, parsed.http_options.port) != ("0.0.0.0", KUBERNETES_PORT):
            problems.append(f"{where}: http_options: must be 0.0.0.0:{KUBERNETES_PORT}")
        problems += [
            f"{where}: applications[{index}].runtime_env: the code is in the image"
            for index, one in enumerate(content["applications"])
            if "runtime_env" in one
        ]
    return problems


def _contents(docs: list[Doc]) -> Iterator[tuple[str, Any]]:
    for doc in of_kind(docs, "RayService"):
        yield f"{title(doc)}: spec.serveConfigV2", yaml.safe_load(doc["spec"]["serveConfigV2"])


def _unknown(content: Doc) -> Iterator[str]:
    yield from set(content) - set(ServeDeploySchema.model_fields)
    for field, key in (("http_options", "http_options"), ("applications", "applications")):
        annotation = ServeDeploySchema.model_fields[field].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        (kind,) = (one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel))
        values = content.get(key, [])
        for one in values if isinstance(values, list) else [values]:
            yield from (f"{key}.{name}" for name in set(one) - set(kind.model_fields))


def applications_take_their_settings(docs: list[Doc]) -> list[str]:
    """The import path imports, and its settings are those that it knows."""
    problems = []
    for where, content in _contents(docs):
        for index, one in enumerate(content["applications"]):
            here = f"{where}: applications[{index}]"
            try:
                config_model(one["import_path"]).model_validate(one.get("args", {}))
            except InvalidInput as error:
                problems.append(f"{here}.import_path: {error.message}")
            except ValidationError as error:
                problems.append(f"{here}.args: {one_line(error)}")
    return problems


@dataclass(frozen=True)
class Placed:
    """Replicas of one deployment that want a place."""

    name: str
    cpus: float
    gpus: float
    fewest: int
    most: int
    per_node: int | None


def placed(config: ServeConfig) -> list[Placed]:
    """What ``build_app`` asks of Ray for these settings."""
    replicas, ingress = config.replicas, config.ingress
    most = replicas.max_replicas or replicas.num_replicas
    bounds = (replicas.fewest, most, replicas.max_replicas_per_node)
    if config.backend == "triton":
        return [Placed("MuxIngress", ingress.num_cpus, 0, *bounds)]
    if config.arrangement == "together":
        return [Placed("MuxIngress", replicas.num_cpus, replicas.num_gpus, *bounds)]
    count = ingress.num_replicas
    return [
        Placed("MuxReplica", replicas.num_cpus, replicas.num_gpus, *bounds),
        Placed("MuxIngress", ingress.num_cpus, 0, count, count, ingress.max_replicas_per_node),
    ]


def replicas_have_a_place(docs: list[Doc]) -> list[str]:
    """The fewest replicas fit the fewest workers, and the most replicas the most workers."""
    problems = []
    for doc, config in _configs(docs):
        groups = doc["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        for bound, of_workers in (("fewest", "minReplicas"), ("most", "maxReplicas")):
            nodes = [_Node(*_capacity(group)) for group in groups for _ in range(group[of_workers])]
            problems += [
                f"{title(doc)}: spec.serveConfigV2: {one.name}: {getattr(one, bound)} replicas "
                f"({bound}) of {one.cpus:g} CPUs and {one.gpus:g} GPUs have no place on the "
                f"workers' {of_workers} ({len(nodes)})"
                for one in sorted(placed(config), key=lambda one: (-one.gpus, -one.cpus))
                if not all(_place(one, nodes) for _ in range(getattr(one, bound)))
            ]
    return problems


class _Node:
    def __init__(self, cpus: float, gpus: float) -> None:
        self.cpus, self.gpus = cpus, gpus
        self.held: dict[str, int] = {}


def _place(one: Placed, nodes: list[_Node]) -> bool:
    for node in sorted(nodes, key=lambda node: node.held.get(one.name, 0)):
        count = node.held.get(one.name, 0)
        if node.cpus >= one.cpus and node.gpus >= one.gpus and count < (one.per_node or 10**6):
            node.cpus, node.gpus = node.cpus - one.cpus, node.gpus - one.gpus
            node.held[one.name] = count + 1
            return True
    return False


def _capacity(group: Doc) -> tuple[float, float]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = sum(quantity(value) for name, value in limits.items() if name.endswith("/gpu"))
    return float(group["rayStartParams"]["num-cpus"]), gpus


def _configs(docs: list[Doc]) -> Iterator[tuple[Doc, ServeConfig]]:
    for doc in of_kind(docs, "RayService"):
        for one in yaml.safe_load(doc["spec"]["serveConfigV2"])["applications"]:
            yield doc, config_model(one["import_path"]).model_validate(one.get("args", {}))


def gpus_are_used(docs: list[Doc]) -> list[str]:
    """A worker with a GPU serves replicas that ask for one, and tolerates GPU nodes' taint."""
    problems = []
    for doc, config in _configs(docs):
        for index, group in enumerate(doc["spec"]["rayClusterConfig"]["workerGroupSpecs"]):
            where = f"{title(doc)}: spec.rayClusterConfig.workerGroupSpecs[{index}]"
            if not _capacity(group)[1]:
                continue
            if not any(one.gpus for one in placed(config)):
                problems.append(f"{where}: has GPUs that no replica asks for (replicas.num_gpus)")
            tolerated = {one.get("key") for one in group["template"]["spec"].get("tolerations", [])}
            if "nvidia.com/gpu" not in tolerated:
                problems.append(f"{where}.template.spec.tolerations: nvidia.com/gpu is missing")
    return problems


def requests_are_ended_in_time(docs: list[Doc]) -> list[str]:
    """What came by the Service ends before the pod does: preStop waits out the longest request."""
    problems = []
    for doc, config in _configs(docs):
        shutdown_s = config.limits.request_timeout_s + SHUTDOWN_MARGIN_S
        for pod in pods_of([doc]):
            if pod.ray != "worker":
                continue
            wait_s = pre_stop_s(pod.spec["containers"][0])
            if wait_s <= shutdown_s:
                problems.append(
                    f"{pod.where}.containers[0].lifecycle.preStop: waits {wait_s:g} s, a replica "
                    f"may take {shutdown_s:g} s (limits.request_timeout_s)"
                )
            grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
            if grace_s <= wait_s + shutdown_s:
                problems.append(
                    f"{pod.where}.terminationGracePeriodSeconds: {grace_s} s, preStop and a "
                    f"replica's end may take {wait_s + shutdown_s:g} s"
                )
    return problems


def head_may_fail(docs: list[Doc]) -> list[str]:
    """Where the head's loss is to be survived, so is a worker's: two replicas, on two nodes."""
    problems = []
    for doc, config in _configs(docs):
        if "gcsFaultToleranceOptions" not in doc["spec"]["rayClusterConfig"]:
            continue
        for one in placed(config):
            nodes = one.fewest if one.per_node is None else -(-one.fewest // one.per_node)
            if one.per_node is None or nodes < 2:
                problems.append(
                    f"{title(doc)}: spec.serveConfigV2: {one.name}: {one.fewest} replicas at "
                    f"{one.per_node} per node (max_replicas_per_node) may all be on one"
                )
    return problems


def triton_is_here(docs: list[Doc]) -> list[str]:
    """The Triton that is asked is a Service of these documents, with that port and all its pods.

    A pod that goes takes calls until every ingress has looked the name up again.
    """
    problems = []
    for doc, config in _configs(docs):
        if config.backend != "triton":
            continue
        host, _, port = config.triton.url.partition(":")
        services = [
            one
            for one in of_kind(docs, "Service")
            if one["metadata"]["name"] == host
            and port in {str(entry["port"]) for entry in one["spec"]["ports"]}
        ]
        if not services:
            problems.append(
                f"{title(doc)}: spec.serveConfigV2: triton.url: no Service {host} with port {port}"
            )
        for service in services:
            if service["spec"].get("clusterIP") != "None":
                problems.append(
                    f"{title(service)}: spec.clusterIP: must be None, or an ingress sees one pod"
                )
            chosen = {"matchLabels": service["spec"]["selector"]}
            problems += [
                f"{where}.lifecycle.preStop: must be longer than a renewal and DNS' memory, "
                f"{RENEW_S + DNS_REMEMBERS_S:g} s"
                for pod in pods_of(docs)
                if matches(chosen, pod)
                for where, container in pod.containers()
                if "ports" in container and pre_stop_s(container) <= RENEW_S + DNS_REMEMBERS_S
            ]
    return problems
