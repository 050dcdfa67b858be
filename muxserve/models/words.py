"""An encoded text in, its words as the tokenizer sees them out: a token classifier labels those."""

from dataclasses import dataclass

from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A word of an encoded text.

    Attributes:
        first: its first token, where it is read.
        start: its first character in the text.
        end: the character after its last.
    """

    first: int
    start: int
    end: int


def word_spans(encoding: Encoding) -> list[WordSpan]:
    """The words of a text, in order; special tokens belong to no word."""
    spans: list[WordSpan] = []
    before = None
    for place, (word, (start, end)) in enumerate(
        zip(encoding.word_ids, encoding.offsets, strict=True)
    ):
        if word is None:
            continue
        if word == before:
            first = spans.pop()
            start, place = first.start, first.first
        spans.append(WordSpan(place, start, end))
        before = word
    return spans
