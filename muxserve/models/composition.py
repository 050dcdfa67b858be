"""The composition: embeddings -> multiplexer -> encoder -> demultiplexer, for any backbone.

Row ``g * N + i`` of a batch is slot i of group g. The encoder is ``transformers``' BERT or ELECTRA
with the mixture as its embeddings: it adds positions and normalises a second time, as in the
reference, whose weights depend on it. ``muxserve.models.tasks`` adds the heads.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel
from transformers.modeling_utils import PreTrainedModel

from muxserve.models.config import MuxBertConfig, MuxConfig, MuxElectraConfig
from muxserve.models.demultiplexers import EVERYWHERE, Demultiplexer, build_demultiplexer
from muxserve.models.encoder import Backbone, encode
from muxserve.models.heads import RetrievalHead
from muxserve.models.multiplexers import Multiplexer, build_multiplexer
from muxserve.models.output import MuxOutput


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch after the encoder.

    Attributes:
        n: N of the batch.
        ids: [B, L] token ids as embedded, without prefix.
        mask: [B, L], 1 at tokens.
        prefix: positions before the first token.
        muxed: [G, L', E], or None if N=1 ran the backbone alone.
        states: [G, L', H], or fewer positions if not all were asked for.
    """

    n: int
    ids: torch.Tensor
    mask: torch.Tensor
    prefix: int
    muxed: torch.Tensor | None
    states: torch.Tensor


