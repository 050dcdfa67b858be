"""Rules of a RayService: what KubeRay's operator refuses or needs, and versions that agree."""

import re
from collections.abc import Iterator

from muxserve import __version__
from tests.kubernetes.pods import Pod, pods_of
from tests.kubernetes.rendering import ROOT, Doc, of_kind, title
from tests.kubernetes.rules_pods import quantity

#: Ports by the names that KubeRay, Services and monitors look for.
WORKER_PORTS = {"serve": 8000, "metrics": 8080}
HEAD_PORTS = {
    **WORKER_PORTS,
    "gcs-server": 6379,
    "dashboard": 8265,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
#: Longest name for which KubeRay's names of clusters, pods and Services fit.
MOST_NAME = 47


def pinned_ray() -> str:
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def _clusters(docs: list[Doc]) -> Iterator[tuple[str, Doc, Doc]]:
    for doc in of_kind(docs, "RayService"):
        yield f"{title(doc)}: spec.rayClusterConfig", doc, doc["spec"]["rayClusterConfig"]


def versions_agree(docs: list[Doc]) -> list[str]:
    """rayVersion, the pin of Ray and the tags of images are one version; so is muxserve's."""
    problems = []
    ray = pinned_ray()
    for where, _, cluster in _clusters(docs):
        if cluster.get("rayVersion") != ray:
            problems.append(f"{where}.rayVersion: {cluster.get('rayVersion')}, pinned is {ray}")
    for pod in pods_of(docs):
        for where, container in pod.containers():
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if name in {"muxserve", "muxserve-locust"} and not tag.startswith(
                f"{__version__}-ray{ray}-"
            ):
                problems.append(f"{where}.image: {tag} is not of {__version__} and Ray {ray}")
            if name == "muxserve-triton" and not tag.startswith(f"{__version__}-"):
                problems.append(f"{where}.image: {tag} is not of {__version__}")
    images = {
        container["image"] for pod in pods_of(docs) if pod.ray for _, container in pod.containers()
    }
    if len(images) > 1:
        problems.append(f"RayService: spec.rayClusterConfig: head and workers differ: {images}")
    return problems


def head_runs_no_replica(docs: list[Doc]) -> list[str]:
    problems = []
    for where, doc, cluster in _clusters(docs):
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            problems.append(f'{where}.headGroupSpec.rayStartParams.num-cpus: must be "0"')
        if doc["spec"].get("excludeHeadPodFromServeSvc") is not True:
            problems.append(f"{title(doc)}: spec.excludeHeadPodFromServeSvc: must be true")
    return problems


def workers_have_bounds(docs: list[Doc]) -> list[str]:
    """0 <= minReplicas <= replicas <= maxReplicas, all said: the default of the last is 2^31."""
    problems = []
    for where, _, cluster in _clusters(docs):
        for index, group in enumerate(cluster["workerGroupSpecs"]):
            here = f"{where}.workerGroupSpecs[{index}]"
            bounds = [group.get(name) for name in ("minReplicas", "replicas", "maxReplicas")]
            if None in bounds:
                problems.append(f"{here}: minReplicas, replicas and maxReplicas must be said")
            elif not 0 <= bounds[0] <= bounds[1] <= bounds[2] or bounds[2] == 0:
                problems.append(f"{here}.minReplicas, replicas, maxReplicas: {bounds} do not rise")
    return problems


def cpus_are_those_asked_for(docs: list[Doc]) -> list[str]:
    """Ray places replicas by num-cpus, Kubernetes pods by the request: one number."""
    problems = []
    for where, _, cluster in _clusters(docs):
        for index, group in enumerate(cluster["workerGroupSpecs"]):
            said = group["rayStartParams"].get("num-cpus")
            asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
            if said is None or float(said) != quantity(asked):
                problems.append(
                    f"{where}.workerGroupSpecs[{index}].rayStartParams.num-cpus: {said}, "
                    f"the container asks for {asked}"
                )
    return problems


def ports_are_named(docs: list[Doc]) -> list[str]:
    return [
        f"{pod.where}.containers[0].ports: {name} must be {number}"
        for pod in pods_of(docs)
        if pod.ray
        for name, number in (HEAD_PORTS if pod.ray == "head" else WORKER_PORTS).items()
        if pod.ports().get(name) != number
    ]


def autoscaler_is_allowed(docs: list[Doc]) -> list[str]:
    """What KubeRay asks of a cluster whose autoscaler is version 2."""
    problems = []
    for where, _, cluster in _clusters(docs):
        options = cluster.get("autoscalerOptions", {})
        if not cluster.get("enableInTreeAutoscaling"):
            problems.append(f"{where}.enableInTreeAutoscaling: must be true")
        if options.get("version") != "v2":
            problems.append(f"{where}.autoscalerOptions.version: must be v2")
    for pod in _of_ray(docs):
        if pod.spec.get("restartPolicy", "Never") != "Never":
            problems.append(f"{pod.where}.restartPolicy: must be Never or unset with version v2")
        for where, container in pod.containers():
            names = {one["name"] for one in container.get("env", [])}
            if "RAY_enable_autoscaler_v2" in names:
                problems.append(f"{where}.env: RAY_enable_autoscaler_v2 is said by the options")
    return problems


def probes_are_kuberays(docs: list[Doc]) -> list[str]:
    """Probes of our own would replace KubeRay's, which know Ray."""
    return [
        f"{where}.{probe}: leave it to KubeRay"
        for pod in _of_ray(docs)
        for where, container in pod.containers()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if probe in container
    ]


def fault_tolerance_is_allowed(docs: list[Doc]) -> list[str]:
    """Redis is said in one place; with it, or without, nothing half of it is left."""
    problems = []
    for where, _, cluster in _clusters(docs):
        parameters = cluster["headGroupSpec"].get("rayStartParams", {})
        problems += [
            f"{where}.headGroupSpec.rayStartParams.{name}: belongs in gcsFaultToleranceOptions"
            for name in ("redis-password", "redis-username")
            if name in parameters
        ]
        options = cluster.get("gcsFaultToleranceOptions")
        if options is not None and "valueFrom" not in options.get("redisPassword", {}):
            problems.append(
                f"{where}.gcsFaultToleranceOptions.redisPassword: must come from a secret"
            )
    for pod in _of_ray(docs):
        for where, container in pod.containers():
            names = {one["name"] for one in container.get("env", [])}
            problems += [
                f"{where}.env: {name} belongs in gcsFaultToleranceOptions"
                for name in sorted(
                    names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
                )
            ]
    return problems


def upgrade_is_allowed(docs: list[Doc]) -> list[str]:
    problems = []
    for doc in of_kind(docs, "RayService"):
        where, strategy = f"{title(doc)}: spec.upgradeStrategy", doc["spec"]["upgradeStrategy"]
        kind, options = strategy.get("type"), strategy.get("clusterUpgradeOptions")
        if kind not in {"NewCluster", "NewClusterWithIncrementalUpgrade"}:
            problems.append(f"{where}.type: {kind} replaces nothing")
        elif kind == "NewCluster" and options is not None:
            problems.append(f"{where}.clusterUpgradeOptions: belongs to the incremental kind")
        elif kind == "NewClusterWithIncrementalUpgrade":
            if not options or not options.get("gatewayClassName"):
                problems.append(f"{where}.clusterUpgradeOptions.gatewayClassName: missing")
                continue
            step, surge = options["stepSizePercent"], options.get("maxSurgePercent", 100)
            if not 0 < step <= surge <= 100:
                problems.append(
                    f"{where}.clusterUpgradeOptions.stepSizePercent: {step} is not in 1 to "
                    f"maxSurgePercent ({surge})"
                )
            if options["intervalSeconds"] <= 0:
                problems.append(f"{where}.clusterUpgradeOptions.intervalSeconds: must be over 0")
    return problems


def names_fit(docs: list[Doc]) -> list[str]:
    return [
        f"{title(doc)}: metadata.name: at most {MOST_NAME} letters, digits and hyphens"
        for doc in of_kind(docs, "RayService")
        if not re.fullmatch(
            rf"[a-z]([-a-z0-9]{{0,{MOST_NAME - 2}}}[a-z0-9])?", doc["metadata"]["name"]
        )
    ]


def cluster_is_protected(docs: list[Doc]) -> list[str]:
    """Ray's token, and code in the image: whoever reaches the dashboard could run anything."""
    problems = []
    for where, _, cluster in _clusters(docs):
        if cluster.get("authOptions", {}).get("mode") != "token":
            problems.append(f"{where}.authOptions.mode: must be token")
    return problems


def _of_ray(docs: list[Doc]) -> list[Pod]:
    return [pod for pod in pods_of(docs) if pod.ray]
