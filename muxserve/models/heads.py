"""Heads: states of a slot in, logits of a task out."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, mse_loss

from muxserve.models.config import MuxBertConfig


class LinearHead(nn.Linear):
    """BERT's sentence classifier: one linear layer. [..., H] to [..., labels]."""

    def __init__(self, config: MuxBertConfig) -> None:
        super().__init__(config.hidden_size, config.label_count)


class DenseHead(nn.Module):
    """ELECTRA's sentence classifier: dense, gelu, projection. [..., H] to [..., labels]."""

    def __init__(self, config: MuxBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.label_count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(gelu(self.dense(x))))


def build_classifier(config: MuxBertConfig) -> nn.Module:
    """The classifier that ``config.classifier_head`` names."""
    heads: dict[str, type[nn.Module]] = {"linear": LinearHead, "dense": DenseHead}
    return heads[config.classifier_head](config)


class RetrievalHead(nn.Module):
    """Names the token that a slot has at a position; used in training only.

    The decoder's weight is the word embedding table (tied by the model).
    """

    def __init__(self, config: MuxBertConfig) -> None:
        super().__init__()
        self.pre_decoder = nn.Linear(config.hidden_size, config.hidden_size)
        self.pre_decoder_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[P, H] to [P, vocabulary]."""
        return self.decoder(self.pre_decoder_layer_norm(gelu(self.pre_decoder(states))))


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, or mean squared error where there is one label (regression).

    Args:
        logits: [B, labels].
        labels: [B] class ids, or [B] values for regression; ValueError for another shape.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:1])}, got {tuple(labels.shape)}"
        )
    if logits.shape[-1] == 1:
        return mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return cross_entropy(logits, labels)
