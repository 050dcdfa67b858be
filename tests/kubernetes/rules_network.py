"""Rules of network policies: who must reach whom before a cluster is ready, and who must not."""

from dataclasses import dataclass

import yaml

from tests.kubernetes.pods import Pod, pods_of
from tests.kubernetes.rendering import Doc, of_kind, title
from tests.kubernetes.rules_names import matches

#: Some port that Ray chose by itself.
ANY_PORT = 41_000


@dataclass(frozen=True)
class Peer:
    """The other end: a pod's labels, and whether it is in the same namespace."""

    name: str
    labels: dict[str, str]
    near: bool


OPERATOR = Peer("KubeRay's operator", {"app.kubernetes.io/name": "kuberay-operator"}, False)
PROMETHEUS = Peer("Prometheus", {"app.kubernetes.io/name": "prometheus"}, False)
DNS = Peer("DNS", {"k8s-app": "kube-dns"}, False)
API_SERVER = Peer("the API server", {}, False)
CLIENT = Peer("a client", {"muxserve/client": "true"}, True)
STRANGER = Peer("a stranger", {"app": "stranger"}, True)
GATEWAY = Peer("the gateway", {"gateway.networking.k8s.io/gateway-name": "muxserve"}, True)


def policies_let_pass(docs: list[Doc]) -> list[str]:
    """What a cluster of Ray needs is let through, and nothing else reaches its dashboard."""
    problems = []
    for service in of_kind(docs, "RayService"):
        rays = [pod for pod in pods_of([service]) if pod.ray]
        for pod in rays:
            others = [_peer(other) for other in rays]
            into = [(other, ANY_PORT) for other in others]
            into += [(OPERATOR, 8265), (OPERATOR, 8000), (PROMETHEUS, 8080), (CLIENT, 8000)]
            if service["spec"]["upgradeStrategy"]["type"] != "NewCluster":
                into.append((GATEWAY, 8000))
            out = [(other, ANY_PORT) for other in others]
            out += [(DNS, 53), (API_SERVER, 443), (API_SERVER, 6443)]
            problems += _unreached(docs, pod, "ingress", into)
            problems += _unreached(docs, pod, "egress", out)
            problems += [
                f"{pod.where}: a NetworkPolicy lets {STRANGER.name} in on {port}"
                for port in (8265, 10001, 8000)
                if reaches(docs, pod, "ingress", STRANGER, port)
            ]
            for other, port in _servers(docs, service):
                problems += _unreached(docs, pod, "egress", [(_peer(other), port)])
                problems += _unreached(docs, other, "ingress", [(_peer(pod), port)])
    return problems


def prometheus_reaches_what_it_scrapes(docs: list[Doc]) -> list[str]:
    """Every port that a PodMonitor names is open to Prometheus, on each pod that has it."""
    return [
        f"{title(doc)}: spec.podMetricsEndpoints[{index}].port: no NetworkPolicy lets Prometheus "
        f"in on {port} of {pod.owner}: {pod.path}"
        for doc in of_kind(docs, "PodMonitor")
        for pod in pods_of(docs)
        if matches(doc["spec"]["selector"], pod)
        for index, endpoint in enumerate(doc["spec"]["podMetricsEndpoints"])
        if (port := endpoint.get("portNumber") or pod.ports().get(endpoint.get("port")))
        and not reaches(docs, pod, "ingress", PROMETHEUS, port)
    ]


def _servers(docs: list[Doc], service: Doc) -> list[tuple[Pod, int]]:
    """What Ray's pods ask beside each other: Redis, Triton."""
    addresses = []
    options = service["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
    if "redisAddress" in options:
        addresses.append(options["redisAddress"])
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    addresses += [
        one["args"]["triton"]["url"]
        for one in content["applications"]
        if one["args"].get("backend") == "triton"
    ]
    found = []
    for address in addresses:
        host, _, port = address.partition(":")
        for doc in of_kind(docs, "Service"):
            if doc["metadata"]["name"] == host:
                selector = {"matchLabels": doc["spec"]["selector"]}
                found += [(pod, int(port)) for pod in pods_of(docs) if matches(selector, pod)]
    return found


def _peer(pod: Pod) -> Peer:
    return Peer(pod.owner, pod.labels, True)


def _unreached(docs: list[Doc], pod: Pod, way: str, wanted: list[tuple[Peer, int]]) -> list[str]:
    arrow = "from" if way == "ingress" else "to"
    return [
        f"{pod.where}: no NetworkPolicy lets spec.{way} {arrow} {peer.name} on port {port}"
        for peer, port in wanted
        if not reaches(docs, pod, way, peer, port)
    ]


def reaches(docs: list[Doc], pod: Pod, way: str, peer: Peer, port: int) -> bool:
    """Whether the policies let a connection pass: into the pod, or out of it."""
    policies = [
        doc["spec"]
        for doc in of_kind(docs, "NetworkPolicy")
        if way.capitalize() in doc["spec"]["policyTypes"]
        and matches(doc["spec"]["podSelector"], pod)
    ]
    rules = [rule for policy in policies for rule in policy.get(way, [])]
    peers = "from" if way == "ingress" else "to"
    return not policies or any(
        ("ports" not in rule or port in {one["port"] for one in rule["ports"]})
        and (peers not in rule or any(_is(peer, one) for one in rule[peers]))
        for rule in rules
    )


def _is(peer: Peer, said: Doc) -> bool:
    # A namespace by its labels may be any but this one's; without labels it is every one.
    everywhere = said["namespaceSelector"] == {} if "namespaceSelector" in said else peer.near
    other = Pod("", "", peer.labels, {})
    return everywhere and matches(said.get("podSelector", {}), other)
