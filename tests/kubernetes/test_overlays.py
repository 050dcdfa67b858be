"""Every overlay renders, and passes every rule; serveConfigV2 is what its settings say."""

import json
import re

import pytest
import yaml

from muxserve.serving.manifest import (
    PATCH_FILE,
    rayservice_patch,
    read_deployment,
    serve_config,
)
from tests.kubernetes import schemas
from tests.kubernetes.pods import pods_of
from tests.kubernetes.rendering import COMPOSED, K8S, OVERLAYS, ROOT, find, of_kind, render
from tests.kubernetes.rules import RULES
from tests.kubernetes.rules_names import USERS_SECRETS
from tests.kubernetes.rules_network import Peer, reaches
from tests.test_cli import muxserve

pytestmark = pytest.mark.kubernetes

#: The overlay whose settings another one serves with.
SETTINGS = {"cpu": "cpu", "gpu": "gpu", "triton": "triton", "incremental": "gpu"}


def test_these_are_all_overlays():
    assert sorted(one.name for one in (K8S / "overlays").iterdir()) == sorted(OVERLAYS)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("overlay", [*OVERLAYS, *COMPOSED])
def test_an_overlay_keeps_every_rule(overlay, rule):
    problems = RULES[rule](render(overlay))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("overlay", SETTINGS)
def test_serve_config_is_what_the_settings_say(overlay):
    file = K8S / "overlays" / SETTINGS[overlay] / "settings.yaml"
    wanted = serve_config(read_deployment(file))
    (service,) = of_kind(render(overlay), "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == wanted
    patch = rayservice_patch(wanted, file.name)
    assert file.with_name(PATCH_FILE).read_text() == patch, "run: make kubernetes"


def test_a_missing_folder_of_crds_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(schemas, "CRDS", tmp_path / "none")
    with pytest.raises(pytest.fail.Exception, match=r"none/.*\.yaml is missing: .* MUXSERVE_CRDS"):
        schemas.custom_kinds(render("cpu"))


def test_a_hash_in_a_secrets_name_reaches_the_rayservice():
    docs = render("hashed")
    (secret,) = of_kind(docs, "Secret")
    name = secret["metadata"]["name"]
    assert name.startswith("muxserve-redis-")
    (service,) = of_kind(docs, "RayService")
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == name


def test_a_prefix_reaches_what_selects_by_the_rayservices_name():
    texts = json.dumps(render("prefixed"))
    assert '"ray.io/originated-from-cr-name": "team-muxserve"' in texts
    assert '"ray.io/originated-from-cr-name": "muxserve"' not in texts


#: Where each overlay names a Service inside a text, which no prefix reaches; as k8s/README.md says.
NAMES_IN_TEXTS = {
    "cpu": set(),
    "gpu": {"redisAddress"},
    "incremental": {"redisAddress"},
    "triton": {"triton.url"},
    "loadtest": {"HOST", "--master-host"},
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_readme_names_every_text_that_a_prefix_does_not_reach(overlay):
    docs = render(overlay)
    services = {doc["metadata"]["name"] for doc in of_kind(docs, "Service")}
    name = "|".join([*services, "muxserve-serve-svc"])
    # A host with a port, in a field or in a line of serveConfigV2; a flag of a command.
    places = rf'([\w-]+)(?:": "|: )(?:\w+://)?(?:{name}):\d{{4,5}}\b|(--[\w-]+)=(?:{name})"'
    found = {field or flag for field, flag in re.findall(places, json.dumps(docs))}
    assert found == {one.rpartition(".")[2] for one in NAMES_IN_TEXTS[overlay]}
    text = (K8S / "README.md").read_text()
    assert all(f"`{one}`" in text for one in NAMES_IN_TEXTS[overlay])


def test_nothing_stays_behind_in_another_namespace():
    docs = render("namespace")
    names = {doc["metadata"].get("namespace") for doc in docs if doc["kind"] != "Namespace"}
    assert names == {"team-a"}
    assert find(docs, "Namespace", "team-a")


@pytest.mark.parametrize("component", ["gcs-ft", "hf-token", "model-cache", "monitoring"])
def test_a_component_does_something(component):
    assert (K8S / "components" / component / "kustomization.yaml").is_file()
    texts = json.dumps(render("everything"))
    sign = {
        "gcs-ft": "redisAddress",
        "hf-token": "HF_TOKEN",
        "model-cache": "muxserve-models",
        "monitoring": "PrometheusRule",
    }
    assert sign[component] in texts


def test_the_load_test_asks_the_service_that_kuberay_makes():
    (service,) = of_kind(render("cpu"), "RayService")
    (load,) = of_kind(render("loadtest"), "ConfigMap")
    assert load["data"]["HOST"] == f"http://{service['metadata']['name']}-serve-svc:8000"


def test_the_load_tests_workers_are_let_in():
    server = render("cpu")
    (worker,) = (pod for pod in pods_of(render("loadtest")) if "worker" in pod.owner)
    for pod in pods_of(server):
        assert reaches(server, pod, "ingress", Peer("worker", worker.labels, True), 8000)
        assert not reaches(server, pod, "ingress", Peer("worker", worker.labels, True), 8265)


@pytest.mark.parametrize("secret", USERS_SECRETS)
def test_how_to_make_a_secret_is_written(secret):
    text = (K8S / "README.md").read_text()
    keys = " ".join(f"--from-literal={key}=" for key in USERS_SECRETS[secret])
    assert f"create secret generic {secret} {keys}" in text


def test_the_operators_version_is_one():
    values = yaml.safe_load((K8S / "operator" / "values.yaml").read_text())
    version = values["image"]["tag"].removeprefix("v")
    text = (K8S / "README.md").read_text()
    assert f"kuberay/kuberay-operator --version {version} " in text
    gates = {one["name"]: one["enabled"] for one in values["featureGates"]}
    assert gates["RayServiceIncrementalUpgrade"]


def test_tritons_repository_is_written_by_a_command_that_exists():
    (script,) = find(render("triton"), "Deployment", "muxserve-triton")["spec"]["template"]["spec"][
        "initContainers"
    ][0]["args"]
    command = script.partition("exec muxserve ")[2].split()
    assert command[:3] == ["export", "triton", "sentiment"]
    offered = muxserve("export", "triton", "--help").stdout
    assert all(one in offered for one in command if one.startswith("--"))
    (server,) = find(render("triton"), "Deployment", "muxserve-triton")["spec"]["template"]["spec"][
        "containers"
    ]
    assert f"--model-repository={command[3]}" in server["args"]


def test_manifests_hold_no_secret_and_no_local_path():
    for file in K8S.rglob("*.yaml"):
        text = file.read_text()
        assert "kind: Secret\n" not in text.replace("- kind: Secret", ""), file
        assert str(ROOT) not in text, file
