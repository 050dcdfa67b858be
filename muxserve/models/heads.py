"""Heads: states of a slot in, logits of a task out; and the losses of their tasks."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, gelu, mse_loss

from muxserve.models.config import MuxConfig

#: Label of a position that no loss counts.
IGNORED = -100


class LinearHead(nn.Linear):
    """BERT's classifier: one linear layer. [..., H] to [..., labels]."""

    def __init__(self, config: MuxConfig, outputs: int) -> None:
        super().__init__(config.hidden_size, outputs)


class DenseHead(nn.Module):
    """ELECTRA's classifier: dense, gelu, projection. [..., H] to [..., labels]."""

    def __init__(self, config: MuxConfig, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(gelu(self.dense(x))))


def build_classifier(config: MuxConfig) -> nn.Module:
    """The sentence classifier that ``config.classifier_head`` names."""
    heads: dict[str, type[LinearHead | DenseHead]] = {"linear": LinearHead, "dense": DenseHead}
    return heads[config.classifier_head](config, config.label_count)


class RetrievalHead(nn.Module):
    """Names a slot's token at a position: in training, and as the masked-LM head.

    In BERT models the decoder's weight is the word embedding table (tied by the model).
    """

    def __init__(self, config: MuxConfig, *, pre_decoder: bool) -> None:
        super().__init__()
        h = config.hidden_size
        self.residual = config.retrieval_residual
        self.pre_decoder = nn.Linear(h, h) if pre_decoder else None
        if pre_decoder:
            self.pre_decoder_layer_norm = nn.LayerNorm(h, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(h, config.vocab_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[P, H] to [P, vocabulary]."""
        if self.pre_decoder is not None:
            above = self.pre_decoder_layer_norm(gelu(self.pre_decoder(states)))
            states = above + states if self.residual else above
        return self.decoder(states)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None
) -> torch.Tensor:
    """Loss of sentence labels: cross-entropy, squared error, or binary cross-entropy per label.

    Args:
        logits: [B, labels].
        labels: [B] class ids, [B] values for regression, or [B, labels] of 0 and 1 for multi-label.
        problem_type: transformers' name of one of the three; None for regression if there is one
            label, and for classification otherwise.

    Raises:
        ValueError: for labels of another shape.
    """
    if problem_type is None:
        problem_type = "regression" if logits.shape[-1] == 1 else "single_label_classification"
    rows, outputs = logits.shape
    expected = (rows, outputs)
    if problem_type != "multi_label_classification":
        expected = (rows,)  # type: ignore[assignment]
    _check_labels(labels, expected)
    if problem_type == "multi_label_classification":
        return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    if problem_type == "regression":
        return mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return cross_entropy(logits, labels)


def token_classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over tokens: logits [B, L, labels], labels [B, L], -100 where there is none."""
    _check_labels(labels, tuple(logits.shape[:2]))
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def replaced_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy over tokens: logits, labels (1 = replaced) and mask, all [B, L]."""
    _check_labels(labels, tuple(logits.shape))
    kept = mask.bool()
    return binary_cross_entropy_with_logits(logits[kept], labels[kept].to(logits.dtype))


def _check_labels(labels: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels must have shape {expected}, got {tuple(labels.shape)}")
