"""Demultiplexers: the encoder's one sequence in, a sequence for each of the N slots out.

A new demultiplexer is one class here and one line in ``DEMULTIPLEXERS``.
"""

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from muxserve.models.config import MuxBertConfig


class Demultiplexer(nn.Module, ABC):
    """Separates what the encoder computed for a group into its N slots."""

    @abstractmethod
    def forward(self, f: torch.Tensor, n: int) -> torch.Tensor:
        """[G, L, H] encoder output to [G, n, L, H] per-slot states."""

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Last, linear step on separated states [..., H]; nothing by default.

        It is linear so that a mean over positions can be taken before it, once per text.
        """
        return states

    @abstractmethod
    def retrieval_states(self, f: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """States from which the retrieval head names a token.

        Args:
            f: [P, H] encoder output at P positions, of any groups.
            slots: [P] the slot asked for at each.

        Returns:
            [P, H].
        """

    def reset_keys(self) -> None:
        """Draw the slots' keys afresh; most demultiplexers learn theirs from the default."""


class IndexPosition(Demultiplexer):
    """The paper's RSA demultiplexer: an MLP over the concatenation of a slot's key and a position.

    As released, the residual layers have dropout where the paper has layer norm; weights depend on
    it, so it is kept. ``num_hidden_demux_layers`` D gives D-1 layers. The first layer's weight is
    split by columns into a part for the key and one for the position, so that the position's part
    is computed once and not for every slot.
    """

    def __init__(self, config: MuxBertConfig) -> None:
        super().__init__()
        h, depth = config.hidden_size, config.num_hidden_demux_layers
        if depth < 2:
            raise ValueError(f"num_hidden_demux_layers must be at least 2, got {depth}")
        self.applied_layers = depth - 1
        self.demux_instance_embedding = nn.Parameter(torch.zeros(config.num_instances, h))
        # The retrieval head always reads two layers, whatever D is.
        stored = max(self.applied_layers, 2 if config.retrieval_head else 1)
        self.dense = nn.ModuleList(nn.Linear(2 * h if j == 0 else h, h) for j in range(stored))
        self.layer_norm = nn.ModuleList(
            nn.LayerNorm(h, eps=config.layer_norm_eps) for _ in range(2 * config.retrieval_head)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.pre_decoder = nn.Linear(h, h)
        self.pre_decoder_layer_norm = nn.LayerNorm(h, eps=config.layer_norm_eps)

    def reset_keys(self) -> None:
        with torch.no_grad():
            nn.init.normal_(self.demux_instance_embedding, std=0.02)

    def _first_layer(self, keys: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        h = f.shape[-1]
        first = cast(nn.Linear, self.dense[0])
        return keys @ first.weight[:, :h].T + linear(f, first.weight[:, h:], first.bias)

    def forward(self, f: torch.Tensor, n: int) -> torch.Tensor:
        keys = self.demux_instance_embedding[:n].view(1, n, 1, -1)
        y = self.dropout(gelu(self._first_layer(keys, f.unsqueeze(1))))
        for dense in self.dense[1 : self.applied_layers]:
            y = self.dropout(gelu(dense(y))) + y
        return self.pre_decoder_layer_norm(gelu(self.pre_decoder(y))) + y

    def retrieval_states(self, f: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        y = self.layer_norm[0](gelu(self._first_layer(self.demux_instance_embedding[slots], f)))
        return self.layer_norm[1](gelu(self.dense[1](y)))


class HadamardGate(Demultiplexer):
    """Scale and shift of one shared projection by each slot's own gate: unbinding by product.

    The mirror of the Hadamard multiplexer: what was bound by a product with a slot's key is taken
    out by a product with the slot's gate. One H x H product per position serves all slots; per slot
    only element-wise work is left, so it stays cheap where the encoder is small and N is large.
    """

    def __init__(self, config: MuxBertConfig) -> None:
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

    def forward(self, f: torch.Tensor, n: int) -> torch.Tensor:
        scale = self.gate_scale[:n].view(1, n, 1, -1)
        shift = self.gate_shift[:n].view(1, n, 1, -1)
        projected = self.projection(f).unsqueeze(1)
        return self.layer_norm(gelu(torch.addcmul(shift, projected, scale)))

    def project(self, states: torch.Tensor) -> torch.Tensor:
        return self.output(states)

    def retrieval_states(self, f: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        gated = torch.addcmul(self.gate_shift[slots], self.projection(f), self.gate_scale[slots])
        return self.layer_norm(gelu(gated))


DEMULTIPLEXERS: dict[str, type[Demultiplexer]] = {
    "index_pos": IndexPosition,
    "hadamard_gate": HadamardGate,
}


def build_demultiplexer(config: MuxBertConfig) -> Demultiplexer:
    """The demultiplexer that ``config.demuxing_variant`` names; ValueError for an unknown name."""
    try:
        return DEMULTIPLEXERS[config.demuxing_variant](config)
    except KeyError:
        raise ValueError(
            f"unknown demuxing_variant {config.demuxing_variant!r}; "
            f"known: {', '.join(DEMULTIPLEXERS)}"
        ) from None
