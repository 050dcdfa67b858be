"""Settings: defaults, dotted keys as ``serve run`` passes them, and what a mistake is told."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from deployments.sentiment import SentimentConfig
from muxserve.engine.config import EngineConfig
from muxserve.serving.config import ServeConfig


def settings_of(model: type[BaseModel]):
    """(name, field) of every setting that is no group."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            assert field.description
            yield from settings_of(field.annotation)
        else:
            yield name, field


def test_dotted_keys_and_strings_are_as_good_as_nested_values():
    dotted = SentimentConfig.model_validate(
        {"engine.latency_target_ms": "20", "replicas.num_cpus": "0.5", "arrangement": "together"}
    )
    nested = SentimentConfig.model_validate(
        {
            "engine": {"latency_target_ms": 20},
            "replicas": {"num_cpus": 0.5},
            "arrangement": "together",
        }
    )
    assert dotted == nested
    assert dotted.family == "sentiment"
    assert dotted.engine.latency_target_ms == 20


def test_values_of_one_group_are_merged():
    config = ServeConfig.model_validate(
        {"family": "f", "engine": {"max_groups": 4}, "engine.latency_target_ms": "9"}
    )
    assert (config.engine.max_groups, config.engine.latency_target_ms) == (4, 9)


def test_groups_may_be_models():
    config = ServeConfig(family="f", engine=EngineConfig(max_groups=4))
    assert config.engine.max_groups == 4


@pytest.mark.parametrize(
    ("values", "named", "near"),
    [
        ({"engine.latency_targt_ms": "20"}, "engine.latency_targt_ms", "engine.latency_target_ms"),
        ({"engine": {"max_group": 3}}, "engine.max_group", "engine.max_groups"),
        ({"familly": "x"}, "familly", "family"),
        ({"engine.max_groups.x": 1}, "engine.max_groups.x", "engine.max_groups"),
    ],
)
def test_an_unknown_setting_is_named_with_those_that_exist(values, named, near):
    with pytest.raises(ValidationError) as caught:
        SentimentConfig.model_validate(values)
    message = str(caught.value)
    assert f"unknown setting {named!r}; did you mean {near!r}?" in message
    assert "limits.max_texts_per_request" in message


@pytest.mark.parametrize(
    "values",
    [
        {"engine.latency_target_ms": "soon"},
        {"engine.latency_target_ms": "-1"},
        {"limits.max_texts_per_request": 0},
        {"arrangement": "apart"},
        {"replicas.min_replicas": 1},
        {"replicas": {"num_replicas": 4, "max_replicas": 2}},
        {"replicas": {"look_back_s": 5, "measure_every_s": 5}},
        {
            "arrangement": "together",
            "replicas": {"min_replicas": 0, "max_replicas": 2},
            "ingress.direct_port": 9000,
        },
        {"family": "", "engine": {}},
        {"engine": 3},
    ],
)
def test_a_value_out_of_bounds_is_refused(values):
    with pytest.raises(ValidationError):
        SentimentConfig.model_validate(values)


def test_autoscaling_starts_at_its_fewest_replicas():
    config = SentimentConfig.model_validate({"replicas": {"max_replicas": 4}})
    assert config.replicas.fewest == 1
    config = SentimentConfig.model_validate({"replicas": {"min_replicas": 0, "max_replicas": 4}})
    assert config.replicas.fewest == 0
    config = SentimentConfig.model_validate({"replicas": {"min_replicas": 2, "max_replicas": 4}})
    assert config.replicas.first == 2


def test_every_setting_is_described():
    assert all(field.description for _, field in settings_of(ServeConfig))


def test_the_yaml_file_has_settings_that_exist_and_stays_on_this_machine():
    file = Path(__file__).parents[2] / "deployments" / "sentiment.yaml"
    content = yaml.safe_load(file.read_text())
    assert content["http_options"]["host"] == "127.0.0.1"
    (application,) = content["applications"]
    SentimentConfig.model_validate(application["args"])


def test_a_triton_server_is_named_by_dotted_keys():
    config = ServeConfig.model_validate(
        {"family": "sentiment", "backend": "triton", "triton.url": "triton:8001"}
    )
    assert (config.triton.url, config.triton.model) == ("triton:8001", None)
    with pytest.raises(ValidationError, match="url"):
        ServeConfig.model_validate({"family": "sentiment", "triton.url": "http://triton:8000"})


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"arrangement": "together"}, "no engine to put together"),
        ({"engine.max_groups": 4}, "no engine to set"),
    ],
)
def test_a_setting_that_triton_would_ignore_is_refused(setting, said):
    with pytest.raises(ValidationError, match=said):
        ServeConfig.model_validate({"family": "sentiment", "backend": "triton", **setting})
