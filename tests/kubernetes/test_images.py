"""Dockerfiles by hadolint, pods by checkov, and what images and manifests share."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from muxserve import __version__
from tests.kubernetes.mutating import CLUSTER, CONTAINER, GONE, Change, put
from tests.kubernetes.pods import as_document, pods_of
from tests.kubernetes.rendering import OVERLAYS, ROOT, render
from tests.kubernetes.rules_ray import pinned_ray

pytestmark = pytest.mark.kubernetes

DOCKER = ROOT / "docker"
DOCKERFILES = ["Dockerfile", "Dockerfile.locust", "Dockerfile.triton"]
HADOLINT = Path(sys.executable).with_name("hadolint")
CHECKOV = ROOT / ".cache" / "checkov" / "bin" / "checkov"
#: Checks of checkov that do not hold here, and why.
NOT_KEPT = {
    "CKV_K8S_11": "a CPU limit would slow a forward down on a node that has CPUs to spare",
    "CKV_K8S_15": "an image's tag is a version; pulling it each time makes a registry's loss ours",
    "CKV_K8S_22": "Ray writes beside /tmp; all others have a root that is read-only",
    "CKV_K8S_35": "the password is read from the environment by KubeRay's own pods too",
    "CKV_K8S_40": "Ray's image is made for user 1000",
    "CKV_K8S_43": "the digest is of the image that the user builds",
    "CKV_DOCKER_2": "Kubernetes probes; a HEALTHCHECK is not read there",
    "CKV_DOCKER_7": "the base is an ARG with a version",
}
RAY_HEAD, RAY_WORKER = "Pod.muxserve.muxserve-head", "Pod.muxserve.muxserve-worker"
#: Checks that hold for all pods but these of Ray.
NOT_KEPT_BY_RAY = {
    # KubeRay adds probes.
    *(("CKV_K8S_8", RAY_HEAD), ("CKV_K8S_8", RAY_WORKER)),
    *(("CKV_K8S_9", RAY_HEAD), ("CKV_K8S_9", RAY_WORKER)),
    # The autoscaler speaks with the API server.
    ("CKV_K8S_38", RAY_HEAD),
}
_SERVER = "spec.template.spec.containers[0]"
TRITON = ("Deployment", "muxserve-triton")
MASTER, WORKER = ("Job", "muxserve-loadtest-master"), ("Job", "muxserve-loadtest-worker")
#: What checkov refuses, so that no rule of our own has to: (check, resource, overlay, change).
REFUSED: list[tuple[str, str, str, Change]] = [
    (
        "CKV_K8S_8",
        "Deployment.muxserve.muxserve-triton",
        "triton",
        put(f"{_SERVER}.livenessProbe", GONE, *TRITON),
    ),
    (
        "CKV_K8S_9",
        "Deployment.muxserve.muxserve-triton",
        "triton",
        put(f"{_SERVER}.readinessProbe", GONE, *TRITON),
    ),
    ("CKV_K8S_13", RAY_WORKER, "cpu", put(f"{CONTAINER}.resources", GONE)),
    ("CKV_K8S_14", RAY_WORKER, "cpu", put(f"{CONTAINER}.image", "muxserve:latest")),
    (
        "CKV_K8S_16",
        "Job.muxserve.muxserve-loadtest-worker",
        "loadtest",
        put(f"{_SERVER}.securityContext.privileged", True, *WORKER),
    ),
    ("CKV_K8S_20", RAY_HEAD, "cpu", put(f"{CLUSTER}.autoscalerOptions.securityContext", {})),
    ("CKV_K8S_23", RAY_WORKER, "gpu", put(f"{CONTAINER}.securityContext.runAsNonRoot", False)),
    (
        "CKV_K8S_38",
        "Job.muxserve.muxserve-loadtest-master",
        "loadtest",
        put("spec.template.spec.automountServiceAccountToken", GONE, *MASTER),
    ),
]


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, file], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name):
    done = hadolint(DOCKER / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout, done.stdout


def test_hadolint_refuses_a_tag_that_moves(tmp_path):
    file = tmp_path / "Dockerfile"
    text = (DOCKER / "Dockerfile.triton").read_text()
    file.write_text(text.replace("FROM ${BASE}", "FROM python:latest"))
    done = hadolint(file)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


def checkov(framework: str, folder: Path) -> set[tuple[str, str]]:
    """(check, resource) of every check that fails."""
    if not CHECKOV.is_file():
        pytest.fail(f"{CHECKOV} is missing: make test-kubernetes installs it")
    command = [CHECKOV, "-d", folder, "--framework", framework, "--skip-download"]
    done = subprocess.run(
        [*command, "--compact", "--quiet", "-o", "json", "--skip-check", ",".join(NOT_KEPT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["passed"], report
    assert not report["summary"]["parsing_errors"], report
    return {(one["check_id"], one["resource"]) for one in report["results"]["failed_checks"]}


def written(folder: Path, changes: dict[str, list[Change]]) -> Path:
    """All overlays in a folder, changed, with the pods of RayServices as pods."""
    for overlay in OVERLAYS:
        docs = render(overlay)
        for change in changes.get(overlay, []):
            change(docs)
        pods = [as_document(pod) for pod in pods_of(docs) if pod.ray]
        for pod in pods:
            pod["metadata"]["namespace"] = "muxserve"
        with (folder / f"{overlay}.yaml").open("w") as file:
            yaml.safe_dump_all([*docs, *pods], file)
    return folder


def test_checkov_finds_nothing_in_the_overlays(tmp_path):
    assert checkov("kubernetes", written(tmp_path, {})) == NOT_KEPT_BY_RAY


def test_checkov_refuses_what_no_rule_looks_for(tmp_path):
    changes = defaultdict(list)
    for _, _, overlay, change in REFUSED:
        changes[overlay].append(change)
    found = checkov("kubernetes", written(tmp_path, changes)) - NOT_KEPT_BY_RAY
    assert {(check, resource) for check, resource, _, _ in REFUSED} <= found


def test_checkov_finds_nothing_in_the_dockerfiles():
    assert checkov("dockerfile", DOCKER) == set()


def test_checkov_refuses_a_dockerfile_whose_last_user_is_root(tmp_path):
    text = (DOCKER / "Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(f"{text}\nUSER root\n")
    assert "CKV_DOCKER_8" in {check for check, _ in checkov("dockerfile", tmp_path)}


def test_the_base_image_is_the_pinned_ray():
    text = (DOCKER / "Dockerfile").read_text()
    assert f"ARG BASE=rayproject/ray:{pinned_ray()}-py311-cpu\n" in text
    locust = (DOCKER / "Dockerfile.locust").read_text()
    assert f"ARG BASE=muxserve:{__version__}-ray{pinned_ray()}-py311-cpu\n" in locust


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_a_number_that_is_not_root(name):
    users = re.findall(r"^USER (.+)$", (DOCKER / name).read_text(), re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:\d+", users[-1])


def test_kuberays_probes_find_bash_and_wget():
    assert "RUN command -v bash && command -v wget" in (DOCKER / "Dockerfile").read_text()


def test_make_builds_the_images_that_the_manifests_name():
    """The tags of the Makefile, as make itself works them out."""
    printed = subprocess.run(
        ["make", "-n", "image", "image-gpu", "DOCKER=docker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    built = set(re.findall(r"docker build -t (\S+)", printed))
    named = {
        container["image"]
        for overlay in OVERLAYS
        for pod in pods_of(render(overlay))
        for _, container in pod.containers()
    }
    assert {one for one in named if one.startswith("muxserve")} == built


def test_what_the_dockerfiles_copy_is_in_their_context():
    ignored = (DOCKER / ".dockerignore").read_text()
    for name in DOCKERFILES:
        for line in re.findall(r"^COPY (.+) \S+$", (DOCKER / name).read_text(), re.MULTILINE):
            for source in line.split():
                assert f"!{source}\n" in ignored, source
