"""The tasks: a head and a loss on the composition, and the classes for each backbone.

Each class is what ``transformers``' ``AutoModelFor...`` returns for our ``model_type``.
"""

import torch
from torch import nn

from muxserve.models.composition import Encoded, MuxBert, MuxElectra, MuxPreTrainedModel
from muxserve.models.config import MuxConfig
from muxserve.models.heads import (
    IGNORED,
    DenseHead,
    LinearHead,
    build_classifier,
    classification_loss,
    replaced_token_loss,
    token_classification_loss,
)
from muxserve.models.output import MuxOutput


class SequenceClassification(MuxPreTrainedModel):
    """Classification or regression of N texts per encoder row."""

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        self.classifier = build_classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_instances: int | None = None,
        retrieval_slots: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> MuxOutput:
        """Classify B texts, N to a group.

        Args:
            input_ids: [B, L] token ids; B a multiple of N.
            attention_mask: [B, L], 1 at tokens; None means no padding.
            labels: [B] class ids, [B] values (regression) or [B, labels] (multi-label), to get
                losses too.
            num_instances: N of this batch, one of ``config.widths``; default the widest.
            retrieval_slots: [G, L] the slot whose token is retrieved at each position; drawn at
                random if labels are given and ``retrieval_loss_coeff`` is not 0.
            output_hidden_states: return the encoder's output at every position, even where the
                head reads one.

        Returns:
            MuxOutput with logits [B, labels].

        Raises:
            ValueError: for a batch, mask or labels that do not fit; see ``encode``.
        """
        everywhere = output_hidden_states or (
            labels is not None and self._retrieves(retrieval_slots)
        )
        encoded = self.encode(
            input_ids,
            attention_mask,
            num_instances,
            read=1 if self.config.pooling == "first" and not everywhere else None,
        )
        logits, states = self.classify(encoded)
        output = _output(encoded, logits, states)
        if labels is None:
            return output
        loss = classification_loss(logits, labels, self.config.problem_type)
        return self._with_losses(output, encoded, loss, retrieval_slots)

    def classify(self, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, labels] of an encoded batch, and the states [B, positions, H] read."""
        first_only = self.config.pooling == "first"
        states = self.separate(encoded, first_only=first_only)
        pooled = states[:, 0] if first_only else _mean_of_tokens(states, encoded.mask)
        return self.classifier(self.dropout(self.project(encoded, pooled))), states


class TokenClassification(MuxPreTrainedModel):
    """Classification of every token of N texts per encoder row."""

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        self.classifier = LinearHead(config, config.label_count)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_instances: int | None = None,
        retrieval_slots: torch.Tensor | None = None,
    ) -> MuxOutput:
        """Label every token of B texts, N to a group.

        Args:
            input_ids, attention_mask, num_instances, retrieval_slots: as in sentence
                classification.
            labels: [B, L] class ids, -100 where there is none.

        Returns:
            MuxOutput with logits [B, L, labels], never with a prefix.
        """
        encoded = self.encode(input_ids, attention_mask, num_instances)
        logits, states = self.classify(encoded)
        output = _output(encoded, logits, states)
        if labels is None:
            return output
        loss = token_classification_loss(logits, labels)
        return self._with_losses(output, encoded, loss, retrieval_slots)

    def classify(self, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, L, labels] of an encoded batch, and the states [B, L, H] read."""
        states = self.separate(encoded)
        return self.classifier(self.dropout(self.project(encoded, states))), states


