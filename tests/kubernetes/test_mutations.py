"""Every rule refuses what it is there for: one mutation each, told by object and field."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.kubernetes.rendering import Doc, find, render
from tests.kubernetes.rules import RULES

pytestmark = pytest.mark.kubernetes

CLUSTER = "spec.rayClusterConfig"
HEAD = f"{CLUSTER}.headGroupSpec.template.spec"
WORKERS = f"{CLUSTER}.workerGroupSpecs[0]"
POD = f"{WORKERS}.template.spec"
CONTAINER = f"{POD}.containers[0]"
GONE = object()
Change = Callable[[list[Doc]], None]


def put(path: str, value: Any, kind: str = "RayService", name: str = "muxserve") -> Change:
    """Set a field; GONE takes it away, and a path that ends in [+] adds to a list."""

    def change(docs: list[Doc]) -> None:
        target: Any = find(docs, kind, name)
        *way, last = re.findall(r"[^.\[\]]+", path)
        for part in way:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if last == "+":
            target.append(value)
        elif value is GONE:
            del target[int(last) if isinstance(target, list) else last]
        else:
            target[int(last) if isinstance(target, list) else last] = value

    return change


def served(path: str, value: Any) -> Change:
    """Set a field inside serveConfigV2."""

    def change(docs: list[Doc]) -> None:
        service = find(docs, "RayService", "muxserve")
        content = yaml.safe_load(service["spec"]["serveConfigV2"])
        target = content
        *way, last = re.findall(r"[^.\[\]]+", path)
        for part in way:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[last] = value
        service["spec"]["serveConfigV2"] = yaml.safe_dump(content)

    return change


def renamed(old: str, new: str) -> Change:
    """Rename a field of the RayService's spec."""

    def change(docs: list[Doc]) -> None:
        spec = find(docs, "RayService", "muxserve")["spec"]
        spec[new] = spec.pop(old)

    return change


def doubled(docs: list[Doc]) -> None:
    docs.append(find(docs, "ServiceAccount", "muxserve"))


SETTING = "applications[0].args"
TRITON = ("Deployment", "muxserve-triton")
MASTER, WORKER = ("Job", "muxserve-loadtest-master"), ("Job", "muxserve-loadtest-worker")
NO_SETTING = "unknown setting 'replicas.max_replica'"
CUSTOM, CORE = "custom_kinds", "core_kinds"

