"""The backbone's forward, with the last layer computed only at the positions that are read.

The layers, embeddings and attention are ``transformers``' own (BERT's or ELECTRA's). Only the loop
over the layers is here, because the last layer has little to do for a head that reads one position.
"""

from typing import cast

import torch
from transformers import BertModel, ElectraModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer, eager_attention_forward
from transformers.models.electra.modeling_electra import ElectraLayer

Backbone = BertModel | ElectraModel


def encode(
    backbone: Backbone,
    *,
    input_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    mask: torch.Tensor | None,
    read: int | None = None,
) -> torch.Tensor:
    """Embed and encode.

    Args:
        backbone: BERT or ELECTRA.
        input_ids: [B, L] token ids; or give ``inputs_embeds``.
        inputs_embeds: [B, L, E] embeddings; positions are still added and normalised.
        token_type_ids: [B, L] segments; None for all 0.
        mask: [B, L], 1 where a position is attended to; None for everywhere.
        read: compute the last layer for the first ``read`` positions only; None for all.

    Returns:
        [B, L, H], or [B, read, H].
    """
    x: torch.Tensor = backbone.embeddings(
        input_ids=input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids
    )
    if isinstance(backbone, ElectraModel) and hasattr(backbone, "embeddings_project"):
        x = backbone.embeddings_project(x)
    attended: torch.Tensor | None = None
    if mask is not None:
        made = create_bidirectional_mask(
            config=backbone.config, inputs_embeds=x, attention_mask=mask
        )
        attended = cast(torch.Tensor | None, made)
    layers = backbone.encoder.layer
    for layer in layers if read is None else layers[:-1]:
        x = layer(x, attended)
    if read is None:
        return x
    last = layers[-1]
    if isinstance(last, BertLayer | ElectraLayer):
        return _first_positions(cast(BertLayer, last), x, attended, read)
    return cast(torch.Tensor, last(x, attended, read=read))


def _first_positions(
    layer: BertLayer, x: torch.Tensor, mask: torch.Tensor | None, read: int
) -> torch.Tensor:
    """One layer, for queries at the first ``read`` positions: [B, L, H] to [B, read, H]."""
    attention = layer.attention.self
    asked = x[:, :read]
    query, key, value = (
        part(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for part, states in ((attention.query, asked), (attention.key, x), (attention.value, x))
    )
    if mask is not None and mask.dim() == 4 and mask.shape[2] > 1:
        mask = mask[:, :, :read]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    mixed, _ = attend(
        attention,
        query,
        key,
        value,
        mask,
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
    )
    out: torch.Tensor = layer.feed_forward_chunk(layer.attention.output(mixed.flatten(-2), asked))
    return out
