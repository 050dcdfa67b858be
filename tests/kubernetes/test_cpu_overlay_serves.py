"""The serveConfigV2 of the rendered cpu overlay, deployed as KubeRay deploys it, answers.

The cluster has the overlay's shape: a head without CPUs, and its fewest workers, each with the
``num-cpus`` of the group and the environment of the container. The configuration goes to the
dashboard's REST interface, where KubeRay's operator sends it. Only addresses and ports
differ.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import yaml

from muxserve.loadtest.servers.muxserve import free_port
from tests.kubernetes.rendering import ROOT, Doc, find, render
from tests.ray_serve import BOUND_S, until

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(280)]

TOKEN = "of-a-test-of-a-test-of-a-test-00"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def ray_of(service: Doc, local: dict[str, str]) -> Iterator[str]:
    """A Ray cluster in the shape of a RayService; gives the dashboard's URL."""
    cluster = service["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    workers = [{"num_cpus": int(group["rayStartParams"]["num-cpus"])}] * group["minReplicas"]
    environment = {
        **os.environ,
        **{one["name"]: one["value"] for one in container["env"] if "value" in one},
        **local,
        # What KubeRay sets for authOptions.
        "RAY_AUTH_MODE": cluster["authOptions"]["mode"],
        "RAY_AUTH_TOKEN": TOKEN,
        # As in the image, where deployments/ lies beside the installed package.
        "PYTHONPATH": str(ROOT),
    }
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.kubernetes.ray_nodes", json.dumps({"workers": workers})],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        yield json.loads(running.stdout.readline())["dashboard"]
    finally:
        running.stdin.close()
        running.wait(60)


def test_the_cpu_overlay_answers():
    service = find(render("cpu"), "RayService", "muxserve")
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    port = free_port()
    content["http_options"] = {"host": "127.0.0.1", "port": port}
    url = f"http://127.0.0.1:{port}"
    local = {
        # Nobody else sends requests, so a replica need not wait for those that still come.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }
    with ray_of(service, local) as dashboard:
        applications = f"{dashboard}/api/serve/applications/"
        assert httpx.put(applications, json=content, timeout=60).status_code == 401
        deployed = httpx.put(applications, json=content, headers=AUTHORIZATION, timeout=60)
        assert deployed.status_code == 200, deployed.text
        (name,) = (one["name"] for one in content["applications"])
        application = until(lambda: _running(applications, name), f"{name} runs")
        (deployment,) = application["deployments"].values()
        replicas = deployment["replicas"]
        assert {one["state"] for one in replicas} == {"RUNNING"}
        # One on each worker, as replicas.max_replicas_per_node says.
        assert len({one["node_id"] for one in replicas}) == len(replicas) == 2
        until(lambda: _get(f"{url}/-/healthz") == 200, "KubeRay's probe passes")
        until(lambda: _get(f"{url}/ready") == 200, "ready")
        texts = ["A moving, beautifully shot film.", "Two hours of my life, gone."]
        answer = httpx.post(f"{url}/predict", json={"inputs": texts}, timeout=BOUND_S)
        assert [entries[0]["label"] for entries in answer.json()] == ["positive", "negative"]
        # In place, as a changed serveConfigV2 is applied: the same cluster, another setting.
        content["applications"][0]["args"]["limits"] = {"max_texts_per_request": 1}
        again = httpx.put(applications, json=content, headers=AUTHORIZATION, timeout=60)
        assert again.status_code == 200, again.text
        until(lambda: _post(url, texts) == 413, "the new setting holds")


def _running(applications: str, name: str) -> dict[str, Any] | None:
    response = httpx.get(applications, headers=AUTHORIZATION, timeout=60)
    found = response.json()["applications"].get(name, {})
    assert found.get("status") != "DEPLOY_FAILED", found.get("message")
    return found if found.get("status") == "RUNNING" else None


def _get(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=BOUND_S).status_code
    except httpx.TransportError:
        return None


def _post(url: str, texts: list[str]) -> int | None:
    try:
        return httpx.post(f"{url}/predict", json={"inputs": texts}, timeout=BOUND_S).status_code
    except httpx.TransportError:
        return None
