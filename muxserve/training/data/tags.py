"""Words with tags in, token ids with a class id for each token out.

A text is encoded as a user would send it, with spaces between its words: training and measuring see
the same texts as a server.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from muxserve.models.heads import IGNORED
from muxserve.models.words import word_spans
from muxserve.training.data.batches import encoded
from muxserve.training.data.labelled import TaggedTexts


@dataclass(frozen=True)
class TaggedRows:
    """Encoded texts.

    Attributes:
        ids: token ids of each text, special tokens included.
        labels: the class id of each token; ``IGNORED`` at special tokens and at the later pieces of
            what the tokenizer sees as one word.
        firsts: the first token of each word of each text; None if truncation cut the word off or
            the tokenizer skips all of it.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    firsts: list[list[int | None]]


def tagged_rows(
    tokenizer: Tokenizer, texts: TaggedTexts, max_length: int, side: str = "right"
) -> TaggedRows:
    """Encode tagged texts, cut to ``max_length`` tokens at ``side``.

    A word that the tokenizer sees as several (``Brown's``) gives each of them its tag.
    """
    rows = TaggedRows([], [], [])
    for encoding, words, tags in zip(
        encoded(tokenizer, texts.texts, max_length, side), texts.words, texts.tags, strict=True
    ):
        starts = _starts(words)
        labels = [IGNORED] * len(encoding.ids)
        firsts: list[int | None] = [None] * len(words)
        for span in word_spans(encoding):
            word = bisect_right(starts, span.start) - 1
            labels[span.first] = tags[word]
            if firsts[word] is None:
                firsts[word] = span.first
        rows.ids.append(encoding.ids)
        rows.labels.append(labels)
        rows.firsts.append(firsts)
    return rows


def _starts(words: Sequence[str]) -> list[int]:
    starts = [0]
    for word in words[:-1]:
        starts.append(starts[-1] + len(word) + 1)
    return starts
