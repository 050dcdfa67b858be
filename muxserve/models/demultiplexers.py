"""Demultiplexers: the encoder's one sequence in, one sequence for each of the N slots out.

A new demultiplexer is one class here and one line in ``DEMULTIPLEXERS``.
"""

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from muxserve.models.config import MuxConfig

EVERYWHERE = slice(None)


class Demultiplexer(nn.Module, ABC):
    """Separates the encoder's output for a group into its N slots."""

    #: Whether the retrieval head has its own layer before the decoder.
    retrieval_pre_decoder = True

    def prefix(self, n: int) -> torch.Tensor | None:
        """[n, P] token ids put before the text of each slot, or None."""
        return None

    @abstractmethod
    def forward(self, encoded: torch.Tensor, n: int, at: slice = EVERYWHERE) -> torch.Tensor:
        """Per-slot states at some positions.

        Args:
            encoded: [G, L, H] encoder output, prefix included.
            n: slots per group.
            at: the positions wanted, as a slice over L.

        Returns:
            [G, n, positions, H].
        """

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Last step on separated states [..., H]; nothing by default.

        It is linear, so a mean over positions can be taken before it, once per text.
        """
        return states

    @abstractmethod
    def retrieval_states(
        self,
        encoded: torch.Tensor,
        group: torch.Tensor,
        slot: torch.Tensor,
        position: torch.Tensor,
    ) -> torch.Tensor:
        """States from which the retrieval head names the token of a slot at a position.

        Args:
            encoded: [G, L, H] encoder output, prefix included.
            group: [P] the group of each token asked for.
            slot: [P] its slot.
            position: [P] its position.

        Returns:
            [P, H].
        """

    def reset_keys(self) -> None:
        """Draw new keys for the slots; by default the usual initialisation is kept."""


def _keyed(first: nn.Linear, keys: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """``first`` of the concatenation (key, f), computed in two halves.

    The position's half is computed once, not for every slot.
    """
    h = f.shape[-1]
    return linear(keys, first.weight[:, :h]) + linear(f, first.weight[:, h:], first.bias)


class IndexPosition(Demultiplexer):
    """The paper's RSA demultiplexer: an MLP over the concatenation of a slot's key and a position.

    As released, the residual layers have dropout where the paper has layer norm. It is kept, as the
    weights depend on it. ``num_hidden_demux_layers`` D gives D-1 layers.
    """

    def __init__(self, config: MuxConfig) -> None:
        super().__init__()
        h, depth = config.hidden_size, config.num_hidden_demux_layers
        if depth < 2:
            raise ValueError(f"num_hidden_demux_layers must be at least 2, got {depth}")
        self.applied_layers = depth - 1
        # BERT's retrieval head always reads two layers, whatever D is.
        self.retrieval_residual = config.retrieval_residual
        self.retrieval_layers = depth if config.retrieval_residual else 2
        normed = self.retrieval_layers if config.retrieval_head else 0
        stored = max(self.applied_layers, normed)
        self.demux_instance_embedding = nn.Parameter(torch.zeros(config.num_instances, h))
        self.dense = nn.ModuleList(nn.Linear(2 * h if j == 0 else h, h) for j in range(stored))
        self.layer_norm = nn.ModuleList(
            nn.LayerNorm(h, eps=config.layer_norm_eps) for _ in range(normed)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.pre_decoder = nn.Linear(h, h)
        self.pre_decoder_layer_norm = nn.LayerNorm(h, eps=config.layer_norm_eps)

    def reset_keys(self) -> None:
        with torch.no_grad():
            nn.init.normal_(self.demux_instance_embedding, std=0.02)

    def _first_layer(self, keys: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        return gelu(_keyed(cast(nn.Linear, self.dense[0]), keys, f))

    def forward(self, encoded: torch.Tensor, n: int, at: slice = EVERYWHERE) -> torch.Tensor:
        keys = self.demux_instance_embedding[:n].view(1, n, 1, -1)
        y = self.dropout(self._first_layer(keys, encoded[:, at].unsqueeze(1)))
        for dense in self.dense[1 : self.applied_layers]:
            y = self.dropout(gelu(dense(y))) + y
        return self.pre_decoder_layer_norm(gelu(self.pre_decoder(y))) + y

    def retrieval_states(
        self,
        encoded: torch.Tensor,
        group: torch.Tensor,
        slot: torch.Tensor,
        position: torch.Tensor,
    ) -> torch.Tensor:
        keys = self.demux_instance_embedding[slot]
        y = self.layer_norm[0](self._first_layer(keys, encoded[group, position]))
        for j in range(1, self.retrieval_layers):
            above = self.layer_norm[j](gelu(self.dense[j](y)))
            y = above + y if self.retrieval_residual else above
        return y


class IndexPrefix(Demultiplexer):
    """DataMUX's index demultiplexer: a slot's key is the encoder's output at a prefix position.

    The text of slot i follows a prefix of N+1 tokens: fillers, with a token that names the slot at
    position i, and a last token that ends the prefix.
    """

    retrieval_pre_decoder = False

    def __init__(self, config: MuxConfig) -> None:
        super().__init__()
        h = config.hidden_size
        self.filler_id = config.prefix_filler_id
        # The config refuses this demultiplexer without a first token.
        self.end_id = cast(int, config.first_token_id)
        self.dense = nn.Linear(2 * h, h)
        self.layer_norm = nn.LayerNorm(h, eps=config.layer_norm_eps)
        if config.retrieval_head:
            self.retrieval_dense = nn.Linear(2 * h, h)
            self.retrieval_layer_norm = nn.LayerNorm(h, eps=config.layer_norm_eps)

    def prefix(self, n: int) -> torch.Tensor:
        slots = torch.arange(n, device=self.dense.weight.device)
        ids = torch.full((n, n + 1), self.filler_id, device=slots.device)
        ids[slots, slots] = self.filler_id - 2 - slots
        ids[:, n] = self.end_id
        return ids

    def forward(self, encoded: torch.Tensor, n: int, at: slice = EVERYWHERE) -> torch.Tensor:
        keys = encoded[:, :n].unsqueeze(2)
        return self.layer_norm(gelu(_keyed(self.dense, keys, encoded[:, at].unsqueeze(1))))

    def retrieval_states(
        self,
        encoded: torch.Tensor,
        group: torch.Tensor,
        slot: torch.Tensor,
        position: torch.Tensor,
    ) -> torch.Tensor:
        keys, f = encoded[group, slot], encoded[group, position]
        return self.retrieval_layer_norm(gelu(_keyed(self.retrieval_dense, keys, f)))


class HadamardGate(Demultiplexer):
    """One shared projection, scaled and shifted by each slot's own gate: unbinding by product.

    It mirrors the Hadamard multiplexer: a product with a slot's key binds, and a product with the
    slot's gate unbinds. One H x H product per position serves all slots; per slot only element-wise
    work is left, so it stays cheap beside a small encoder at a large N.
    """

    def __init__(self, config: MuxConfig) -> None:
        super().__init__()
        n, h = config.num_instances, config.hidden_size
        self.projection = nn.Linear(h, h)
        self.gate_scale = nn.Parameter(torch.ones(n, h))
        self.gate_shift = nn.Parameter(torch.zeros(n, h))
        self.layer_norm = nn.LayerNorm(h, eps=config.layer_norm_eps)
        self.output = nn.Linear(h, h)

    def reset_keys(self) -> None:
        with torch.no_grad():
            nn.init.normal_(self.gate_scale)
            nn.init.zeros_(self.gate_shift)

    def forward(self, encoded: torch.Tensor, n: int, at: slice = EVERYWHERE) -> torch.Tensor:
        scale = self.gate_scale[:n].view(1, n, 1, -1)
        shift = self.gate_shift[:n].view(1, n, 1, -1)
        projected = self.projection(encoded[:, at]).unsqueeze(1)
        return self.layer_norm(gelu(torch.addcmul(shift, projected, scale)))

    def project(self, states: torch.Tensor) -> torch.Tensor:
        return self.output(states)

    def retrieval_states(
        self,
        encoded: torch.Tensor,
        group: torch.Tensor,
        slot: torch.Tensor,
        position: torch.Tensor,
    ) -> torch.Tensor:
        projected = self.projection(encoded[group, position])
        gated = torch.addcmul(self.gate_shift[slot], projected, self.gate_scale[slot])
        return self.layer_norm(gelu(gated))


DEMULTIPLEXERS: dict[str, type[Demultiplexer]] = {
    "index_pos": IndexPosition,
    "index": IndexPrefix,
    "hadamard_gate": HadamardGate,
}


def build_demultiplexer(config: MuxConfig) -> Demultiplexer:
    """The demultiplexer that ``config.demuxing_variant`` names; ValueError for an unknown name."""
    if config.demuxing_variant not in DEMULTIPLEXERS:
        raise ValueError(
            f"unknown demuxing_variant {config.demuxing_variant!r}; "
            f"known: {', '.join(DEMULTIPLEXERS)}"
        )
    return DEMULTIPLEXERS[config.demuxing_variant](config)
