"""The result of one multiplexed forward, with intermediate results for tests and study."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class MuxOutput(ModelOutput):
    """Result of a multiplexed forward; B rows, N per group, G = B / N groups, L tokens.

    Attributes:
        loss: ``task_loss_coeff * task_loss + retrieval_loss_coeff * retrieval_loss``.
        logits: [B, labels] of a sentence; [B, L, labels], [B, L, vocabulary] or [B, L] (replaced
            or not) of tokens.
        task_loss: loss of the task alone.
        retrieval_loss: mean cross-entropy of the token-retrieval head.
        muxed_embeddings: [G, L', E], the multiplexer's output (None if N=1 runs plain); L' = L plus
            the demultiplexer's prefix.
        encoder_output: [G, L', H], the encoder's last hidden state. If the head reads one position
            only, it stops at that position unless ``output_hidden_states`` is set.
        demux_output: [B, positions, H] at the positions that the head reads; before the
            demultiplexer's ``project``.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    task_loss: torch.Tensor | None = None
    retrieval_loss: torch.Tensor | None = None
    muxed_embeddings: torch.Tensor | None = None
    encoder_output: torch.Tensor | None = None
    demux_output: torch.Tensor | None = None
