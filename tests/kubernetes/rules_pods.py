"""Rules of one pod that checkov does not have: users, volumes, limits, and how a pod ends."""

import math
import re
from typing import Any

from tests.kubernetes.pods import pods_of
from tests.kubernetes.rendering import Doc, of_kind, title

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
#: Resources of which a container may use more than it asks for.
ELASTIC = {"cpu", "ephemeral-storage"}
_UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(value: Any) -> float:
    """A Kubernetes quantity as a number; ValueError where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]{0,2})", str(value))
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no quantity")
    return float(found[1]) * _UNITS[found[2]]


def pods_are_restricted(docs: list[Doc]) -> list[str]:
    """What the namespace refuses (PodSecurity 'restricted') and checkov lets pass."""
    problems = []
    for pod in pods_of(docs):
        problems += [
            f"{where}.securityContext.runAsUser: must not be root"
            for where, one in [(pod.where, pod.spec), *pod.containers()]
            if one.get("securityContext", {}).get("runAsUser") == 0
        ]
        problems += [
            f"{pod.where}.volumes[{index}]: {kinds} is not allowed"
            for index, volume in enumerate(pod.spec.get("volumes", []))
            if not (kinds := volume.keys() - {"name"}) <= VOLUMES
        ]
    return problems


def limits_fit_requests(docs: list[Doc]) -> list[str]:
    """The limit of memory and of a GPU is what was asked for; other requests are not over it."""
    problems = []
    for pod in pods_of(docs):
        for where, container in pod.containers():
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            try:
                asked = {name: quantity(value) for name, value in requests.items()}
                most = {name: quantity(value) for name, value in limits.items()}
            except ValueError as error:
                problems.append(f"{where}.resources: {error}")
                continue
            for name in asked.keys() | most.keys():
                if name in ELASTIC:
                    fits = asked.get(name, 0) <= most.get(name, math.inf)
                else:
                    # A pod over its request of memory is the first that a full node kills.
                    fits = asked.get(name, most.get(name)) == most.get(name)
                if not fits:
                    problems.append(
                        f"{where}.resources.limits.{name}: {limits.get(name)}, requested is "
                        f"{requests.get(name)}"
                    )
    return problems


def pre_stop_s(container: Doc) -> float:
    """Seconds that a container waits before it is told to end."""
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    return float(command[1]) if command[:1] == ["sleep"] else 0.0


def waits_fit_the_end(docs: list[Doc]) -> list[str]:
    """The wait before the end leaves time for the end itself."""
    problems = []
    for pod in pods_of(docs):
        grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
        problems += [
            f"{pod.where}.terminationGracePeriodSeconds: {grace_s} s leave nothing after "
            f"{where}.lifecycle.preStop ({pre_stop_s(container):g} s)"
            for where, container in pod.containers()
            if pre_stop_s(container) >= grace_s
        ]
    return problems


def budgets_can_be_kept(docs: list[Doc]) -> list[str]:
    """A count where KubeRay owns the pods: it has no scale to take a share of."""
    problems = []
    for doc in of_kind(docs, "PodDisruptionBudget"):
        spec = doc["spec"]
        of_ray = any(key.startswith("ray.io/") for key in spec["selector"]["matchLabels"])
        if of_ray and not isinstance(spec.get("minAvailable"), int):
            problems.append(f"{title(doc)}: spec.minAvailable: must be a count, for pods of Ray")
    return problems
