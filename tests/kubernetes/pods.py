"""Pod templates in any document, with what KubeRay adds to its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.kubernetes.rendering import Doc, title


@dataclass(frozen=True)
class Pod:
    """A pod that a document leads to.

    Attributes:
        owner: the document, such as ``Job/name``.
        path: of the template in it.
        labels: of the running pod.
        spec: of the pod.
        ray: head or worker, of a Ray cluster; else None.
        added: containers that KubeRay puts beside those of the template.
    """

    owner: str
    path: str
    labels: dict[str, str]
    spec: dict[str, Any]
    ray: str | None = None
    added: tuple[Doc, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.owner}: {self.path}.spec"

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, container) of each in the template, those at the start included."""
        for key in ("initContainers", "containers"):
            for index, container in enumerate(self.spec.get(key, [])):
                yield f"{self.where}.{key}[{index}]", container

    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for _, container in self.containers()
            for port in container.get("ports", [])
        }


def pods_of(docs: list[Doc]) -> list[Pod]:
    """Every pod of every document."""
    return [pod for doc in docs for pod in _pods(doc)]


def ray_groups(service: Doc) -> Iterator[tuple[str, str, Doc]]:
    """(head or worker, path, group) of a RayService."""
    cluster = service["spec"]["rayClusterConfig"]
    yield "head", "spec.rayClusterConfig.headGroupSpec", cluster["headGroupSpec"]
    for index, group in enumerate(cluster.get("workerGroupSpecs", [])):
        yield "worker", f"spec.rayClusterConfig.workerGroupSpecs[{index}]", group


def _pods(doc: Doc) -> Iterator[Pod]:
    if doc["kind"] == "RayService":
        for kind, path, group in ray_groups(doc):
            template = group["template"]
            # No more than KubeRay adds to pods: ray.io/originated-from-cr-name is not among it.
            # Left out are those with the cluster's name, which no manifest can know.
            labels = {
                "ray.io/is-ray-node": "yes",
                "ray.io/node-type": kind,
                "ray.io/group": group.get("groupName", "headgroup"),
                "app.kubernetes.io/name": "kuberay",
                "app.kubernetes.io/created-by": "kuberay-operator",
                **template.get("metadata", {}).get("labels", {}),
            }
            added = (_autoscaler(doc),) if kind == "head" else ()
            yield Pod(title(doc), f"{path}.template", labels, template["spec"], kind, added)
    elif doc["kind"] in {"Deployment", "StatefulSet", "Job"}:
        template = doc["spec"]["template"]
        labels = template.get("metadata", {}).get("labels", {})
        yield Pod(title(doc), "spec.template", labels, template["spec"])


def _autoscaler(service: Doc) -> Doc:
    """The container of Ray's autoscaler, which KubeRay starts in the head's pod."""
    cluster = service["spec"]["rayClusterConfig"]
    options = cluster.get("autoscalerOptions", {})
    image = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    own = ("image", "imagePullPolicy", "env", "resources", "securityContext", "volumeMounts")
    return {"name": "autoscaler", "image": image, **{k: options[k] for k in own if k in options}}


def as_document(pod: Pod) -> Doc:
    """The pod by itself, as an API server would get it from KubeRay."""
    name = pod.owner.partition("/")[2]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-{pod.ray}", "labels": pod.labels},
        "spec": {**pod.spec, "containers": [*pod.spec["containers"], *pod.added]},
    }
