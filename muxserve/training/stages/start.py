"""A plain encoder or a MUX-PLM in, the network that a stage trains and its tokenizer out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedModel

from muxserve.errors import first_line
from muxserve.models import (
    MuxBertConfig,
    MuxBertForMaskedLM,
    MuxConfig,
    MuxElectraConfig,
    MuxElectraForPreTraining,
)
from muxserve.models.asking import usable_positions
from muxserve.models.checkpoint import model_config, read_config
from muxserve.models.composition import MuxPreTrainedModel
from muxserve.models.family import AUTO_MODELS
from muxserve.models.official import is_official, load_official
from muxserve.models.source import fetch, read_state
from muxserve.models.source_tokenizer import read_tokenizer
from muxserve.training.pretrained import plain_encoder
from muxserve.training.recipe import MOST_TOKENS, StageRecipe

_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
#: Heads that the weights of a start need not have: they are drawn at random.
_HEADS = ("classifier.", "retrieval_head.")
#: Fields of a recipe that describe the network; a MUX-PLM has its own.
_ARCHITECTURE = (
    "num_instances",
    "muxing_variant",
    "demuxing_variant",
    "num_hidden_demux_layers",
)


def stage_network(
    recipe: StageRecipe, labels: Sequence[str] | None
) -> tuple[PreTrainedModel, Tokenizer]:
    """Build the network of a stage: weights from its start, and the rest drawn at random.

    At N=1 the network is the plain classifier of ``transformers``. For other N it is one of ours,
    whose ``config.trained_length`` is the most tokens of a text.

    Args:
        recipe: the stage.
        labels: label names for finetune; an empty sequence for regression; None for the others.

    Raises:
        ValueError: for a recipe that does not fit the start, naming the field.
        FamilyError: for a start that cannot be read.
    """
    folder = fetch(recipe.start, _FILES)
    stored = read_config(folder)
    if is_official(stored):
        official = load_official(stored, read_state(folder), retrieval_head=True)
        model: PreTrainedModel = _further(recipe, labels, official.config, official.state_dict())
    elif str(stored.get("model_type")).startswith("mux"):
        config = cast(MuxConfig, model_config(stored, folder))
        model = _further(recipe, labels, config, read_state(folder))
    elif recipe.num_instances == 1:
        model = _plain_classifier(recipe, labels, folder, stored)
    else:
        model = _multiplexed(recipe, labels, folder, stored)
    return model, read_tokenizer(recipe.tokenizer or str(folder), model)


def text_length(recipe: StageRecipe, model: PreTrainedModel) -> int:
    """Most tokens of a text that a stage trains its network on.

    Raises:
        ValueError: if the recipe asks for more tokens than a plain start has positions.
    """
    if isinstance(model.config, MuxConfig):
        return model.config.trained_length
    positions = usable_positions(model.config, recipe.max_length or MOST_TOKENS)
    if recipe.max_length is not None and recipe.max_length > positions:
        raise ValueError(
            f"max_length: {recipe.start} takes {positions} tokens, got {recipe.max_length}"
        )
    return recipe.max_length or min(MOST_TOKENS, positions)


def _further(
    recipe: StageRecipe,
    labels: Sequence[str] | None,
    config: MuxConfig,
    state: dict[str, torch.Tensor],
) -> MuxPreTrainedModel:
    """A MUX-PLM's weights in the network of the stage."""
    if len(config.served_widths) > 1:
        raise ValueError(
            f"start: {recipe.start} serves N = {', '.join(map(str, config.served_widths))} with "
            "one set of weights; the stages train one N, `muxserve train distill` several"
        )
    for field in _ARCHITECTURE:
        given, own = getattr(recipe, field), getattr(config, field)
        if given is not None and given != own:
            raise ValueError(f"{field}: {recipe.start} has {own}, got {given}; leave it out")
    length = recipe.max_length or config.trained_length
    if length > config.trained_length or (
        config.padding == "max_length" and length != config.trained_length
    ):
        raise ValueError(
            f"max_length: {recipe.start} was trained at {config.trained_length}, got {length}"
        )
    fields = {**config.to_dict(), **_stage_fields(recipe, labels), "trained_length": length}
    model = _stage_model(recipe, type(config).from_dict(fields))
    own_heads = labels is not None and config.id2label == model.config.id2label
    lent = {
        key: value
        for key, value in state.items()
        if key in model.state_dict() and (own_heads or not key.startswith("classifier."))
    }
    report = model.load_state_dict(lent, strict=False)
    tied = set(model.all_tied_weights_keys)
    missing = [key for key in report.missing_keys if key not in tied and not key.startswith(_HEADS)]
    if missing:
        raise ValueError(f"start: {recipe.start} lacks {', '.join(missing[:5])}")
    return model


