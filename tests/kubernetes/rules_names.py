"""What a document names must be there: objects, volumes, ports, and pods for every selector."""

from collections.abc import Iterator
from typing import Any

from tests.kubernetes.pods import Pod, pods_of
from tests.kubernetes.rendering import Doc, of_kind, title

#: Secrets that whoever deploys makes, with their keys; k8s/README.md says how.
USERS_SECRETS = {"muxserve-redis": {"password"}, "muxserve-hf-token": {"token"}}
#: Labels of pods that others run: the operator, Prometheus, DNS, a gateway, and clients.
OTHERS_LABELS = {
    "app.kubernetes.io/name": {"kuberay-operator", "prometheus"},
    "k8s-app": {"kube-dns"},
    "gateway.networking.k8s.io/gateway-name": set(),
    "muxserve/client": {"true"},
}


def objects_exist(docs: list[Doc]) -> list[str]:
    """Service accounts, secrets with their keys, config maps and claims that pods name."""
    names = {(doc["kind"], doc["metadata"]["name"]) for doc in docs}
    return [
        f"{where}: no {kind} {name!r}" + (f" with the key {key!r}" if key else "")
        for where, kind, name, key in _references(docs)
        if (kind, name) not in names
        and not (kind == "Secret" and key in USERS_SECRETS.get(name, set()))
    ]


