"""An application's settings and a cluster's nodes in, what does not fit on them out.

Ray waits silently for a node that can take a replica. On a single machine none will come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muxserve.serving.config import ServeConfig


@dataclass(frozen=True, slots=True)
class Need:
    """Processes of one kind that an application starts with.

    Attributes:
        group: the settings' group that asks for them.
        count: how many.
        num_cpus, num_gpus: what Ray reserves for each.
        most_per_node: of them on one node; None for any number.
    """

    group: str
    count: int
    num_cpus: float
    num_gpus: float
    most_per_node: int | None


def needs(config: ServeConfig) -> list[Need]:
    """What an application reserves when it starts."""
    replicas, ingress = config.replicas, config.ingress
    engines = Need(
        "replicas",
        replicas.first,
        replicas.num_cpus,
        replicas.num_gpus,
        replicas.max_replicas_per_node,
    )
    if config.arrangement == "together":
        return [engines]
    if config.backend == "triton":
        # Triton runs the forwards: what is scaled by 'replicas' is the ingress.
        per_node = replicas.max_replicas_per_node
        return [Need("ingress", replicas.first, ingress.num_cpus, 0.0, per_node)]
    entrances = Need(
        "ingress", ingress.num_replicas, ingress.num_cpus, 0.0, ingress.max_replicas_per_node
    )
    return [engines, entrances]


def shortfall(wanted: Sequence[Need], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What the nodes lack, in words, or None where everything may fit.

    Args:
        wanted: of one application.
        nodes: of each node what it has in all, by Ray's names: ``CPU``, ``GPU``.
    """
    for need in wanted:
        if not need.count:
            continue
        for name, each in (("CPU", need.num_cpus), ("GPU", need.num_gpus)):
            largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if each > largest:
                return (
                    f"{need.group}.num_{name.lower()}s={each:g}: no node has so many; "
                    f"the largest of {len(nodes)} has {largest:g} {name}"
                )
        if need.most_per_node is not None and need.count > need.most_per_node * len(nodes):
            return (
                f"{need.group}: {need.count} processes, at most {need.most_per_node} on each node, "
                f"and there are {len(nodes)} nodes"
            )
    for name in ("CPU", "GPU"):
        total = sum(node.get(name, 0.0) for node in nodes)
        asked = [
            (need, each)
            for need in wanted
            if (each := need.num_cpus if name == "CPU" else need.num_gpus) and need.count
        ]
        # Fractions such as 0.1 are not exact in binary.
        if sum(need.count * each for need, each in asked) > total + 1e-6:
            listed = " and ".join(f"{need.count} x {need.group} {each:g}" for need, each in asked)
            return f"{listed} {name} are asked for, the cluster has {total:g} {name}"
    return None
