"""Texts with labels, tags or a teacher's answers in, encoded examples out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from muxserve.models.words import word_spans
from muxserve.training.data.batches import encoded, token_ids
from muxserve.training.data.labelled import LabelledTexts, TaggedTexts
from muxserve.training.data.tags import tagged_rows


@dataclass(frozen=True)
class Examples:
    """Encoded texts and the right class ids: one per text, or one per word.

    Attributes:
        ids: token ids of each text.
        labels: [items] class ids; -1 at a word that truncation cut off: no answer to it is right.
        firsts: where items are words, the token that each word of each text is read at.
    """

    ids: list[list[int]]
    labels: torch.Tensor
    firsts: list[list[int | None]] | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """[items] the token count of each item's text."""
        lengths = torch.tensor([len(row) for row in self.ids])
        if self.firsts is None:
            return lengths
        return lengths.repeat_interleave(torch.tensor([len(words) for words in self.firsts]))


def labelled_examples(
    tokenizer: Tokenizer, texts: LabelledTexts, max_length: int, side: str = "right"
) -> Examples:
    """Texts with a label each, cut to ``max_length`` tokens at ``side``."""
    return Examples(token_ids(tokenizer, texts.texts, max_length, side), torch.tensor(texts.labels))


def tagged_examples(
    tokenizer: Tokenizer, texts: TaggedTexts, max_length: int, side: str = "right"
) -> Examples:
    """Texts with a label for each word, cut to ``max_length`` tokens at ``side``."""
    rows = tagged_rows(tokenizer, texts, max_length, side)
    labels = [
        tag if first is not None else -1
        for firsts, tags in zip(rows.firsts, texts.tags, strict=True)
        for first, tag in zip(firsts, tags, strict=True)
    ]
    return Examples(rows.ids, torch.tensor(labels), rows.firsts)


def answered_examples(
    tokenizer: Tokenizer, texts: Sequence[str], logits: Sequence[torch.Tensor], max_length: int
) -> Examples:
    """Texts whose right answer is the teacher's.

    Args:
        tokenizer: the student's.
        texts: the texts.
        logits: the teacher's for each text, [labels], or for its words, [words, labels].
        max_length: most tokens of a text.
    """
    encodings = encoded(tokenizer, texts, max_length)
    ids = [encoding.ids for encoding in encodings]
    if logits[0].dim() == 1:
        return Examples(ids, torch.stack(list(logits)).argmax(dim=-1))
    firsts: list[list[int | None]] = []
    labels: list[int] = []
    for encoding, one in zip(encodings, logits, strict=True):
        places: list[int | None] = [span.first for span in word_spans(encoding)[: len(one)]]
        places += [None] * (len(one) - len(places))
        firsts.append(places)
        answers = one.argmax(dim=-1).tolist()
        labels += [
            -1 if place is None else answer for place, answer in zip(places, answers, strict=True)
        ]
    return Examples(ids, torch.tensor(labels), firsts)
