"""A plain encoder's weights under BERT's names, from which a student is cut.

In: a BERT, ELECTRA, RoBERTa or DistilBERT of ``transformers``. Out: tensors and sizes that a
multiplexed backbone takes as they are.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedModel

from muxserve.errors import first_line
from muxserve.models import (
    MuxBertConfig,
    MuxBertForSequenceClassification,
    MuxBertForTokenClassification,
    MuxElectraConfig,
    MuxElectraForSequenceClassification,
    MuxElectraForTokenClassification,
)
from muxserve.models.checkpoint import model_config, read_config
from muxserve.models.family import AUTO_MODELS, Task
from muxserve.models.source_tokenizer import read_tokenizer

Student = (
    MuxBertForSequenceClassification
    | MuxBertForTokenClassification
    | MuxElectraForSequenceClassification
    | MuxElectraForTokenClassification
)

#: RoBERTa and its kin: their tables of positions start after the padding id.
_COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
#: DistilBERT's names -> BERT's.
_DISTILBERT = (
    (r"transformer\.layer\.", "encoder.layer."),
    (r"\.attention\.q_lin\.", ".attention.self.query."),
    (r"\.attention\.k_lin\.", ".attention.self.key."),
    (r"\.attention\.v_lin\.", ".attention.self.value."),
    (r"\.attention\.out_lin\.", ".attention.output.dense."),
    (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.ffn\.lin1\.", ".intermediate.dense."),
    (r"\.ffn\.lin2\.", ".output.dense."),
    (r"\.output_layer_norm\.", ".output.LayerNorm."),
)


@dataclass(frozen=True)
class PlainEncoder:
    """A pretrained encoder without its head.

    Attributes:
        electra: whether the student is a MUX-ELECTRA (else a MUX-BERT).
        sizes: fields of the student's config.
        layers: how many layers it has.
        state: tensors of the backbone, by BERT's or ELECTRA's names.
    """

    electra: bool
    sizes: dict[str, Any]
    layers: int
    state: dict[str, torch.Tensor]

    def config(self, **fields: Any) -> MuxBertConfig | MuxElectraConfig:
        """A student's config with this encoder's sizes."""
        made = MuxElectraConfig if self.electra else MuxBertConfig
        return made(**{**self.sizes, **fields})

    def student(self, config: MuxBertConfig | MuxElectraConfig, task: Task) -> Student:
        """A student for a task, with weights drawn at random."""
        return cast(Student, AUTO_MODELS[task].from_config(config))


def plain_encoder(model: PreTrainedModel) -> PlainEncoder:
    """The encoder inside a plain model, with or without a head.

    Raises:
        ValueError: for a model that is not a BERT, ELECTRA, RoBERTa or DistilBERT.
    """
    base = cast(PreTrainedModel, model.base_model)
    config: Any = base.config
    kind = config.model_type
    state = {k: v for k, v in base.state_dict().items() if not k.startswith("pooler.")}
    if kind == "distilbert":
        state = {_renamed(key): value for key, value in state.items()}
        # DistilBERT has no segments: this one adds nothing.
        state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.dim)
        sizes: dict[str, Any] = {
            "hidden_size": config.dim,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.hidden_dim,
            "hidden_act": config.activation,
        }
        layers = config.n_layers
    elif kind in ("bert", "electra", *_COUNT_FROM_PADDING):
        sizes = {
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "hidden_act": config.hidden_act,
            "layer_norm_eps": config.layer_norm_eps,
        }
        layers = config.num_hidden_layers
        if kind == "electra":
            sizes["embedding_size"] = config.embedding_size
    else:
        raise ValueError(
            f"a student is cut from a BERT, ELECTRA, RoBERTa or DistilBERT; this is {kind!r}"
        )
    positions = state["embeddings.position_embeddings.weight"]
    if kind in _COUNT_FROM_PADDING:
        positions = positions[int(config.pad_token_id) + 1 :]
        state["embeddings.position_embeddings.weight"] = positions
    sizes |= {
        "pad_token_id": config.pad_token_id,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": len(positions),
        "type_vocab_size": len(state["embeddings.token_type_embeddings.weight"]),
    }
    return PlainEncoder(kind == "electra", sizes, int(layers), state)


def read_encoder(folder: Path) -> tuple[PlainEncoder, Tokenizer]:
    """Read the pretrained encoder in a folder, and its tokenizer.

    Raises:
        ValueError: for a folder without one, or with one of another kind.
    """
    config = model_config(read_config(folder), folder)
    try:
        model = AutoModel.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no pretrained encoder: {first_line(error)}") from None
    return plain_encoder(model), read_tokenizer(str(folder), model)


def _renamed(key: str) -> str:
    for pattern, replacement in _DISTILBERT:
        key = re.sub(pattern, replacement, key)
    return key