class MuxPreTrainedModel(PreTrainedModel):
    """A multiplexed backbone without a head.

    Subclasses say which backbone (``MuxBert``, ``MuxElectra``) and which task.
    """

    config: MuxConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    #: Whether the retrieval head's decoder is the word embedding table.
    ties_decoder = False
    #: Whether padding is left out of the retrieval loss.
    retrieval_ignores_padding = True
    #: The first token that the retrieval loss asks for.
    retrieval_start = 0
    #: Whether mask and segments stay where they are when a prefix moves the tokens, as in the
    #: reference for some tasks.
    masks_stay = False

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self._build_backbone(config))
        self.multiplexer = build_multiplexer(config)
        self.demultiplexer = build_demultiplexer(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.retrieval_head: RetrievalHead | None = None
        self._tied_weights_keys: dict[str, str] = {}
        if config.retrieval_head:
            self.retrieval_head = RetrievalHead(
                config, pre_decoder=self.demultiplexer.retrieval_pre_decoder
            )
            if self.ties_decoder:
                self._tied_weights_keys["retrieval_head.decoder.weight"] = (
                    f"{self.base_model_prefix}.embeddings.word_embeddings.weight"
                )

    @staticmethod
    def _build_backbone(config: MuxConfig) -> Backbone:
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Multiplexer | Demultiplexer):
            module.reset_keys()

    @property
    def backbone(self) -> Backbone:
        """The BERT or ELECTRA inside."""
        return cast(Backbone, getattr(self, self.base_model_prefix))

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_instances: int | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        read: int | None = None,
    ) -> Encoded:
        """Embed, multiplex and encode a batch.

        Args:
            input_ids: [B, L] token ids; B a multiple of N.
            attention_mask: [B, L], 1 at tokens; None means no padding.
            num_instances: N of this batch, one of ``config.widths``; default the widest.
            token_type_ids: [B, L] segments, if the weights were trained with them.
                Behind a prefix of P tokens, mask and segments may be [B, P + L]: one for each
                embedded position; see ``_beside_prefix`` for other shapes.
            read: compute the last layer for the prefix and this many tokens only.

        Raises:
            ValueError: for an N that the weights do not serve, a B that is not a multiple of N, a
                text longer than the position table, or a mask of another shape.
        """
        n = self.config.num_instances if num_instances is None else num_instances
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        plain = n == 1 and self.config.plain_single
        prefix = None if plain else self.demultiplexer.prefix(n)
        length = 0 if prefix is None else prefix.shape[1]
        self._check_batch(input_ids, attention_mask, n, length)
        if prefix is None and self.config.first_token_id is not None:
            first = torch.full_like(input_ids[:, :1], self.config.first_token_id)
            input_ids = torch.cat([first, input_ids[:, 1:]], dim=1)
        if plain:
            states = encode(
                self.backbone,
                input_ids=input_ids,
                token_type_ids=token_type_ids,
                mask=attention_mask,
                read=read,
            )
            return Encoded(n, input_ids, attention_mask, 0, None, states)

        ids, mask = input_ids, attention_mask
        if prefix is not None:
            # Not len(): it would fix the number of texts in a traced graph.
            before = prefix.repeat(ids.shape[0] // n, 1)
            ids = torch.cat([before, ids], dim=1)
            mask = self._beside_prefix(mask, torch.ones_like(before), ids)
            if token_type_ids is not None:
                token_type_ids = self._beside_prefix(token_type_ids, before * 0, ids)
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        muxed = self.mix(ids, mask, n, token_type_ids)
        # A sentence head reads the last token of the prefix.
        states = self.encode_mixture(muxed, mask, n, length if read and length else read)
        return Encoded(n, input_ids, attention_mask, length, muxed, states)

    def _beside_prefix(
        self, given: torch.Tensor, before: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Mask or segments [B, P + L] of ids [B, P + L] that begin with a prefix [B, P].

        A value for each position is taken as it is. Values for each token move with the tokens. In
        tasks where the reference does not move them (``masks_stay``), they stay at their positions
        and the last column is repeated to the end.
        """
        if given.shape[1] == ids.shape[1]:
            return given
        if self.masks_stay and self.config.encoder_mask == "none":
            return torch.cat([given, given[:, -1:].expand_as(before)], dim=1)
        return torch.cat([before, given], dim=1)

    def mix(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        n: int,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed [B, L'] token ids, prefix included, and multiplex them: [G, L', E]."""
        embedded = self.backbone.embeddings(input_ids=ids, token_type_ids=token_type_ids)
        slots = mask.view(-1, n, mask.shape[1])
        muxed: torch.Tensor = self.multiplexer(
            embedded.view(*slots.shape, embedded.shape[-1]), slots
        )
        return muxed

    def encode_mixture(
        self, muxed: torch.Tensor, mask: torch.Tensor, n: int, read: int | None = None
    ) -> torch.Tensor:
        """Encode a mixture [G, L', E] whose slots have ``mask`` [B, L']; see ``encode``."""
        union = None
        if self.config.encoder_mask == "union":
            union = mask.view(-1, n, mask.shape[1]).amax(dim=1)
        return encode(self.backbone, inputs_embeds=muxed, mask=union, read=read)

    def separate(self, encoded: Encoded, *, first_only: bool = False) -> torch.Tensor:
        """Per-slot states [B, positions, H]: at every token, or where a sentence head reads."""
        at = slice(encoded.prefix, None) if encoded.prefix else EVERYWHERE
        if first_only:
            last = max(encoded.prefix, 1)
            at = slice(last - 1, last)
        if encoded.muxed is None:
            return encoded.states[:, at]
        states: torch.Tensor = self.demultiplexer(encoded.states, encoded.n, at)
        return states.flatten(0, 1)

    def project(self, encoded: Encoded, states: torch.Tensor) -> torch.Tensor:
        """The demultiplexer's last step; nothing where N=1 ran the backbone alone."""
        return states if encoded.muxed is None else self.demultiplexer.project(states)

    def token_logits(self, encoded: Encoded, wanted: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits [P, V] of the retrieval head at some tokens of some rows.

        Args:
            encoded: what ``encode`` returned.
            wanted: [P] indices into the flattened [B, L] tokens.
        """
        if self.retrieval_head is None:
            raise ValueError(
                "these weights have no retrieval head (config.retrieval_head is false)"
            )
        length = encoded.ids.shape[1]
        row, position = wanted // length, wanted % length + encoded.prefix
        if encoded.muxed is None:
            states = encoded.states[row, position]
        else:
            group, slot = row // encoded.n, row % encoded.n
            states = self.demultiplexer.retrieval_states(encoded.states, group, slot, position)
        logits: torch.Tensor = self.retrieval_head(states)
        return logits

    def retrieval_logits(
        self, encoded: Encoded, slots: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [P, vocabulary] and token ids [P] at the P tokens kept; see retrieval_loss."""
        ids = encoded.ids.view(-1, encoded.n, encoded.ids.shape[1])
        groups, n, length = ids.shape
        if slots is None:
            slots = torch.randint(n, (groups, length), device=ids.device)
        _check_shape("retrieval_slots", slots, (groups, length))
        labels = ids.gather(1, slots.unsqueeze(1)).squeeze(1)
        kept = torch.ones_like(labels, dtype=torch.bool)
        if self.retrieval_ignores_padding:
            kept = labels.ne(self.config.pad_token_id or 0)
        if not encoded.prefix:
            kept[:, : self.retrieval_start] = False
        if self.config.retrieval_percentage < 1:
            kept &= torch.rand(kept.shape, device=kept.device) < self.config.retrieval_percentage
        group, position = kept.nonzero(as_tuple=True)
        wanted = (group * n + slots[kept]) * length + position
        return self.token_logits(encoded, wanted), labels[kept]

    def retrieval_loss(self, encoded: Encoded, slots: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy of naming the token of one slot at each position (paper, section 3.2).

        A random share of the tokens, ``retrieval_percentage``, counts.

        Args:
            encoded: what ``encode`` returned, at every position.
            slots: [G, L] the slot asked for at each token; None to draw them at random.
        """
        logits, labels = self.retrieval_logits(encoded, slots)
        return nn.functional.cross_entropy(logits.float(), labels)

    def _with_losses(
        self,
        output: MuxOutput,
        encoded: Encoded,
        task_loss: torch.Tensor,
        slots: torch.Tensor | None,
    ) -> MuxOutput:
        """``output`` with the task's loss, and with the retrieval loss if it has a weight."""
        output.task_loss = task_loss
        output.loss = self.config.task_loss_coeff * task_loss
        if self._retrieves(slots):
            output.retrieval_loss = self.retrieval_loss(encoded, slots)
            output.loss = output.loss + self.config.retrieval_loss_coeff * output.retrieval_loss
        return output

    def _retrieves(self, slots: torch.Tensor | None) -> bool:
        return bool(self.config.retrieval_loss_coeff) or slots is not None

    def _check_batch(
        self, input_ids: torch.Tensor, mask: torch.Tensor, n: int, prefix: int
    ) -> None:
        rows, length = input_ids.shape
        widths = self.config.served_widths
        if n not in widths:
            raise ValueError(f"num_instances must be one of {widths} for these weights, got {n}")
        if rows % n:
            raise ValueError(f"a batch must be a multiple of N={n} rows, got {rows}")
        most = self.config.max_position_embeddings - self.config.prefix_length(n)
        if length > most:
            raise ValueError(f"a text has {length} tokens; these weights take at most {most}")
        if not prefix or mask.shape[1:] != (prefix + length,):
            _check_shape("attention_mask", mask, (rows, length))


class MuxBert(MuxPreTrainedModel):
    """A multiplexed BERT."""

    config_class = MuxBertConfig
    base_model_prefix = "bert"
    ties_decoder = True

    @staticmethod
    def _build_backbone(config: MuxConfig) -> Backbone:
        return BertModel(cast(BertConfig, config), add_pooling_layer=False)


class MuxElectra(MuxPreTrainedModel):
    """A multiplexed ELECTRA."""

    config_class = MuxElectraConfig
    base_model_prefix = "electra"

    @staticmethod
    def _build_backbone(config: MuxConfig) -> Backbone:
        return ElectraModel(cast(ElectraConfig, config))


def _check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
