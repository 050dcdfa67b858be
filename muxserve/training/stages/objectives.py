"""What each stage minimises and measures: rows of token ids in, batches, losses and figures out.

The objectives are those of the paper (Murahari et al., Findings of EMNLP 2023, section 3).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from muxserve.models.composition import MuxPreTrainedModel
from muxserve.models.config import MuxConfig
from muxserve.models.heads import IGNORED
from muxserve.training.data.batches import pad_batch
from muxserve.training.evaluation.examples import Examples
from muxserve.training.evaluation.groupings import grouped_predictions
from muxserve.training.evaluation.quality import accuracy

Rows = Sequence[Sequence[int]]
Batch = dict[str, torch.Tensor]

_MASK_PIECES = ("[MASK]", "<mask>")
#: Held-out rows that pre-training is measured on: enough for a curve, cheap enough for a CPU.
_MEASURED_ROWS = 2000
_MEASURED_GROUPS = 16


class Objective(ABC):
    """One stage's loss and measure.

    Attributes:
        metric: the figure of ``measure`` that models are compared by; larger is better.
    """

    metric = "accuracy"

    def __init__(self, rows: Rows, held: Rows, config: Any) -> None:
        """Take token ids to train on and to measure on, and the network's config."""
        self.rows = rows
        self.held = held
        self.n = config.num_instances if isinstance(config, MuxConfig) else 1
        self.pad_id = int(config.pad_token_id or 0)
        fixed = getattr(config, "padding", "longest") == "max_length"
        self.padded_length: int | None = config.trained_length if fixed else None

    @abstractmethod
    def batch(self, picked: Sequence[int], generator: torch.Generator) -> Batch:
        """The batch of some rows; ``generator`` draws everything random."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of a batch: the model's own, unless an objective has another."""
        loss: torch.Tensor = model(**batch).loss
        return loss

    @abstractmethod
    def measure(self, model: Any) -> dict[str, float]:
        """Figures on the rows held out, ``metric`` among them."""

    def _padded(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_batch(rows, self.pad_id, self.padded_length)


class _PreTraining(Objective):
    """Retrieval and pre-training: figures over the tokens of the rows held out."""

    def measure(self, model: MuxPreTrainedModel) -> dict[str, float]:
        right = total = batches = 0
        loss = 0.0
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            for rows in self._held_batches():
                batch = self._of_rows(rows, generator)
                batch = {key: value.to(model.device) for key, value in batch.items()}
                loss += float(self.loss(model, batch))
                answers = self.right(model, batch)
                right += int(answers.sum())
                total += answers.numel()
                batches += 1
        return {self.metric: right / max(1, total), "loss": loss / batches}

    def batch(self, picked: Sequence[int], generator: torch.Generator) -> Batch:
        return self._of_rows([self.rows[i] for i in picked], generator)

    @abstractmethod
    def _of_rows(self, rows: Rows, generator: torch.Generator) -> Batch: ...

    @abstractmethod
    def right(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        """Whether each of the tokens asked for is named correctly: 1-D, bool."""

    def _slots(self, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(self.n, (len(ids) // self.n, ids.shape[1]), generator=generator)

    def _held_batches(self) -> Iterator[Rows]:
        held = sorted((self.held[i] for i in range(min(len(self.held), _MEASURED_ROWS))), key=len)
        size = self.n * _MEASURED_GROUPS
        for start in range(0, len(held), size):
            rows = held[start : start + size]
            yield [rows[i % len(rows)] for i in range(len(rows) + -len(rows) % self.n)]


class TokenRetrieval(_PreTraining):
    """The warm-up: name the token that a random slot has at each position."""

    metric = "retrieved"

    def _of_rows(self, rows: Rows, generator: torch.Generator) -> Batch:
        ids, mask = self._padded(rows)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "retrieval_slots": self._slots(ids, generator),
        }

    def loss(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        return model.retrieval_loss(encoded, batch["retrieval_slots"])

    def right(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        logits, ids = model.retrieval_logits(encoded, batch["retrieval_slots"])
        named = ids.ne(self.pad_id)
        return logits[named].argmax(dim=-1) == ids[named]


class MaskedWords(_PreTraining):
    """Pre-training of MUX-BERT: masked-language modelling, with token retrieval beside it.

    80 % of the tokens asked for are masked, 10 % random and 10 % unchanged (Devlin et al., 2019).
    """

    masked_share, random_share = 0.8, 0.1

    def __init__(
        self, rows: Rows, held: Rows, config: Any, tokenizer: Tokenizer, share: float
    ) -> None:
        """Ask for a share of the tokens; ValueError for a tokenizer without a mask token."""
        super().__init__(rows, held, config)
        self.coefficients = (config.retrieval_loss_coeff, config.task_loss_coeff)
        pieces = tokenizer.get_vocab()
        mask = next((piece for piece in _MASK_PIECES if piece in pieces), None)
        if mask is None:
            raise ValueError(f"the tokenizer has no {' or '.join(_MASK_PIECES)} to mask tokens by")
        added = tokenizer.get_added_tokens_decoder()
        self.special = torch.tensor([self.pad_id, *added])
        self.masking = DataCollatorForLanguageModeling(
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask),
            mlm_probability=share,
            mask_replace_prob=self.masked_share,
            random_replace_prob=self.random_share,
        )

    def _masked(
        self, ids: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked ids, and the original ids of the tokens asked for, both [B, L]."""
        self.masking.generator = generator
        return self.masking.torch_mask_tokens(ids.clone(), torch.isin(ids, self.special))

    def _of_rows(self, rows: Rows, generator: torch.Generator) -> Batch:
        ids, mask = self._padded(rows)
        masked, labels = self._masked(ids, generator)
        return {
            "input_ids": masked,
            "attention_mask": mask,
            "labels": labels,
            "retrieval_slots": self._slots(ids, generator),
        }

    def loss(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        # The model's own forward would make logits of [B, L, vocabulary], mostly zeros.
        retrieval, task = self.coefficients
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        asked, labels = self._asked(batch)
        named = model.token_logits(encoded, asked).float()
        loss = task * cross_entropy(named, labels, reduction="sum") / max(1, len(asked))
        if retrieval:
            loss = loss + retrieval * model.retrieval_loss(encoded, batch["retrieval_slots"])
        return loss

    def right(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        asked, labels = self._asked(batch)
        return model.token_logits(encoded, asked).argmax(dim=-1) == labels

    @staticmethod
    def _asked(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of the tokens asked for among all of a batch, and their labels."""
        labels = batch["labels"].flatten()
        asked = labels.ne(IGNORED).nonzero().squeeze(1)
        return asked, labels[asked]


class ReplacedWords(MaskedWords):
    """Pre-training of MUX-ELECTRA: which tokens were replaced, with token retrieval beside it.

    85 % of the tokens picked are masked, as in the reference. A generator, which is not trained
    here, names all of them (Clark et al., 2020); without one they become random tokens.
    """

    masked_share, random_share = 0.85, 0.0

    def __init__(
        self,
        rows: Rows,
        held: Rows,
        config: Any,
        tokenizer: Tokenizer,
        share: float,
        generator: PreTrainedModel | None,
    ) -> None:
        super().__init__(rows, held, config, tokenizer, share)
        self.vocabulary = int(config.vocab_size)
        self.generator = generator

    def _of_rows(self, rows: Rows, generator: torch.Generator) -> Batch:
        ids, mask = self._padded(rows)
        masked, labels = self._masked(ids, generator)
        picked = labels.ne(IGNORED)
        named = torch.randint(self.vocabulary, ids.shape, generator=generator)
        if self.generator is not None:
            with torch.inference_mode():
                logits = self.generator(
                    input_ids=masked.to(self.generator.device),
                    attention_mask=mask.to(self.generator.device),
                ).logits[picked.to(self.generator.device)]
            chances = logits.float().softmax(dim=-1).cpu()
            named[picked] = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        replaced = torch.where(picked, named, ids)
        return {
            "input_ids": replaced,
            "attention_mask": mask,
            "labels": replaced.ne(ids).long(),
            "retrieval_slots": self._slots(ids, generator),
        }

    def loss(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        return Objective.loss(self, model, batch)

    def right(self, model: MuxPreTrainedModel, batch: Batch) -> torch.Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        seen = batch["attention_mask"].bool()
        guessed = model(**inputs).logits[seen] > 0
        return guessed == batch["labels"][seen].bool()


class Labelled(Objective):
    """Fine-tuning: labels of texts or of tokens, or real numbers."""

    def __init__(
        self, rows: Rows, labels: Sequence[Any], held: Examples, config: Any, *, regression: bool
    ) -> None:
        """Take rows with a class id, a number or a list of class ids each, and examples."""
        super().__init__(rows, held.ids, config)
        self.labels = labels
        self.examples = held
        self.metric = "pearson" if regression else "accuracy"

    def batch(self, picked: Sequence[int], generator: torch.Generator) -> Batch:
        ids, mask = self._padded([self.rows[i] for i in picked])
        labels = [self.labels[i] for i in picked]
        if isinstance(labels[0], list):
            targets = torch.full_like(ids, IGNORED)
            for row, of_tokens in enumerate(labels):
                targets[row, : len(of_tokens)] = torch.tensor(of_tokens)
        else:
            targets = torch.tensor(labels)
        return {"input_ids": ids, "attention_mask": mask, "labels": targets}

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        logits = grouped_predictions(
            model,
            self.examples.ids,
            self.n,
            firsts=self.examples.firsts,
            seed=0,
            padded_length=self.padded_length,
        )
        right = self.examples.labels
        if self.metric == "pearson":
            return {self.metric: float(torch.corrcoef(torch.stack([logits[:, 0], right]))[0, 1])}
        return {self.metric: accuracy(logits, right)}
