"""Rules of one pod: what the PodSecurity level 'restricted' asks, resources, images, the end."""

import re
from typing import Any

from tests.kubernetes.pods import Pod, pods_of
from tests.kubernetes.rendering import Doc, of_kind, title

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
_UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(value: Any) -> float:
    """A Kubernetes quantity as a number; ValueError where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]{0,2})", str(value))
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no quantity")
    return float(found[1]) * _UNITS[found[2]]


def pods_are_restricted(docs: list[Doc]) -> list[str]:
    """The PodSecurity level 'restricted', which the namespace enforces."""
    problems = [problem for pod in pods_of(docs) for problem in _restricted(pod)]
    for doc in of_kind(docs, "RayService"):
        # KubeRay starts the autoscaler in the head's pod.
        options = doc["spec"]["rayClusterConfig"]["autoscalerOptions"]
        where = f"{title(doc)}: spec.rayClusterConfig.autoscalerOptions"
        problems += _restricted_container(where, options, {})
    return problems


def _restricted(pod: Pod) -> list[str]:
    problems = [
        f"{pod.where}.{name}: must not be set"
        for name in ("hostNetwork", "hostPID", "hostIPC")
        if pod.spec.get(name)
    ]
    for index, volume in enumerate(pod.spec.get("volumes", [])):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            problems.append(f"{pod.where}.volumes[{index}]: {kinds} is not allowed")
    context = pod.spec.get("securityContext", {})
    for where, container in pod.containers():
        problems += _restricted_container(where, container, context)
        problems += [
            f"{where}.ports[{index}].hostPort: must not be set"
            for index, port in enumerate(container.get("ports", []))
            if port.get("hostPort")
        ]
    return problems


def _restricted_container(where: str, container: Doc, of_pod: Doc) -> list[str]:
    own = container.get("securityContext", {})
    context = {**of_pod, **own}
    capabilities = own.get("capabilities", {})
    checks = {
        "privileged": not own.get("privileged"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "runAsNonRoot": context.get("runAsNonRoot") is True,
        "runAsUser": context.get("runAsUser") != 0,
        "seccompProfile": context.get("seccompProfile", {}).get("type") == "RuntimeDefault",
        "capabilities.drop": capabilities.get("drop") == ["ALL"],
        "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
    }
    return [
        f"{where}.securityContext.{field}: not as 'restricted' wants it"
        for field, holds in checks.items()
        if not holds
    ]


def tokens_are_for_those_who_need_them(docs: list[Doc]) -> list[str]:
    """Only Ray's head, whose autoscaler speaks with the API server, has a token."""
    return [
        f"{pod.where}.automountServiceAccountToken: must be false"
        for pod in pods_of(docs)
        if pod.ray != "head" and pod.spec.get("automountServiceAccountToken") is not False
    ]


def resources_are_said(docs: list[Doc]) -> list[str]:
    """CPU and memory are asked for; memory's limit is what was asked for; no request is over."""
    problems = []
    for pod in pods_of(docs):
        for where, container in pod.containers():
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            here = f"{where}.resources"
            try:
                asked = {name: quantity(value) for name, value in requests.items()}
                most = {name: quantity(value) for name, value in limits.items()}
            except ValueError as error:
                problems.append(f"{here}: {error}")
                continue
            problems += [
                f"{here}.requests.{name}: missing"
                for name in ("cpu", "memory")
                if name not in asked
            ]
            problems += [
                f"{here}.requests.{name}: {requests[name]} is over the limit {limits[name]}"
                for name in asked.keys() & most.keys()
                if asked[name] > most[name]
            ]
            # A pod over its request is the first that a full node kills.
            if asked.get("memory") != most.get("memory"):
                problems.append(f"{here}.limits.memory: must be what is requested")
            for name in (asked.keys() | most.keys()) - {"cpu", "memory", "ephemeral-storage"}:
                if asked.get(name, most.get(name)) != most.get(name):
                    problems.append(f"{here}.limits.{name}: must be what is requested")
    return problems


def images_are_versions(docs: list[Doc]) -> list[str]:
    """An image has a tag that does not move."""
    problems = []
    for pod in pods_of(docs):
        for where, container in pod.containers():
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if not re.search(r"\d", tag) or tag in {"latest", "stable"}:
                problems.append(f"{where}.image: {container['image']} has no version")
    return problems


def names_are_once(docs: list[Doc]) -> list[str]:
    """No port, environment variable or volume twice in one place; no object twice."""
    problems = []
    seen = set()
    for doc in docs:
        key = (doc["apiVersion"], title(doc), doc["metadata"].get("namespace"))
        if key in seen:
            problems.append(f"{title(doc)}: stands there twice")
        seen.add(key)
    for pod in pods_of(docs):
        lists = [(f"{pod.where}.volumes", [one["name"] for one in pod.spec.get("volumes", [])])]
        for where, container in pod.containers():
            ports = container.get("ports", [])
            lists += [
                (f"{where}.env", [one["name"] for one in container.get("env", [])]),
                (f"{where}.ports name", [one["name"] for one in ports]),
                (
                    f"{where}.ports number",
                    [(one["containerPort"], one.get("protocol", "TCP")) for one in ports],
                ),
            ]
        problems += [
            f"{where}: {name} stands there twice"
            for where, names in lists
            for name in sorted({one for one in names if names.count(one) > 1}, key=str)
        ]
    return problems


def servers_are_probed(docs: list[Doc]) -> list[str]:
    """What runs for good and is not Ray's, which KubeRay probes, has three probes."""
    problems = []
    for doc in of_kind(docs, "Deployment", "StatefulSet"):
        for pod in pods_of([doc]):
            for index, container in enumerate(pod.spec["containers"]):
                problems += [
                    f"{pod.where}.containers[{index}].{probe}: missing"
                    for probe in ("startupProbe", "readinessProbe", "livenessProbe")
                    if probe not in container
                ]
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
