"""Official MUX-PLM checkpoints (princeton-nlp/mux...) read into our models.

Their ``model_type`` says plain "bert", so ``AutoModel`` would silently load something else. They
are recognised by their config keys and converted here, key by key.
"""

import re
from typing import Any

import torch

from muxserve.models.composition import MuxPreTrainedModel
from muxserve.models.config import MuxBertConfig, MuxConfig, MuxElectraConfig
from muxserve.models.files import reason
from muxserve.models.tasks import (
    MuxBertForMaskedLM,
    MuxBertForSequenceClassification,
    MuxBertForTokenClassification,
    MuxElectraForPreTraining,
    MuxElectraForSequenceClassification,
    MuxElectraForTokenClassification,
    ReplacedTokenDetection,
    SequenceClassification,
)

#: BERT's [CLS] id, which the reference hard-codes at position 0 or at the end of its prefix.
REFERENCE_CLS_ID = 101
#: Every released checkpoint was trained on texts padded to 128 tokens, with no attention mask.
REFERENCE_LENGTH = 128

#: The reference's classes and ours.
ARCHITECTURES: dict[str, type[MuxPreTrainedModel]] = {
    "MuxedBertForSequenceClassification": MuxBertForSequenceClassification,
    "MuxedBertForTokenClassification": MuxBertForTokenClassification,
    "MuxedBertForMaskedLM": MuxBertForMaskedLM,
    "MuxedElectraForSequenceClassification": MuxElectraForSequenceClassification,
    "MuxedElectraForTokenClassification": MuxElectraForTokenClassification,
    "MuxedElectraForPreTraining": MuxElectraForPreTraining,
}

#: Written by the old library, not about the weights.
_DROPPED = (
    "model_type",
    "architectures",
    "transformers_version",
    "output_attentions",
    "output_hidden_states",
)

#: Our names of tensors -> the reference's.
_RENAMED = (
    (r"multiplexer\.instance_embedding", "instance_embedding"),
    (r"multiplexer\.over_positions\.(.*)", r"muxing_attention.\1"),
    (r"multiplexer\.over_slots\.(.*)", r"muxing_attention_2.\1"),
    (r"demultiplexer\.demux_instance_embedding", "demux_module.demux_instance_embedding"),
    (r"demultiplexer\.retrieval_(dense|layer_norm)\.(.*)", r"retrieval_head.\1.\2"),
)
_RENAMED_REPLACED_TOKEN = (
    (r"classifier\.dense\.(.*)", r"discriminator_predictions.dense.\1"),
    (r"classifier\.out_proj\.(.*)", r"discriminator_predictions.dense_prediction.\1"),
)
#: Tensors that no forward here reads: aliases of others, layers that the reference does not read
#: either (``dense_D``), and the retrieval head where it is not wanted.
_UNREAD = re.compile(
    r".*\.position_ids|demultiplexer\.demux_module\..*|retrieval_head\..*"
    r"|demux_module\.(dense|layer_norm)_\d+\..*"
)


def is_official(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an official MUX-PLM checkpoint, not yet converted."""
    return config.get("model_type") in ("bert", "electra") and "muxing_variant" in config


def convert_config(config: dict[str, Any], *, retrieval_head: bool = False) -> MuxConfig:
    """Our config for an official one: served at the trained length, with no encoder mask.

    Raises:
        ValueError: for a config that is not an official MUX-PLM's, or whose variant is unknown.
    """
    if not is_official(config):
        raise ValueError("not an official MUX-PLM config: it has no 'muxing_variant'")
    task = _model_class(config)
    electra = config["model_type"] == "electra"
    ours = MuxElectraConfig if electra else MuxBertConfig
    kept: dict[str, Any] = {
        key: value
        for key, value in config.items()
        if key not in _DROPPED and key in ours.__dataclass_fields__
    }
    # The default of the released code; the scripts that trained the weights pass index_pos.
    kept.setdefault("demuxing_variant", "index")
    kept.setdefault("num_instances", 5)
    sentences = issubclass(task, SequenceClassification)
    forced = not electra or task is MuxElectraForPreTraining or kept["demuxing_variant"] == "index"
    positions = int(config.get("max_position_embeddings", 512))
    if kept["demuxing_variant"] == "index":
        positions -= kept["num_instances"] + 1
    return ours(
        **kept,
        padding="max_length",
        encoder_mask="none",
        trained_length=min(REFERENCE_LENGTH, positions),
        pooling="first",
        classifier_head="dense" if electra and sentences else "linear",
        muxing_slot_mask=sentences,
        first_token_id=REFERENCE_CLS_ID if forced else None,
        retrieval_head=retrieval_head,
    )


def convert_state_dict(
    model: MuxPreTrainedModel, reference: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename a reference state dict's tensors to those of ``model``.

    Raises:
        ValueError: naming keys that are missing, that no rule covers, or that have another shape.
    """
    rules = list(_RENAMED)
    if isinstance(model, ReplacedTokenDetection):
        rules += _RENAMED_REPLACED_TOKEN
    wanted = model.state_dict()
    theirs = {key: _reference_name(key, rules) for key in wanted}
    missing = sorted(name for name in theirs.values() if name not in reference)
    if missing:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}")
    read = set(theirs.values())
    unknown = sorted(key for key in reference if key not in read and not _UNREAD.fullmatch(key))
    if unknown:
        raise ValueError(f"the checkpoint has keys that no rule knows: {', '.join(unknown)}")
    for key, name in theirs.items():
        if reference[name].shape != wanted[key].shape:
            raise ValueError(
                f"{name} has shape {list(reference[name].shape)}, "
                f"the config asks for {list(wanted[key].shape)}"
            )
    return {key: reference[name] for key, name in theirs.items()}


def dropped_tensors(
    model: MuxPreTrainedModel, reference: dict[str, torch.Tensor]
) -> tuple[str, ...]:
    """Names of the tensors in a reference state dict that ``model`` does not use, sorted."""
    rules = list(_RENAMED)
    if isinstance(model, ReplacedTokenDetection):
        rules += _RENAMED_REPLACED_TOKEN
    read = {_reference_name(key, rules) for key in model.state_dict()}
    return tuple(sorted(set(reference) - read))


def load_official(
    config: dict[str, Any], state: dict[str, torch.Tensor], *, retrieval_head: bool = False
) -> MuxPreTrainedModel:
    """An official checkpoint's config.json and state dict as one of our models, in eval mode.

    Raises:
        ValueError: for a config or weights that are not an official MUX-PLM's.
    """
    kind = _model_class(config)
    try:
        ours = convert_config(config, retrieval_head=retrieval_head)
        # Compared with the weights before it takes memory.
        with torch.device("meta"):
            tensors = convert_state_dict(kind(ours), state)
    except ValueError:
        raise
    except Exception as error:  # anything from KeyError to ZeroDivisionError
        raise ValueError(reason(error)) from None
    model = kind(ours)
    model.load_state_dict(tensors)
    return model.eval()


def _model_class(config: dict[str, Any]) -> type[MuxPreTrainedModel]:
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"field architectures: {architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture]


def _reference_name(key: str, rules: list[tuple[str, str]]) -> str:
    # There, the demultiplexer's layers are numbered from 1.
    numbered = re.fullmatch(r"demultiplexer\.(dense|layer_norm)\.(\d+)\.(.*)", key)
    if numbered:
        name, index, part = numbered.groups()
        return f"demux_module.{name}_{int(index) + 1}.{part}"
    for pattern, replacement in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    return key
