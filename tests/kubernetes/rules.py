"""Every rule, by the name that tests give it."""

from collections.abc import Callable

from tests.kubernetes import (
    rules_jobs,
    rules_names,
    rules_network,
    rules_pods,
    rules_ray,
    rules_serve,
    schemas,
)
from tests.kubernetes.rendering import Doc

Rule = Callable[[list[Doc]], list[str]]
_RULES: list[Rule] = [
    schemas.core_kinds,
    schemas.custom_kinds,
    rules_names.objects_exist,
    rules_names.mounts_have_volumes,
    rules_names.selectors_find_pods,
    rules_names.ports_exist,
    rules_network.policies_let_pass,
    rules_network.prometheus_reaches_what_it_scrapes,
    rules_pods.pods_are_restricted,
    rules_pods.limits_fit_requests,
    rules_pods.waits_fit_the_end,
    rules_pods.budgets_can_be_kept,
    rules_ray.versions_agree,
    rules_ray.head_runs_no_replica,
    rules_ray.workers_have_bounds,
    rules_ray.cpus_are_those_asked_for,
    rules_ray.ports_are_named,
    rules_ray.autoscaler_is_allowed,
    rules_ray.probes_are_kuberays,
    rules_ray.fault_tolerance_is_allowed,
    rules_ray.upgrade_is_allowed,
    rules_ray.names_fit,
    rules_ray.cluster_is_protected,
    rules_serve.serve_config_is_rays,
    rules_serve.applications_take_their_settings,
    rules_serve.replicas_have_a_place,
    rules_serve.gpus_are_used,
    rules_serve.requests_are_ended_in_time,
    rules_serve.head_may_fail,
    rules_serve.triton_is_here,
    rules_jobs.jobs_end,
    rules_jobs.master_and_workers_fit,
]
RULES: dict[str, Rule] = {rule.__name__: rule for rule in _RULES}