def _references(docs: list[Doc]) -> Iterator[tuple[str, str, str, str | None]]:
    for pod in pods_of(docs):
        account = pod.spec.get("serviceAccountName", "default")
        if account != "default":
            yield f"{pod.where}.serviceAccountName", "ServiceAccount", account, None
        for where, container in pod.containers():
            for index, env in enumerate(container.get("env", [])):
                yield from _of_source(f"{where}.env[{index}]", env.get("valueFrom", {}))
            for index, source in enumerate(container.get("envFrom", [])):
                for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                    if key in source:
                        yield f"{where}.envFrom[{index}]", kind, source[key]["name"], None
        for index, volume in enumerate(pod.spec.get("volumes", [])):
            where = f"{pod.where}.volumes[{index}]"
            if "configMap" in volume:
                yield where, "ConfigMap", volume["configMap"]["name"], None
            if "secret" in volume:
                yield where, "Secret", volume["secret"]["secretName"], None
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                yield where, "PersistentVolumeClaim", claim, None
    for doc in of_kind(docs, "RayService"):
        options = doc["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
        where = f"{title(doc)}: spec.rayClusterConfig.gcsFaultToleranceOptions"
        yield from _of_source(
            f"{where}.redisPassword", options.get("redisPassword", {}).get("valueFrom", {})
        )
        if "redisAddress" in options:
            host = options["redisAddress"].partition(":")[0]
            yield f"{where}.redisAddress", "Service", host, None
    for doc in of_kind(docs, "HorizontalPodAutoscaler"):
        target = doc["spec"]["scaleTargetRef"]
        yield f"{title(doc)}: spec.scaleTargetRef", target["kind"], target["name"], None
    for doc in of_kind(docs, "StatefulSet"):
        yield f"{title(doc)}: spec.serviceName", "Service", doc["spec"]["serviceName"], None


def _of_source(where: str, source: Doc) -> Iterator[tuple[str, str, str, str | None]]:
    for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if key in source:
            yield f"{where}.valueFrom.{key}", kind, source[key]["name"], source[key]["key"]


def mounts_have_volumes(docs: list[Doc]) -> list[str]:
    """A mount names a volume of its pod; no path is mounted twice; no volume is left over."""
    problems = []
    for doc in docs:
        for pod in pods_of([doc]):
            claims = doc["spec"].get("volumeClaimTemplates", [])
            volumes = [one["name"] for one in pod.spec.get("volumes", [])]
            known = {*volumes, *(one["metadata"]["name"] for one in claims)}
            mounted = set()
            for where, container in pod.containers():
                paths = set()
                for index, mount in enumerate(container.get("volumeMounts", [])):
                    here = f"{where}.volumeMounts[{index}]"
                    if mount["name"] not in known:
                        problems.append(f"{here}.name: no volume {mount['name']!r}")
                    if mount["mountPath"] in paths:
                        problems.append(f"{here}.mountPath: {mount['mountPath']} is mounted twice")
                    paths.add(mount["mountPath"])
                    mounted.add(mount["name"])
            problems += [
                f"{pod.where}.volumes: nothing mounts {name!r}" for name in known - mounted
            ]
    return problems


def selectors_find_pods(docs: list[Doc]) -> list[str]:
    """Every selector finds a pod of these documents, or of those that others run."""
    pods = pods_of(docs)
    problems = []
    for where, selector, may_be_others in _selectors(docs):
        found = any(matches(selector, pod) for pod in pods)
        if not found and not (may_be_others and _is_others(selector)):
            problems.append(f"{where}: no pod has {selector}")
    return problems


def _selectors(docs: list[Doc]) -> Iterator[tuple[str, Doc, bool]]:
    for doc in docs:
        spec = doc.get("spec") or {}
        if doc["kind"] == "Service" and "selector" in spec:
            yield f"{title(doc)}: spec.selector", {"matchLabels": spec["selector"]}, False
        if doc["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget", "PodMonitor"}:
            yield f"{title(doc)}: spec.selector", spec["selector"], False
        if doc["kind"] == "NetworkPolicy":
            yield f"{title(doc)}: spec.podSelector", spec["podSelector"], False
            for way, peers in (("ingress", "from"), ("egress", "to")):
                for index, rule in enumerate(spec.get(way, [])):
                    for place, peer in enumerate(rule.get(peers, [])):
                        if "podSelector" in peer:
                            where = f"{title(doc)}: spec.{way}[{index}].{peers}[{place}]"
                            yield f"{where}.podSelector", peer["podSelector"], True
    for pod in pods_of(docs):
        for index, one in enumerate(pod.spec.get("topologySpreadConstraints", [])):
            where = f"{pod.where}.topologySpreadConstraints[{index}].labelSelector"
            yield where, one["labelSelector"], False


def matches(selector: Doc, pod: Pod) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= pod.labels.items()
    return wanted and all(_holds(one, pod.labels) for one in selector.get("matchExpressions", []))


def _holds(expression: Doc, labels: dict[str, str]) -> bool:
    value, operator = labels.get(expression["key"]), expression["operator"]
    return {
        "Exists": value is not None,
        "DoesNotExist": value is None,
        "In": value in expression.get("values", []),
        "NotIn": value not in expression.get("values", []),
    }[operator]


def _is_others(selector: Doc) -> bool:
    labels = selector.get("matchLabels", {})
    keys = {one["key"] for one in selector.get("matchExpressions", [])}
    return all(value in OTHERS_LABELS.get(key, set()) for key, value in labels.items()) and all(
        key in OTHERS_LABELS for key in keys
    )


def ports_exist(docs: list[Doc]) -> list[str]:
    """Ports of Services, monitors, probes and policies are ports of the pods that they mean."""
    pods = pods_of(docs)
    problems = []
    for doc in of_kind(docs, "Service"):
        chosen = [pod for pod in pods if matches({"matchLabels": doc["spec"]["selector"]}, pod)]
        for index, port in enumerate(doc["spec"]["ports"]):
            target = port.get("targetPort", port["port"])
            problems += _missing(f"{title(doc)}: spec.ports[{index}].targetPort", target, chosen)
    for doc in of_kind(docs, "PodMonitor"):
        chosen = [pod for pod in pods if matches(doc["spec"]["selector"], pod)]
        for index, one in enumerate(doc["spec"]["podMetricsEndpoints"]):
            where = f"{title(doc)}: spec.podMetricsEndpoints[{index}].port"
            problems += _missing(where, one.get("port", one.get("portNumber")), chosen)
    for doc in of_kind(docs, "NetworkPolicy"):
        chosen = [pod for pod in pods if matches(doc["spec"]["podSelector"], pod)]
        for index, rule in enumerate(doc["spec"].get("ingress", [])):
            for place, port in enumerate(rule.get("ports", [])):
                where = f"{title(doc)}: spec.ingress[{index}].ports[{place}].port"
                problems += _missing(where, port["port"], chosen)
    for pod in pods:
        for where, container in pod.containers():
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "httpGet" in container.get(probe, {}):
                    port = container[probe]["httpGet"]["port"]
                    problems += _missing(f"{where}.{probe}.httpGet.port", port, [pod])
    return problems


def _missing(where: str, port: Any, pods: list[Pod]) -> list[str]:
    known = [pod.ports() for pod in pods]
    if any(port in ports or port in ports.values() for ports in known):
        return []
    return [f"{where}: no pod behind it has a port {port!r}"]
