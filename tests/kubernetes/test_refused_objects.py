"""Rules of any object refuse what they are there for: schemas, names, pods."""

import pytest

from tests.kubernetes.mutating import (
    CLUSTER,
    CONTAINER,
    GONE,
    HEAD,
    POD,
    WORKERS,
    Mutation,
    assert_told,
    names,
    put,
    renamed,
    unlabelled,
)

pytestmark = pytest.mark.kubernetes

TRITON = ("Deployment", "muxserve-triton")
MASTER = ("Job", "muxserve-loadtest-master")
CUSTOM, CORE = "custom_kinds", "core_kinds"

MUTATIONS: list[Mutation] = [
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
        "selectors_find_pods",
        "cpu",
        unlabelled("worker"),
        ["PodDisruptionBudget/muxserve-worker", "spec.selector", "originated-from-cr-name"],
    ),
    (
        "selectors_find_pods",
        "cpu",
        unlabelled("head"),
        ["PodMonitor/muxserve-head", "spec.selector", "originated-from-cr-name"],
    ),
    (
        "policies_let_pass",
        "cpu",
        unlabelled("head"),
        [f"RayService/muxserve: {POD}", "spec.ingress from RayService/muxserve on port 41000"],
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
        "policies_let_pass",
        "cpu",
        put("spec.ingress", [], "NetworkPolicy"),
        [f"RayService/muxserve: {POD}", "spec.ingress from RayService/muxserve on port 41000"],
    ),
    (
        "policies_let_pass",
        "cpu",
        put("spec.ingress[1].ports[0].port", 8000, "NetworkPolicy"),
        ["RayService/muxserve", "KubeRay's operator on port 8265"],
    ),
    (
        "policies_let_pass",
        "cpu",
        put("spec.ingress[1].from", GONE, "NetworkPolicy"),
        ["RayService/muxserve", "lets a stranger in on 8265"],
    ),
    (
        "policies_let_pass",
        "gpu",
        put("spec.egress", [], "NetworkPolicy", "muxserve-to-redis"),
        ["RayService/muxserve", "spec.egress to StatefulSet/muxserve-redis on port 6379"],
    ),
    (
        "policies_let_pass",
        "triton",
        put("spec.ingress[0].ports[0].port", 8000, "NetworkPolicy", "muxserve-triton"),
        ["Deployment/muxserve-triton", "spec.ingress from RayService/muxserve on port 8001"],
    ),
    (
        "prometheus_reaches_what_it_scrapes",
        "triton",
        put("spec.ingress[1].ports[0].port", 8003, "NetworkPolicy", "muxserve-triton"),
        ["PodMonitor/muxserve-triton", "podMetricsEndpoints[0].port", "8002"],
    ),
    (
        "pods_are_restricted",
        "cpu",
        put(f"{POD}.securityContext.runAsUser", 0),
        [f"RayService/muxserve: {POD}.securityContext.runAsUser"],
    ),
    (
        "pods_are_restricted",
        "triton",
        put("spec.template.spec.volumes[0]", {"name": "repository", "hostPath": {}}, *TRITON),
        ["Deployment/muxserve-triton", "volumes[0]", "hostPath"],
    ),
    (
        "limits_fit_requests",
        "cpu",
        put(f"{CONTAINER}.resources.limits.memory", "9Gi"),
        [f"{CONTAINER}.resources.limits.memory"],
    ),
    (
        "limits_fit_requests",
        "cpu",
        put(f"{CONTAINER}.resources.requests.cpu", "4 cores"),
        [f"{CONTAINER}.resources", "'4 cores' is no quantity"],
    ),
    (
        "limits_fit_requests",
        "gpu",
        put(f"{HEAD}.containers[0].resources.limits.cpu", "500m"),
        [f"{HEAD}.containers[0].resources.limits.cpu", "500m"],
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
]


@pytest.mark.parametrize(("rule", "overlay", "change", "told"), MUTATIONS, ids=names(MUTATIONS))
def test_a_rule_tells_of(rule, overlay, change, told):
    assert_told(rule, overlay, change, told)
