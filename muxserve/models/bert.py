"""The composition: embeddings -> multiplexer -> encoder -> demultiplexer -> head, for BERT.

Row ``g * N + i`` of a batch is slot i of group g. The encoder is ``transformers``' BERT, fed with
the mixture as ``inputs_embeds``; BERT then adds positions and normalises a second time, which the
reference does too and which its weights depend on.
"""

import torch
from torch import nn
from transformers import BertModel
from transformers.modeling_utils import PreTrainedModel

from muxserve.models.config import MuxBertConfig
from muxserve.models.demultiplexers import Demultiplexer, build_demultiplexer
from muxserve.models.heads import RetrievalHead, build_classifier, classification_loss
from muxserve.models.multiplexers import Multiplexer, build_multiplexer
from muxserve.models.output import MuxOutput


class MuxBertPreTrainedModel(PreTrainedModel):
    """What a multiplexed BERT shares with ``transformers``: config, attention, initial weights."""

    config_class = MuxBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Multiplexer | Demultiplexer):
            module.reset_keys()


class MuxBertForSequenceClassification(MuxBertPreTrainedModel):
    """Sentence classification of N texts per encoder row."""

    config: MuxBertConfig

    def __init__(self, config: MuxBertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.multiplexer = build_multiplexer(config)
        self.demultiplexer = build_demultiplexer(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = build_classifier(config)
        self.retrieval_head: RetrievalHead | None = None
        self._tied_weights_keys: dict[str, str] = {}
        if config.retrieval_head:
            self.retrieval_head = RetrievalHead(config)
            self._tied_weights_keys["retrieval_head.decoder.weight"] = (
                "bert.embeddings.word_embeddings.weight"
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.bert.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_instances: int | None = None,
        retrieval_slots: torch.Tensor | None = None,
    ) -> MuxOutput:
        """Classify B texts, N to a group.

        Args:
            input_ids: [B, L] token ids; B a multiple of N.
            attention_mask: [B, L], 1 at tokens; None means no padding.
            labels: [B] class ids (values for regression), to get losses too.
            num_instances: N of this batch, one of ``config.widths``; default the widest.
            retrieval_slots: [G, L] the slot whose token is retrieved at each position; drawn at
                random where labels are given and ``retrieval_loss_coeff`` is not 0.

        Returns:
            MuxOutput with logits [B, labels].

        Raises:
            ValueError: for an N that the weights do not have, a B that is not a multiple of N, a
                text longer than the position table, or labels of another shape.
        """
        n = self.config.num_instances if num_instances is None else num_instances
        self._check_batch(input_ids, n)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.config.first_token_id is not None:
            first = torch.full_like(input_ids[:, :1], self.config.first_token_id)
            input_ids = torch.cat([first, input_ids[:, 1:]], dim=1)

        muxed: torch.Tensor | None = None
        if n == 1 and self.config.plain_single:
            encoded = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
            states = encoded
            pooled = self._pool(states, attention_mask)
        else:
            muxed, encoded = self._encode_mixture(input_ids, attention_mask, n)
            read = encoded[:, :1] if self.config.pooling == "first" else encoded
            states = self.demultiplexer(read, n).flatten(0, 1)
            pooled = self.demultiplexer.project(self._pool(states, attention_mask))
        logits = self.classifier(self.dropout(pooled))
        output = MuxOutput(
            logits=logits, muxed_embeddings=muxed, encoder_output=encoded, demux_output=states
        )
        if labels is not None:
            output.task_loss = classification_loss(logits, labels)
            output.loss = self.config.task_loss_coeff * output.task_loss
            if self.config.retrieval_loss_coeff or retrieval_slots is not None:
                output.retrieval_loss = self.retrieval_loss(encoded, input_ids, n, retrieval_slots)
                output.loss = output.loss + self.config.retrieval_loss_coeff * output.retrieval_loss
        return output

    def retrieval_loss(
        self,
        encoded: torch.Tensor,
        input_ids: torch.Tensor,
        n: int,
        slots: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean cross-entropy of naming the token of one slot at each position (paper, section 3.2).

        Padding is ignored, and of the other positions a share of ``retrieval_percentage`` is kept.

        Args:
            encoded: [G, L, H] encoder output.
            input_ids: [G * n, L].
            n: slots per group.
            slots: [G, L] the slot asked for at each position; drawn at random when None.
        """
        logits, labels = self.retrieval_logits(encoded, input_ids, n, slots)
        return nn.functional.cross_entropy(logits.float(), labels)

    def retrieval_logits(
        self,
        encoded: torch.Tensor,
        input_ids: torch.Tensor,
        n: int,
        slots: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [P, vocabulary] and token ids [P] at the P positions kept; see retrieval_loss."""
        if self.retrieval_head is None:
            raise ValueError(
                "these weights have no retrieval head (config.retrieval_head is false)"
            )
        g, length = encoded.shape[:2]
        ids = input_ids.view(g, n, length)
        if slots is None:
            slots = torch.randint(n, (g, length), device=ids.device)
        labels = ids.gather(1, slots.unsqueeze(1)).squeeze(1)
        kept: torch.Tensor = labels.ne(self.config.pad_token_id or 0)
        if self.config.retrieval_percentage < 1:
            kept &= torch.rand(kept.shape, device=kept.device) < self.config.retrieval_percentage
        states = self.demultiplexer.retrieval_states(encoded[kept], slots[kept])
        return self.retrieval_head(states), labels[kept]

    def _check_batch(self, input_ids: torch.Tensor, n: int) -> None:
        rows, length = input_ids.shape
        widths = self.config.served_widths
        if n not in widths:
            raise ValueError(f"num_instances must be one of {widths} for these weights, got {n}")
        if rows % n:
            raise ValueError(f"a batch must be a multiple of N={n} rows, got {rows}")
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"a text has {length} tokens; these weights take at most "
                f"{self.config.max_position_embeddings}"
            )

    def _encode_mixture(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed, multiplex and encode: the mixture [G, L, E] and the encoder's output [G, L, H]."""
        length = input_ids.shape[1]
        embedded = self.bert.embeddings(input_ids=input_ids)
        x = embedded.view(-1, n, length, embedded.shape[-1])
        if self.config.encoder_mask == "none":
            muxed = self.multiplexer(x, None)
            return muxed, self.bert(inputs_embeds=muxed)[0]
        mask = attention_mask.view(-1, n, length)
        muxed = self.multiplexer(x, mask)
        union = mask.amax(dim=1)
        return muxed, self.bert(inputs_embeds=muxed, attention_mask=union)[0]

    def _pool(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, L, H] to [B, H]."""
        if self.config.pooling == "first":
            return states[:, 0]
        weights = attention_mask.to(states.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.bmm(weights.unsqueeze(1), states).squeeze(1)