class MaskedLM(MuxPreTrainedModel):
    """Masked language modelling: the retrieval head names the masked tokens of every slot.

    As in the reference, the demultiplexer itself is not used.
    """

    retrieval_ignores_padding = False
    masks_stay = True

    def __init__(self, config: MuxConfig) -> None:
        config.retrieval_head = True
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        num_instances: int | None = None,
        retrieval_slots: torch.Tensor | None = None,
    ) -> MuxOutput:
        """Name tokens of B texts, N to a group.

        Args:
            input_ids, attention_mask, num_instances, retrieval_slots: as in sentence
                classification.
            labels: [B, L] token ids, -100 where nothing is asked. With labels, only the logits
                that the loss needs are computed; the others are 0.
            token_type_ids: [B, L] segments; see ``encode`` for a prefix.

        Returns:
            MuxOutput with logits [B, L, vocabulary].
        """
        encoded = self.encode(
            input_ids, attention_mask, num_instances, token_type_ids=token_type_ids
        )
        shape = (*encoded.ids.shape, self.config.vocab_size)
        if labels is None:
            every = torch.arange(encoded.ids.numel(), device=encoded.ids.device)
            return _output(encoded, self.token_logits(encoded, every).view(shape), None)
        if labels.shape != encoded.ids.shape:
            raise ValueError(
                f"labels must have shape {tuple(encoded.ids.shape)}, got {tuple(labels.shape)}"
            )
        asked = labels.flatten().ne(IGNORED).nonzero().squeeze(1)
        named = self.token_logits(encoded, asked)
        logits = named.new_zeros(encoded.ids.numel(), shape[-1]).index_copy(0, asked, named)
        loss = nn.functional.cross_entropy(named.float(), labels.flatten()[asked])
        output = _output(encoded, logits.view(shape), None)
        return self._with_losses(output, encoded, loss, retrieval_slots)


class ReplacedTokenDetection(MuxPreTrainedModel):
    """ELECTRA's pre-training: was each token replaced? N texts per encoder row."""

    retrieval_ignores_padding = False
    masks_stay = True

    def __init__(self, config: MuxConfig) -> None:
        super().__init__(config)
        self.classifier = DenseHead(config, 1)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        num_instances: int | None = None,
        retrieval_slots: torch.Tensor | None = None,
    ) -> MuxOutput:
        """Judge every token of B texts, N to a group.

        Args:
            input_ids, attention_mask, num_instances, retrieval_slots: as in sentence
                classification.
            labels: [B, L], 1 where a token was replaced; padding does not count in the loss.
            token_type_ids: [B, L] segments; see ``encode`` for a prefix.

        Returns:
            MuxOutput with logits [B, L].
        """
        encoded = self.encode(
            input_ids, attention_mask, num_instances, token_type_ids=token_type_ids
        )
        states = self.separate(encoded)
        logits = self.classifier(self.project(encoded, states)).squeeze(-1)
        output = _output(encoded, logits, states)
        if labels is None:
            return output
        loss = replaced_token_loss(logits, labels, encoded.mask)
        return self._with_losses(output, encoded, loss, retrieval_slots)


class MuxBertForSequenceClassification(MuxBert, SequenceClassification):
    """MUX-BERT for sentences."""


class MuxBertForTokenClassification(MuxBert, TokenClassification):
    """MUX-BERT for tokens."""


class MuxBertForMaskedLM(MuxBert, MaskedLM):
    """MUX-BERT, pre-training."""


class MuxElectraForSequenceClassification(MuxElectra, SequenceClassification):
    """MUX-ELECTRA for sentences."""

    #: The reference leaves position 0 out of this model's retrieval loss.
    retrieval_start = 1


class MuxElectraForTokenClassification(MuxElectra, TokenClassification):
    """MUX-ELECTRA for tokens."""


class MuxElectraForPreTraining(MuxElectra, ReplacedTokenDetection):
    """MUX-ELECTRA, pre-training: the discriminator."""


def _output(encoded: Encoded, logits: torch.Tensor, states: torch.Tensor | None) -> MuxOutput:
    return MuxOutput(
        logits=logits,
        muxed_embeddings=encoded.muxed,
        encoder_output=encoded.states,
        demux_output=states,
    )


def _mean_of_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over a text's own tokens: [B, L, H] and [B, L] to [B, H]."""
    weights = mask.to(states.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.bmm(weights.unsqueeze(1), states).squeeze(1)
