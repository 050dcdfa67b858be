"""What one multiplexed forward returns, with its intermediate results for tests and study."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class MuxOutput(ModelOutput):
    """Result of a multiplexed forward; B rows, N per group, G = B / N groups, L positions.

    Attributes:
        loss: ``task_loss_coeff * task_loss + retrieval_loss_coeff * retrieval_loss``.
        logits: [B, labels].
        task_loss: cross-entropy, or mean squared error for one label.
        retrieval_loss: mean cross-entropy of the token-retrieval head.
        muxed_embeddings: [G, L, E], the multiplexer's output (None where N=1 runs plain).
        encoder_output: [G, L, H], the encoder's last hidden state.
        demux_output: [B, L, H], or [B, 1, H] where only position 0 is read; before the
            demultiplexer's ``project``.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    task_loss: torch.Tensor | None = None
    retrieval_loss: torch.Tensor | None = None
    muxed_embeddings: torch.Tensor | None = None
    encoder_output: torch.Tensor | None = None
    demux_output: torch.Tensor | None = None
