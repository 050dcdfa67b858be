"""Settings files: what Ray and Kubernetes get of them, and what a mistake in one is told."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.sentiment import SentimentConfig
from muxserve.errors import InvalidInput
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from muxserve.serving.manifest import (
    Deployment,
    config_model,
    rayservice_patch,
    read_deployment,
    serve_config,
)
from tests.test_cli import muxserve

ROOT = Path(__file__).parents[2]
SENTIMENT = "deployments.sentiment:app"


def deployment(**settings) -> Deployment:
    return Deployment(import_path=SENTIMENT, application="sentiment", settings=settings)


def test_arguments_are_what_differs_from_the_defaults():
    content = serve_config(deployment(**{"engine.latency_target_ms": 20, "replicas.num_cpus": 1}))
    (application,) = content["applications"]
    assert application["args"] == {"engine": {"latency_target_ms": 20.0}}
    assert application["name"] == "sentiment"
    assert application["import_path"] == SENTIMENT


def test_it_is_what_ray_takes_for_a_cluster():
    content = ServeDeploySchema.model_validate(serve_config(deployment()))
    assert content.proxy_location == "EveryNode"
    assert (content.http_options.host, content.http_options.port) == ("0.0.0.0", 8000)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"arrangement": "together", "replicas": {"min_replicas": 0, "max_replicas": 3}},
        {"backend": "triton", "triton.url": "triton:8001", "replicas.max_replicas": 2},
    ],
)
def test_the_arguments_give_the_same_settings_again(settings):
    (application,) = serve_config(deployment(**settings))["applications"]
    assert SentimentConfig.model_validate(application["args"]) == SentimentConfig.model_validate(
        settings
    )


def test_the_patch_is_yaml_with_that_configuration_in_it():
    content = serve_config(deployment(arrangement="together"))
    patch = yaml.safe_load(rayservice_patch(content, "settings.yaml"))
    assert (patch["apiVersion"], patch["kind"]) == ("ray.io/v1", "RayService")
    assert yaml.safe_load(patch["spec"]["serveConfigV2"]) == content


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"engine.latency_targt_ms": 20}, "engine.latency_targt_ms"),
        ({"engine": {"max_groups": 0}}, "engine.max_groups"),
        ({"replicas": {"min_replicas": 3, "max_replicas": 2}}, "max_replicas"),
        ({"engine.num_instances": 3}, "engine.num_instances is 3"),
        ({"replicas.max_replicas_per_node": 0}, "replicas.max_replicas_per_node"),
    ],
)
def test_a_wrong_setting_is_named(settings, told):
    with pytest.raises(InvalidInput, match=told):
        serve_config(deployment(**settings))


@pytest.mark.parametrize("path", ["deployments.nothing:app", "deployments.sentiment:nothing"])
def test_an_application_that_does_not_exist_is_named(path):
    with pytest.raises(InvalidInput, match="import_path deployments"):
        config_model(path)


@pytest.mark.parametrize("path", ["muxserve.serving.app:checked_family", "json:dumps"])
def test_an_application_takes_settings(path):
    if path == "json:dumps":
        with pytest.raises(InvalidInput, match="takes a ServeConfig"):
            config_model(path)
    else:
        assert config_model(path) is ServeConfig


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import_path: nothing", "import_path"),
        ("import_path: a:b\nsetting: {}", "setting"),
        ("import_path: [", "line 1: not YAML"),
        ("", "settings.yaml"),
        ("import_path: a:b\napplication: Not A Name", "application"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_field(tmp_path, text, told):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=told) as caught:
        read_deployment(file)
    assert "settings.yaml" in str(caught.value)


def test_at_most_so_many_on_one_machine():
    values = {
        "family": "sentiment",
        "ingress": {"num_replicas": 4, "max_replicas_per_node": 2},
        "replicas": {"max_replicas": 3, "max_replicas_per_node": 1},
    }
    entrance = build_app(ServeConfig.model_validate(values))._bound_deployment
    (engines,) = (one for one in entrance.init_args if hasattr(one, "_bound_deployment"))
    assert entrance._replica_config.max_replicas_per_node == 2
    assert engines._bound_deployment._replica_config.max_replicas_per_node == 1


def test_the_command_writes_and_checks(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"import_path: {SENTIMENT}\nsettings: {{arrangement: together}}\n")
    assert muxserve("kubernetes", str(file), "--check").returncode == 1
    assert muxserve("kubernetes", str(file), "--write").returncode == 0
    assert muxserve("kubernetes", str(file), "--check").returncode == 0
    assert muxserve("kubernetes", str(file)).stdout == (tmp_path / "serve-config.yaml").read_text()
    file.write_text(f"import_path: {SENTIMENT}\nsettings: {{arrangment: together}}\n")
    refused = muxserve("kubernetes", str(file), "--write")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {file}: settings: ")
    assert "did you mean 'arrangement'" in refused.stderr
