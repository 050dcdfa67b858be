"""Encoder layers for inference on a CPU: weights packed once, additions and GELU in the products.

For each product, torch brings the weights into the order that oneDNN multiplies in; here that is
done once. The operators are those that torch's own compiler (Inductor) emits for frozen weights on
a CPU; nothing is compiled here, so a process starts as fast as before.

In 8 bits, a product rounds its weights with a scale per output, and its input with one scale per
batch (dynamic quantization); all else stays in float32.
"""

import warnings
from typing import cast

import torch
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.electra.modeling_electra import ElectraLayer

#: Activations that the product can apply, and oneDNN's name of each with its variant.
_FUSED = {"gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}


def pack_layers(model: PreTrainedModel, *, int8: bool = False) -> int:
    """Replace every BERT or ELECTRA layer of ``model`` by one that computes the same, faster.

    The model can no longer be trained or saved. Layers that are not on a CPU, or have another
    activation, stay as they are. With ``int8``, which needs a float32 model, the new layers compute
    nearly the same, in products of 8 bits.

    Returns:
        How many layers were replaced.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    packed = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BertLayer | ElectraLayer) and _can_pack(child):
                setattr(module, name, PackedLayer(cast(BertLayer, child), int8=int8))
                packed += 1
    return packed


def _can_pack(layer: nn.Module) -> bool:
    weight = next(layer.parameters())
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    config = cast(BertLayer, layer).attention.self.config
    is_plain = not getattr(layer, "add_cross_attention", False)
    return is_plain and config._attn_implementation == "sdpa" and config.hidden_act in _FUSED


class PackedLayer(nn.Module):
    """One encoder layer: attention and feed-forward, each with its residual and layer norm."""

    def __init__(self, layer: BertLayer, *, int8: bool = False) -> None:
        super().__init__()
        attention, output = layer.attention.self, layer.attention.output
        self._head_size = attention.attention_head_size
        product = _Int8Product if int8 else _Product
        self._query = product(attention.query)
        self._key_value = product(attention.key, attention.value)
        self._mixed = product(output.dense)
        self._inner = product(layer.intermediate.dense, activation=attention.config.hidden_act)
        self._outer = product(layer.output.dense)
        self._norms = [output.LayerNorm, layer.output.LayerNorm]

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        *_: object,
        read: int | None = None,
        **__: object,
    ) -> torch.Tensor:
        """[B, L, H] to [B, L, H], or to [B, read, H] where only the first positions are read.

        Args:
            x: hidden states.
            mask: as scaled dot-product attention takes it, or None for everywhere.
            read: positions that are computed.
        """
        asked = x if read is None else x[:, :read]
        key, value = self._key_value(x).chunk(2, dim=-1)
        if read is not None and mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, :read]
        mixed = scaled_dot_product_attention(
            self._heads(self._query(asked)), self._heads(key), self._heads(value), attn_mask=mask
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        attended = _normed(self._mixed.added_to(asked, mixed), self._norms[0])
        return _normed(self._outer.added_to(attended, self._inner(attended)), self._norms[1])

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """[B, L, H] to [B, heads, L, head size]."""
        return states.unflatten(-1, (-1, self._head_size)).transpose(1, 2)


class _Product:
    """Linear layers over the same input as one product, its weights packed."""

    def __init__(self, *layers: nn.Linear, activation: str | None = None) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._bias = torch.cat([layer.bias.detach() for layer in layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._activation = _FUSED[activation] if activation else ("none", "")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        name, variant = self._activation
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, name, [], variant
        )
        return product

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual`` plus the product."""
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self._weight, self._bias, "add"
        )
        return total


class _Int8Product:
    """The same in 8 bits; see the module."""

    def __init__(self, *layers: nn.Linear, activation: str | None = None) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = torch.cat([layer.bias.detach() for layer in layers])
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        with warnings.catch_warnings():
            # torch means to replace its quantized tensors; the packed product needs one.
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(
                weight, scales, torch.zeros_like(scales, dtype=torch.int64), 0, torch.qint8
            )
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)
        self._activation = ACT2FN[activation] if activation else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.quantized.linear_dynamic(x, self._packed)
        return product if self._activation is None else self._activation(product)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


def _normed(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
