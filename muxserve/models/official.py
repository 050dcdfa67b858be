"""Official MUX-PLM checkpoints (princeton-nlp/mux...) read into our models.

Their ``model_type`` says plain "bert", so ``AutoModel`` would load them as something else in
silence; they are told by their config keys and converted here, key by key.
"""

from typing import Any

import torch

from muxserve.models.bert import MuxBertForSequenceClassification
from muxserve.models.config import MuxBertConfig

#: The reference forces BERT's [CLS] id, hard-coded, at position 0.
REFERENCE_CLS_ID = 101
#: Every released checkpoint was trained on texts padded to 128 tokens, with no attention mask.
REFERENCE_LENGTH = 128

_CARRIED_OVER = (
    "num_instances",
    "muxing_variant",
    "demuxing_variant",
    "gaussian_hadamard_norm",
    "learn_muxing",
    "num_hidden_demux_layers",
    "retrieval_percentage",
    "retrieval_loss_coeff",
    "task_loss_coeff",
)


def is_official(config: dict[str, Any]) -> bool:
    """Whether a config.json is an official MUX-PLM checkpoint's, not yet converted."""
    return config.get("model_type") in ("bert", "electra") and "muxing_variant" in config


def convert_config(config: dict[str, Any], *, retrieval_head: bool = False) -> MuxBertConfig:
    """Our config for an official one: served at the trained length, with no encoder mask.

    Raises:
        ValueError: for a config that is not an official MUX-PLM's, or of a kind not yet covered.
    """
    if not is_official(config):
        raise ValueError("not an official MUX-PLM config: it has no 'muxing_variant'")
    architecture = (config.get("architectures") or ["?"])[0]
    if architecture != "MuxedBertForSequenceClassification":
        raise ValueError(f"architecture {architecture!r} is not covered yet")
    ours = {key: config[key] for key in _CARRIED_OVER if key in config}
    skipped = {*_CARRIED_OVER, "model_type", "architectures", "transformers_version"}
    # The released python default; the scripts that trained the released weights pass index_pos.
    ours.setdefault("demuxing_variant", "index")
    bert = {
        key: value
        for key, value in config.items()
        if key not in skipped and key in MuxBertConfig.__dataclass_fields__
    }
    bert.pop("output_attentions", None)
    bert.pop("output_hidden_states", None)
    length = min(REFERENCE_LENGTH, int(bert.get("max_position_embeddings", REFERENCE_LENGTH)))
    return MuxBertConfig(
        **bert,
        **ours,
        padding="max_length",
        encoder_mask="none",
        trained_length=length,
        pooling="first",
        classifier_head="linear",
        first_token_id=REFERENCE_CLS_ID,
        retrieval_head=retrieval_head,
    )


def convert_state_dict(
    config: MuxBertConfig, reference: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename a reference state dict's tensors to ours.

    The reference writes its ``demux_module`` under three names and its tied decoder under a second;
    layers that no forward reads (``dense_D``, and ``layer_norm_3`` onwards) are left out.

    Raises:
        ValueError: naming the keys that are missing, or that no rule knows.
    """
    layers = max(config.num_hidden_demux_layers - 1, 2 if config.retrieval_head else 1)
    renamed = {"multiplexer.instance_embedding": "instance_embedding"}
    renamed["demultiplexer.demux_instance_embedding"] = "demux_module.demux_instance_embedding"
    for part in ("weight", "bias"):
        for j in range(layers):
            renamed[f"demultiplexer.dense.{j}.{part}"] = f"demux_module.dense_{j + 1}.{part}"
        for name in ("pre_decoder", "pre_decoder_layer_norm"):
            renamed[f"demultiplexer.{name}.{part}"] = f"demultiplexer.{name}.{part}"
            if config.retrieval_head:
                renamed[f"retrieval_head.{name}.{part}"] = f"retrieval_head.{name}.{part}"
        if config.retrieval_head:
            renamed[f"retrieval_head.decoder.{part}"] = f"retrieval_head.decoder.{part}"
            for j in range(2):
                renamed[f"demultiplexer.layer_norm.{j}.{part}"] = (
                    f"demux_module.layer_norm_{j + 1}.{part}"
                )
        renamed[f"classifier.{part}"] = f"classifier.{part}"
    backbone = (key for key in reference if key.startswith("bert."))
    renamed |= {key: key for key in backbone if not key.endswith("position_ids")}
    missing = sorted(theirs for theirs in renamed.values() if theirs not in reference)
    if missing:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}")
    prefixes = ("bert.", "demux_module.", "demultiplexer.", "retrieval_head.")
    unknown = sorted(
        key for key in reference if not key.startswith(prefixes) and key not in renamed.values()
    )
    if unknown:
        raise ValueError(f"the checkpoint has keys that no rule knows: {', '.join(unknown)}")
    return {ours: reference[theirs] for ours, theirs in renamed.items()}


def load_official(
    config: dict[str, Any], state: dict[str, torch.Tensor], *, retrieval_head: bool = False
) -> MuxBertForSequenceClassification:
    """An official checkpoint's config.json and state dict as one of our models, in eval mode."""
    converted = convert_config(config, retrieval_head=retrieval_head)
    model = MuxBertForSequenceClassification(converted)
    model.load_state_dict(convert_state_dict(converted, state))
    return model.eval()