#: (rule, overlay, what is changed, what is told: the object and the field)
MUTATIONS: list[tuple[str, str, Change, list[str]]] = [
    (
        CUSTOM,
        "cpu",
        renamed("serveConfigV2", "serveConfig"),
        ["RayService/muxserve", "serveConfig"],
    ),
    (CUSTOM, "cpu", put(f"{WORKERS}.rayStartParams.num-cpus", 4), ["rayStartParams.num-cpus", "4"]),
    (CUSTOM, "cpu", put(f"{WORKERS}.groupName", GONE), ["workerGroupSpecs[0]", "groupName"]),
    (CUSTOM, "cpu", put(f"{CLUSTER}.autoscalerOptions.version", "v3"), ["version", "v3"]),
    (CUSTOM, "cpu", put(f"{POD}.volumes", None), ["volumes", "None"]),
    (
        *(CUSTOM, "cpu", put(f"{CONTAINER}.ports[+]", {"containerPort": 8080})),
        ["containers[0].ports[2]", "twice"],
    ),
    (
        *(CUSTOM, "triton", put("spec.podMetricsEndpoint", [], "PodMonitor", "muxserve-triton")),
        ["PodMonitor/muxserve-triton", "podMetricsEndpoint"],
    ),
    (
        CORE,
        "cpu",
        put(f"{CONTAINER}.imagePullPolice", "Always"),
        [CONTAINER[:44], "imagePullPolice"],
    ),
    (
        *(CORE, "triton", put("spec.minReplica", 2, "HorizontalPodAutoscaler", "muxserve-triton")),
        ["HorizontalPodAutoscaler/muxserve-triton", "minReplica"],
    ),
    (
        "objects_exist",
        "cpu",
        put(f"{HEAD}.serviceAccountName", "mux"),
        ["serviceAccountName", "mux"],
    ),
    (
        "objects_exist",
        "gpu",
        put(f"{CLUSTER}.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef.name", "mux"),
        ["RayService/muxserve", "redisPassword", "no Secret 'mux'"],
    ),
    (
        *("objects_exist", "gpu", put(f"{CLUSTER}.gcsFaultToleranceOptions.redisAddress", "red:1")),
        ["redisAddress", "no Service 'red'"],
    ),
    (
        "objects_exist",
        "loadtest",
        put("spec.template.spec.containers[0].envFrom[0].configMapRef.name", "load", *MASTER),
        ["Job/muxserve-loadtest-master", "envFrom[0]", "no ConfigMap 'load'"],
    ),
    (
        "objects_exist",
        "gpu",
        put(f"{POD}.volumes[0].persistentVolumeClaim.claimName", "mine"),
        [f"{POD}.volumes[0]", "no PersistentVolumeClaim 'mine'"],
    ),
    (
        "objects_exist",
        "triton",
        put("spec.scaleTargetRef.name", "other", "HorizontalPodAutoscaler", "muxserve-triton"),
        ["HorizontalPodAutoscaler/muxserve-triton", "spec.scaleTargetRef", "other"],
    ),
    (
        *("mounts_have_volumes", "cpu", put(f"{CONTAINER}.volumeMounts[0].name", "other")),
        [f"{CONTAINER}.volumeMounts[0].name", "no volume 'other'"],
    ),
    (
        "selectors_find_pods",
        "cpu",
        put("spec.selector.matchLabels", {"app": "x"}, "PodDisruptionBudget", "muxserve-worker"),
        ["PodDisruptionBudget/muxserve-worker", "spec.selector"],
    ),
    (
        "selectors_find_pods",
        "cpu",
        put("spec.ingress[1].from[0].podSelector.matchLabels", {"a": "b"}, "NetworkPolicy"),
        ["NetworkPolicy/muxserve", "spec.ingress[1].from[0].podSelector"],
    ),
    (
        *("ports_exist", "triton", put("spec.ports[1].targetPort", "rpc", "Service", TRITON[1])),
        ["Service/muxserve-triton", "spec.ports[1].targetPort", "'rpc'"],
    ),
    (
        "ports_exist",
        "triton",
        put("spec.podMetricsEndpoints[0].port", "metric", "PodMonitor", "muxserve-triton"),
        ["PodMonitor/muxserve-triton", "podMetricsEndpoints[0].port"],
    ),
    (
        "pods_are_restricted",
        "cpu",
        put(f"{POD}.securityContext.runAsUser", 0),
        [f"RayService/muxserve: {CONTAINER}.securityContext.runAsUser"],
    ),
    (
        "pods_are_restricted",
        "cpu",
        put(f"{CLUSTER}.autoscalerOptions.securityContext", {}),
        ["autoscalerOptions.securityContext.allowPrivilegeEscalation"],
    ),
    (
        "pods_are_restricted",
        "triton",
        put("spec.template.spec.volumes[0]", {"name": "repository", "hostPath": {}}, *TRITON),
        ["Deployment/muxserve-triton", "volumes[0]", "hostPath"],
    ),
    (
        "tokens_are_for_those_who_need_them",
        "loadtest",
        put("spec.template.spec.automountServiceAccountToken", GONE, *MASTER),
        ["Job/muxserve-loadtest-master", "automountServiceAccountToken"],
    ),
    (
        "resources_are_said",
        "cpu",
        put(f"{CONTAINER}.resources.limits.memory", "9Gi"),
        [f"{CONTAINER}.resources.limits.memory"],
    ),
    (
        "resources_are_said",
        "cpu",
        put(f"{CONTAINER}.resources.requests.cpu", "4 cores"),
        [f"{CONTAINER}.resources", "'4 cores' is no quantity"],
    ),
    (
        "resources_are_said",
        "gpu",
        put(f"{HEAD}.containers[0].resources.limits.cpu", "500m"),
        [f"{HEAD}.containers[0].resources.requests.cpu", "500m"],
    ),
    (
        "images_are_versions",
        "cpu",
        put(f"{CONTAINER}.image", "muxserve:latest"),
        [f"{CONTAINER}.image", "muxserve:latest"],
    ),
    (
        "names_are_once",
        "cpu",
        put(f"{CONTAINER}.env[+]", {"name": "HF_HOME", "value": "/x"}),
        [f"{CONTAINER}.env", "HF_HOME"],
    ),
    ("names_are_once", "cpu", doubled, ["ServiceAccount/muxserve", "twice"]),
    (
        "servers_are_probed",
        "triton",
        put("spec.template.spec.containers[0].livenessProbe", GONE, *TRITON),
        ["Deployment/muxserve-triton", "containers[0].livenessProbe"],
    ),
    (
        "waits_fit_the_end",
        "triton",
        put("spec.template.spec.terminationGracePeriodSeconds", 15, *TRITON),
        ["Deployment/muxserve-triton", "terminationGracePeriodSeconds", "15 s"],
    ),
    (
        "budgets_can_be_kept",
        "cpu",
        put("spec.minAvailable", "50%", "PodDisruptionBudget", "muxserve-worker"),
        ["PodDisruptionBudget/muxserve-worker", "spec.minAvailable"],
    ),
    ("versions_agree", "cpu", put(f"{CLUSTER}.rayVersion", "2.59.0"), ["rayVersion", "2.59.0"]),
    (
        "versions_agree",
        "cpu",
        put(f"{CONTAINER}.image", "muxserve:0.1.0-ray2.59.0-py311-cpu"),
        [f"{CONTAINER}.image", "2.59.0"],
    ),
    (
        "start_parameters_are_texts",
        "cpu",
        put(f"{WORKERS}.rayStartParams.num-cpus", 4),
        [f"RayService/muxserve: {WORKERS}.rayStartParams.num-cpus", "4"],
    ),
    (
        "head_runs_no_replica",
        "cpu",
        put(f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus", "2"),
        ["headGroupSpec.rayStartParams.num-cpus"],
    ),
    (
        "workers_have_bounds",
        "cpu",
        put(f"{WORKERS}.minReplicas", 9),
        [f"{WORKERS}.minReplicas", "[9, 2, 8]"],
    ),
    ("workers_have_bounds", "cpu", put(f"{WORKERS}.maxReplicas", GONE), [WORKERS, "must be said"]),
    (
        "cpus_are_those_asked_for",
        "cpu",
        put(f"{CONTAINER}.resources.requests.cpu", "2"),
        [f"{WORKERS}.rayStartParams.num-cpus", "asks for 2"],
    ),
    (
        "ports_are_named",
        "cpu",
        put(f"{CONTAINER}.ports[0].name", "http"),
        [f"{CONTAINER}.ports", "serve must be 8000"],
    ),
    (
        "autoscaler_is_allowed",
        "cpu",
        put(f"{POD}.restartPolicy", "Always"),
        [f"{POD}.restartPolicy", "Never"],
    ),
    (
        "probes_are_kuberays",
        "cpu",
        put(f"{CONTAINER}.readinessProbe", {"exec": {"command": ["true"]}}),
        [f"{CONTAINER}.readinessProbe"],
    ),
    (
        "fault_tolerance_is_allowed",
        "gpu",
        put(f"{CLUSTER}.headGroupSpec.rayStartParams.redis-password", "x"),
        ["headGroupSpec.rayStartParams.redis-password"],
    ),
    (
        "upgrade_is_allowed",
        "incremental",
        put("spec.upgradeStrategy.clusterUpgradeOptions.stepSizePercent", 50),
        ["spec.upgradeStrategy.clusterUpgradeOptions.stepSizePercent", "50"],
    ),
    (
        "upgrade_is_allowed",
        "incremental",
        put("spec.upgradeStrategy.clusterUpgradeOptions.gatewayClassName", ""),
        ["RayService/muxserve", "gatewayClassName"],
    ),
    ("names_fit", "cpu", put("metadata.name", "m" * 48), ["metadata.name", "47"]),
    ("cluster_is_protected", "cpu", put(f"{CLUSTER}.authOptions", GONE), ["authOptions.mode"]),
    (
        "serve_config_is_rays",
        "cpu",
        served("http_option", {}),
        ["RayService/muxserve: spec.serveConfigV2", "http_option"],
    ),
    (
        "serve_config_is_rays",
        "cpu",
        served("applications[0].import_pth", "x"),
        ["spec.serveConfigV2", "applications.import_pth"],
    ),
    ("serve_config_is_rays", "cpu", served("http_options.port", 9000), ["http_options", "8000"]),
    ("serve_config_is_rays", "cpu", served("proxy_location", "HeadOnly"), ["proxy_location"]),
    (
        "applications_take_their_settings",
        "cpu",
        served(f"{SETTING}.replicas.max_replica", 3),
        ["applications[0].args", NO_SETTING],
    ),
    (
        "applications_take_their_settings",
        "cpu",
        served("applications[0].import_path", "deployments.nothing:app"),
        ["applications[0].import_path", "deployments.nothing"],
    ),
    (
        "replicas_have_a_place",
        "cpu",
        served(f"{SETTING}.replicas.num_cpus", 5),
        ["spec.serveConfigV2", "MuxIngress", "5 CPUs", "minReplicas"],
    ),
    (
        "replicas_have_a_place",
        "gpu",
        put(f"{WORKERS}.maxReplicas", 7),
        ["spec.serveConfigV2", "MuxReplica", "8 replicas", "maxReplicas (7)"],
    ),
    (
        "gpus_are_used",
        "gpu",
        served(f"{SETTING}.replicas.num_gpus", 0),
        [WORKERS, "replicas.num_gpus"],
    ),
    ("gpus_are_used", "gpu", put(f"{POD}.tolerations", []), [f"{POD}.tolerations", "nvidia"]),
    (
        "requests_are_ended_in_time",
        "cpu",
        served(f"{SETTING}.limits.request_timeout_s", 60),
        [f"{CONTAINER}.lifecycle.preStop", "65 s"],
    ),
    (
        "requests_are_ended_in_time",
        "cpu",
        put(f"{POD}.terminationGracePeriodSeconds", 60),
        [f"{POD}.terminationGracePeriodSeconds", "60 s"],
    ),
    (
        "head_may_fail",
        "gpu",
        served(f"{SETTING}.replicas.max_replicas_per_node", None),
        ["spec.serveConfigV2", "MuxReplica", "max_replicas_per_node"],
    ),
    (
        "triton_is_here",
        "triton",
        served(f"{SETTING}.triton.url", "triton:8001"),
        ["spec.serveConfigV2", "triton.url", "triton"],
    ),
    ("jobs_end", "loadtest", put("spec.backoffLimit", 6, *MASTER), [MASTER[1], "backoffLimit"]),
    (
        "master_and_workers_fit",
        "loadtest",
        put("spec.parallelism", 3, *WORKER),
        ["Job/muxserve-loadtest-worker", "spec.parallelism", "--expect-workers"],
    ),
]


@pytest.mark.parametrize(
    ("rule", "overlay", "change", "told"),
    MUTATIONS,
    ids=[f"{index}-{one[0]}" for index, one in enumerate(MUTATIONS)],
)
def test_a_rule_tells_of(rule, overlay, change, told):
    docs = render(overlay)
    assert not RULES[rule](docs)
    change(docs)
    problems = RULES[rule](docs)
    assert any(all(part in problem for part in told) for problem in problems), problems


def test_every_rule_has_a_mutation():
    assert {one[0] for one in MUTATIONS} == set(RULES)
