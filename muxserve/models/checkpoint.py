"""A checkpoint's folder in, its checked config out; networks are built without memory first.

The order is: JSON, claims (``muxserve.models.claims``), the config of ``transformers``, the network
on the meta device, its values against the weights'. Only then may the network be built.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from muxserve.errors import FamilyError
from muxserve.models.claims import check_claims, most_values, without_orders
from muxserve.models.files import check_links, read_json_object, reason, shown
from muxserve.models.official import is_official
from muxserve.models.weights_file import WeightsFacts, weights_facts

CONFIG_FILE = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a checkpoint's folder and compare its claims with the weights.

    The network that it describes can be built: it has no more values than the weights have bytes.
    (For an official MUX-PLM, ``load_official`` checks that.)

    Raises:
        FamilyError: naming the file and the field.
    """
    config, weights = read_claims(folder)
    if not is_official(config):
        made = model_config(config, folder)
        auto: Any = AutoModelForSequenceClassification
        if type(made) not in auto._model_mapping:
            auto = AutoModel
        check_values(empty_model(auto, made, folder), weights, folder)
    return config


def read_claims(folder: Path) -> tuple[dict[str, Any], WeightsFacts]:
    """Read ``config.json``, checked as JSON, and what the weights beside it contain."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FamilyError(f"{file}: missing; expected the folder of a checkpoint")
    check_links(folder, [CONFIG_FILE])
    config = read_json_object(file)
    weights = weights_facts(folder)
    check_claims(config, weights, file)
    return config, weights


def model_config(config: dict[str, Any], folder: Path) -> PreTrainedConfig:
    """The config of ``transformers`` for a checked ``config.json``, see ``without_orders``.

    Raises:
        FamilyError: for an unknown model type, or fields of another kind than it has.
    """
    file = folder / CONFIG_FILE
    kind: str = config.get("model_type") or _guessed(folder)
    if kind not in CONFIG_MAPPING:
        raise FamilyError(
            f"{file}: field model_type: {shown(kind)} is none that this transformers knows",
            field="model_type",
        )
    kept = {key: value for key, value in without_orders(config).items() if key != "model_type"}
    try:
        made: type[PreTrainedConfig] = CONFIG_MAPPING[kind]
        # Methods and computed properties cannot be set; the number of labels can.
        fields = {*made.__dataclass_fields__, "num_labels"}
        settable = {key for key in kept if key in fields or not hasattr(made, key)}
        return made.from_dict({key: value for key, value in kept.items() if key in settable})
    except Exception as error:  # transformers may raise anything for a field of another kind
        raise FamilyError(f"{file}: {reason(error)}") from None


def empty_model(auto: Any, config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """The network of a config on the meta device: names and shapes, and no memory.

    Raises:
        FamilyError: if there is no such network.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config)
    except Exception as error:  # anything from KeyError to ZeroDivisionError
        raise FamilyError(f"{folder / CONFIG_FILE}: {reason(error)}") from None
    return model


def check_values(model: PreTrainedModel, weights: WeightsFacts, folder: Path) -> None:
    """Refuse a network with more values than its weights have bytes.

    Raises:
        FamilyError: with both numbers.
    """
    values = sum(one.numel() for one in (*model.parameters(), *model.buffers()))
    if values > most_values(weights):
        raise FamilyError(
            f"{folder / CONFIG_FILE}: claims a network of {values:,} values, but {weights.name} "
            f"has {weights.bytes:,} bytes"
        )


def check_shapes(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], file: Path
) -> None:
    """Refuse a tensor whose shape is not the network's.

    Args:
        found: shapes in ``file``, by name.
        expected: shapes of the network, by name.
        file: for the error.

    Raises:
        FamilyError: naming the tensor.
    """
    for key, shape in expected.items():
        if key in found and list(found[key]) != list(shape):
            raise FamilyError(
                f"{file}: tensor {key} has shape {list(found[key])}, {CONFIG_FILE} asks for "
                f"{list(shape)}",
                field=key,
            )


def _guessed(folder: Path) -> str:
    """The model type of an old checkpoint without one, from its folder, as in transformers."""
    kinds = sorted(CONFIG_MAPPING, key=len, reverse=True)
    return next((kind for kind in kinds if kind in str(folder)), "")
