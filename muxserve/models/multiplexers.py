"""Multiplexers: N sequences of embeddings in, one sequence out.

A new multiplexer is one class here and one line in ``MULTIPLEXERS``.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from muxserve.models.config import MuxBertConfig


class Multiplexer(nn.Module, ABC):
    """Superposes the N sequences of a group into one."""

    @abstractmethod
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Mix the slots of each group.

        Args:
            x: [G, N, L, E] embeddings of every slot; N may be any of the config's widths.
            mask: [G, N, L], 1 at tokens, or None where padding is content.

        Returns:
            [G, L, E].
        """

    @abstractmethod
    def reset_keys(self) -> None:
        """Draw the slots' keys afresh."""


class GaussianHadamard(Multiplexer):
    """Mean over slots of the embeddings times a fixed Gaussian vector per slot.

    DataMUX (Murahari et al., NeurIPS 2022) and MUX-PLM (Findings of EMNLP 2023), section 3. With a
    mask, padding adds nothing and the sum is scaled by 1/sqrt(N), so that the mixture keeps the
    scale of one embedding; without, it is the reference's mean.
    """

    def __init__(self, config: MuxBertConfig) -> None:
        super().__init__()
        self.norm = float(config.gaussian_hadamard_norm)
        self.instance_embedding = nn.Parameter(
            torch.empty(config.num_instances, config.hidden_size),
            requires_grad=bool(config.learn_muxing),
        )

    def reset_keys(self) -> None:
        with torch.no_grad():
            keys = torch.randn_like(self.instance_embedding)
            self.instance_embedding.copy_(
                keys / torch.linalg.vector_norm(keys, dim=-1, keepdim=True) * self.norm
            )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        n = x.shape[1]
        keys = self.instance_embedding[:n]
        if mask is None:
            return torch.einsum("gnle,ne->gle", x, keys) / n
        x = x * mask.to(x.dtype).unsqueeze(-1)
        return torch.einsum("gnle,ne->gle", x, keys) / n**0.5


MULTIPLEXERS: dict[str, type[Multiplexer]] = {
    "gaussian_hadamard": GaussianHadamard,
}


def build_multiplexer(config: MuxBertConfig) -> Multiplexer:
    """The multiplexer that ``config.muxing_variant`` names; ValueError for an unknown name."""
    try:
        return MULTIPLEXERS[config.muxing_variant](config)
    except KeyError:
        raise ValueError(
            f"unknown muxing_variant {config.muxing_variant!r}; known: {', '.join(MULTIPLEXERS)}"
        ) from None