def _multiplexed(
    recipe: StageRecipe, labels: Sequence[str] | None, folder: Path, stored: dict[str, Any]
) -> MuxPreTrainedModel:
    """A plain encoder's weights in a new MUX-PLM."""
    plain = _read_plain(AutoModel, folder, stored)
    encoder = plain_encoder(plain)
    positions = int(encoder.sizes["max_position_embeddings"])
    n = recipe.num_instances or 2
    prefix = n + 1 if recipe.demuxing_variant == "index" else 0
    length = recipe.max_length or min(MOST_TOKENS, positions - prefix)
    architecture = {field: getattr(recipe, field) for field in _ARCHITECTURE}
    fields = {key: value for key, value in architecture.items() if value is not None}
    if prefix:
        # The first token of a text ends the prefix.
        tokenizer = read_tokenizer(recipe.tokenizer or str(folder), plain)
        fields["first_token_id"] = tokenizer.encode("").ids[0]
    config = encoder.config(
        num_hidden_layers=encoder.layers,
        **{**fields, "num_instances": n, "trained_length": length},
        **_stage_fields(recipe, labels),
    )
    model = _stage_model(recipe, config)
    model.backbone.load_state_dict(encoder.state)
    return model


def _plain_classifier(
    recipe: StageRecipe, labels: Sequence[str] | None, folder: Path, stored: dict[str, Any]
) -> PreTrainedModel:
    if recipe.stage != "finetune":
        raise ValueError(f"num_instances: {recipe.stage} is for N of 2 and more, got 1")
    own = {key: value for key, value in stored.items() if key != "num_labels"}
    fields = {**own, **_label_fields(recipe, labels)}
    return _read_plain(AUTO_MODELS[recipe.task], folder, fields)


def _read_plain(auto: Any, folder: Path, fields: dict[str, Any]) -> PreTrainedModel:
    config = model_config(fields, folder)
    try:
        model = auto.from_pretrained(
            folder, config=config, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"start: {folder}: {first_line(error)}") from None
    return cast(PreTrainedModel, model)


def _stage_fields(recipe: StageRecipe, labels: Sequence[str] | None) -> dict[str, Any]:
    retrieval, task = recipe.loss_coefficients
    return {
        "retrieval_head": recipe.stage != "finetune" or retrieval > 0,
        "retrieval_loss_coeff": retrieval,
        "task_loss_coeff": task,
        **_label_fields(recipe, labels),
    }


def _label_fields(recipe: StageRecipe, labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is None:
        return {}
    names = list(labels) or [recipe.label_column]
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification" if labels else "regression",
    }


def _stage_model(recipe: StageRecipe, config: MuxConfig) -> MuxPreTrainedModel:
    if recipe.stage == "finetune":
        return cast(MuxPreTrainedModel, AUTO_MODELS[recipe.task].from_config(config))
    if isinstance(config, MuxElectraConfig):
        return MuxElectraForPreTraining(config)
    assert isinstance(config, MuxBertConfig)
    return MuxBertForMaskedLM(config)
