"""Rules of a RayService, of what it serves, and of load tests refuse what they are there for."""

import pytest

from tests.kubernetes.mutating import (
    CLUSTER,
    CONTAINER,
    GONE,
    POD,
    WORKERS,
    Mutation,
    assert_told,
    names,
    put,
    served,
)
from tests.kubernetes.rules import RULES
from tests.kubernetes.test_refused_objects import MUTATIONS as OF_OBJECTS

pytestmark = pytest.mark.kubernetes

SETTING = "applications[0].args"
MASTER, WORKER = ("Job", "muxserve-loadtest-master"), ("Job", "muxserve-loadtest-worker")
NO_SETTING = "unknown setting 'replicas.max_replica'"

MUTATIONS: list[Mutation] = [
    ("versions_agree", "cpu", put(f"{CLUSTER}.rayVersion", "2.59.0"), ["rayVersion", "2.59.0"]),
    (
        "versions_agree",
        "cpu",
        put(f"{CONTAINER}.image", "muxserve:0.1.0-ray2.59.0-py311-cpu"),
        [f"{CONTAINER}.image", "2.59.0"],
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
    (
        "triton_is_here",
        "triton",
        put("spec.clusterIP", GONE, "Service", "muxserve-triton"),
        ["Service/muxserve-triton", "spec.clusterIP"],
    ),
    (
        "triton_is_here",
        "triton",
        put(
            "spec.template.spec.containers[0].lifecycle.preStop.exec.command",
            ["sleep", "15"],
            "Deployment",
            "muxserve-triton",
        ),
        ["Deployment/muxserve-triton", "lifecycle.preStop", "60 s"],
    ),
    ("jobs_end", "loadtest", put("spec.backoffLimit", 6, *MASTER), [MASTER[1], "backoffLimit"]),
    (
        "master_and_workers_fit",
        "loadtest",
        put("spec.parallelism", 3, *WORKER),
        ["Job/muxserve-loadtest-worker", "spec.parallelism", "--expect-workers"],
    ),
]


@pytest.mark.parametrize(("rule", "overlay", "change", "told"), MUTATIONS, ids=names(MUTATIONS))
def test_a_rule_tells_of(rule, overlay, change, told):
    assert_told(rule, overlay, change, told)


def test_every_rule_has_a_mutation():
    assert {one[0] for one in [*OF_OBJECTS, *MUTATIONS]} == set(RULES)
