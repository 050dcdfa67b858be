"""What a student is to answer for each text or token: from labels, or from a teacher's logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.functional import log_softmax, one_hot, softmax

from muxserve.models.words import word_spans
from muxserve.training.data.batches import encoded


@dataclass(frozen=True)
class Goals:
    """Logits to learn from, one row per text or one per token.

    Attributes:
        logits: [items, labels].
        asked: [items], False at items without a goal: special tokens, and the later pieces of a
            word. None if every item has one.
        starts: the first item of each text and the end, [texts + 1], where items are tokens.
    """

    logits: torch.Tensor
    asked: torch.Tensor | None = None
    starts: Sequence[int] | None = None

    def batch(
        self, picked: Sequence[int], length: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Goals of the texts ``picked``, padded to ``length`` tokens where items are tokens.

        Returns:
            Logits [B, labels] and None, or logits [B, length, labels] and which are asked [B,
            length].
        """
        if self.starts is None:
            return self.logits[list(picked)].to(device), None
        assert self.asked is not None
        logits = torch.zeros(len(picked), length, self.logits.shape[1])
        asked = torch.zeros(len(picked), length, dtype=torch.bool)
        for row, index in enumerate(picked):
            start, end = self.starts[index], self.starts[index + 1]
            logits[row, : end - start] = self.logits[start:end]
            asked[row, : end - start] = self.asked[start:end]
        return logits.to(device), asked.to(device)


#: How far the logit of a token's own label is above the others: a probability of 0.97 of twelve.
LABEL_LOGIT = 6.0


def token_goals(labels: Sequence[Sequence[int]], count: int, ignored: int) -> Goals:
    """Goals from the class id of each token of each text.

    Args:
        labels: class ids of each text's tokens.
        count: number of labels.
        ignored: the id of tokens without a goal.
    """
    flat = torch.tensor([label for row in labels for label in row])
    asked = flat != ignored
    starts = [0]
    for row in labels:
        starts.append(starts[-1] + len(row))
    logits = LABEL_LOGIT * one_hot(flat.where(asked, 0), count).float()
    return Goals(logits, asked, starts)


def at_words(
    logits: Sequence[torch.Tensor], tokenizer: Tokenizer, texts: Sequence[str], max_length: int
) -> list[torch.Tensor]:
    """A teacher's logits at the first token of each word: [words, labels] for each text.

    A student's tokenizer may cut the same words into other pieces.
    """
    return [
        one[[span.first for span in word_spans(encoding)]]
        for one, encoding in zip(logits, encoded(tokenizer, texts, max_length), strict=True)
    ]


def teacher_goals(
    logits: Sequence[torch.Tensor], tokenizer: Tokenizer, texts: Sequence[str], max_length: int
) -> Goals:
    """Goals from a teacher's logits for each text, [labels], or for its words, [words, labels].

    Args:
        logits: of each text.
        tokenizer: the student's.
        texts: the texts.
        max_length: most tokens of a text; words beyond it have no goal.
    """
    if logits[0].dim() == 1:
        return Goals(torch.stack(list(logits)))
    rows, starts = [], [0]
    asked = []
    for one, encoding in zip(logits, encoded(tokenizer, texts, max_length), strict=True):
        # Each tokenizer may have cut off words that the other one kept.
        firsts = [span.first for span in word_spans(encoding)[: len(one)]]
        row = torch.zeros(len(encoding.ids), one.shape[1])
        row[firsts] = one[: len(firsts)]
        has_goal = torch.zeros(len(encoding.ids), dtype=torch.bool)
        has_goal[firsts] = True
        rows.append(row)
        asked.append(has_goal)
        starts.append(starts[-1] + len(row))
    return Goals(torch.cat(rows), torch.cat(asked), starts)


def soft_cross_entropy(
    logits: torch.Tensor, goal: torch.Tensor, asked: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Cross-entropy with softened logits (Hinton et al., 2015), mean over the items with a goal.

    Args:
        logits: [..., labels].
        goal: [..., labels].
        asked: [...], False at items without a goal; None if every item has one.
        temperature: softens both sides.
    """
    if asked is not None:
        logits, goal = logits[asked], goal[asked]
    scores = log_softmax(logits.float() / temperature, dim=-1)
    return -(softmax(goal / temperature, dim=-1) * scores).sum(-1).mean() * temperature**2
