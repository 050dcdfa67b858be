"""Multiplexers: N sequences of embeddings in, one sequence out.

A new multiplexer is one class here and one line in ``MULTIPLEXERS``.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

from muxserve.models.config import MuxConfig

#: What transformers 4.4.2 added to the scores of padding. If every slot of a position is padding,
#: it masks nothing, and released weights without an encoder mask depend on that.
REFERENCE_MASK_VALUE = -10000.0


class Multiplexer(nn.Module, ABC):
    """Superposes the N sequences of a group into one.

    With the union mask, padding adds nothing and the sum over slots is scaled by 1/sqrt(N), which
    keeps the scale of one embedding. Without a mask, padding is content.
    """

    def __init__(self, config: MuxConfig) -> None:
        super().__init__()
        self.masked = config.encoder_mask == "union"

    @abstractmethod
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mix the slots of each group.

        Args:
            x: [G, N, L, E] embeddings of every slot; N may be any of the config's widths.
            mask: [G, N, L], 1 at tokens.

        Returns:
            [G, L, E].
        """

    @abstractmethod
    def reset_keys(self) -> None:
        """Draw new keys for the slots."""


class Hadamard(Multiplexer):
    """Sum over slots of the embeddings times a vector per slot; without a mask, their mean.

    DataMUX (Murahari et al., NeurIPS 2022) and MUX-PLM (Findings of EMNLP 2023), section 3.
    """

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        self.instance_embedding = nn.Parameter(
            torch.empty(config.num_instances, config.embedding_width),
            requires_grad=bool(config.learn_muxing),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        # Element-wise, then a sum: an einsum would make permuted copies and tiny products.
        keyed = x * self.instance_embedding[:n].unsqueeze(1)
        if not self.masked:
            return keyed.mean(dim=1)
        return (keyed * mask.to(x.dtype).unsqueeze(-1)).sum(dim=1) / n**0.5


class GaussianHadamard(Hadamard):
    """Keys are Gaussian vectors of equal length."""

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        self.norm = float(config.gaussian_hadamard_norm)

    def reset_keys(self) -> None:
        with torch.no_grad():
            keys = torch.randn_like(self.instance_embedding)
            self.instance_embedding.copy_(
                keys / torch.linalg.vector_norm(keys, dim=-1, keepdim=True) * self.norm
            )


class BinaryHadamard(Hadamard):
    """Keys are ones on a chunk of features per slot: the slots divide the embedding among them."""

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        self.epsilon = float(config.binary_hadamard_epsilon)

    def reset_keys(self) -> None:
        n, size = self.instance_embedding.shape
        chunk = size // n
        overlap = int(self.epsilon / 2 * chunk)
        slots = torch.arange(n).unsqueeze(1)
        first = slots * chunk - overlap
        # The last slot takes the remainder of the division.
        end = torch.where(slots == n - 1, size, (slots + 1) * chunk + overlap)
        feature = torch.arange(size)
        with torch.no_grad():
            self.instance_embedding.copy_((feature >= first) & (feature < end))


class Orthogonal(Multiplexer):
    """Sum over slots of the embeddings times a random orthogonal matrix per slot, over sqrt(N).

    MUX-PLM, section 3.1 ("Ortho").
    """

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        size = config.embedding_width
        if size != config.hidden_size:
            raise ValueError(
                f"muxing_variant {config.muxing_variant!r} needs embedding_size = hidden_size, "
                f"got {size} and {config.hidden_size}"
            )
        self.instance_embedding = nn.Parameter(
            torch.empty(config.num_instances, size, size),
            requires_grad=bool(config.learn_muxing),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        g, n, length, size = x.shape
        if self.masked:
            x = x * mask.to(x.dtype).unsqueeze(-1)
        # One product over (slot, feature) pairs instead of one per slot.
        stacked = x.transpose(1, 2).reshape(g, length, n * size)
        matrices = self.instance_embedding[:n].transpose(1, 2).reshape(n * size, size)
        return stacked @ matrices / n**0.5

    def reset_keys(self) -> None:
        with torch.no_grad():
            for matrix in self.instance_embedding:
                nn.init.orthogonal_(matrix)


class LowRankOrthogonal(Orthogonal):
    """Each slot is projected on its own share of the dimensions, then all get the same rotation."""

    def reset_keys(self) -> None:
        n, size, _ = self.instance_embedding.shape
        rank = size // n
        basis, rotation = (nn.init.orthogonal_(torch.empty(size, size)) for _ in range(2))
        with torch.no_grad():
            for slot, matrix in enumerate(self.instance_embedding):
                own = torch.zeros(size, size)
                columns = slice(slot * rank, (slot + 1) * rank)
                own[:, columns] = basis[:, columns]
                matrix.copy_(rotation @ own.T)


class Contextual(Multiplexer):
    """Slots are read in context, keyed, attend to each other at every position, and are averaged.

    MUX-PLM's contextual multiplexer (section 3.1; ``gaussian_attention_v2`` in its code): one
    transformer layer over the positions of each text, one over the slots of each position.
    """

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        if config.embedding_width != config.hidden_size:
            raise ValueError("muxing_variant 'gaussian_attention_v2' needs E = H")
        self.norm = float(config.gaussian_hadamard_norm)
        self.slot_mask = config.muxing_slot_mask
        self.instance_embedding = nn.Parameter(
            torch.empty(config.num_instances, config.hidden_size),
            requires_grad=bool(config.learn_muxing),
        )
        self.over_positions = BertLayer(config)
        self.over_slots = BertLayer(config)

    reset_keys = GaussianHadamard.reset_keys

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        g, n, length, size = x.shape
        rows = x.flatten(0, 1)
        in_context = self.over_positions(rows, self._added(mask.flatten(0, 1), x.dtype)) + rows
        keyed = in_context.view(g, n, length, size) * self.instance_embedding[:n].unsqueeze(1)
        slots = keyed.transpose(1, 2).reshape(g * length, n, size)
        across = None
        if self.slot_mask:
            across = self._added(mask.transpose(1, 2).reshape(g * length, n), x.dtype)
        related = self.over_slots(slots, across).view(g, length, n, size).transpose(1, 2)
        mixed = related + keyed
        if not self.masked:
            return mixed.mean(dim=1)
        return (mixed * mask.to(x.dtype).unsqueeze(-1)).sum(dim=1) / n**0.5

    def _added(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[B, K] mask as [B, 1, 1, K] to be added to attention scores."""
        value = torch.finfo(dtype).min if self.masked else REFERENCE_MASK_VALUE
        return (1.0 - mask.to(dtype))[:, None, None, :] * value


MULTIPLEXERS: dict[str, type[Multiplexer]] = {
    "gaussian_hadamard": GaussianHadamard,
    "binary_hadamard": BinaryHadamard,
    "random_ortho": Orthogonal,
    "random_ortho_low_rank": LowRankOrthogonal,
    "gaussian_attention_v2": Contextual,
}


def build_multiplexer(config: MuxConfig) -> Multiplexer:
    """The multiplexer that ``config.muxing_variant`` names; ValueError for an unknown name."""
    if config.muxing_variant not in MULTIPLEXERS:
        raise ValueError(
            f"unknown muxing_variant {config.muxing_variant!r}; known: {', '.join(MULTIPLEXERS)}"
        )
    return MULTIPLEXERS[config.muxing_variant](config)
