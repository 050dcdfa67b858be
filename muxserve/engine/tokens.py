"""Texts in, token ids out; says which text is empty or too long, and never cuts one in silence."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from muxserve.engine.borders import has_word_borders, last_border, next_border
from muxserve.engine.request import Tokens, Word
from muxserve.errors import InvalidInput, MuxserveError, TextTooLong
from muxserve.models.family import Family
from muxserve.models.spec import Side
from muxserve.models.words import word_spans

#: A text of up to this many characters is quicker without the batch call's thread pool. A longer
#: one is not, and only the batch call lets other threads run meanwhile.
_SHORT_CHARACTERS = 2000
#: Characters of a long text that are tokenized first, for each token that is kept; if they are not
#: enough, this many times more.
_FIRST_CHARACTERS = 8
_MORE_TIMES = 8

#: What becomes of a text that is too long: it is cut at this side, at the family's own if True, or
#: refused if False.
Truncate = bool | Side


class _Encoded(NamedTuple):
    """A text's tokens, cut, and the first character of the part that was tokenized."""

    encoding: Encoding
    start: int


class TextEncoder:
    """Tokenizes for one family. Safe to share between threads."""

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, *, words: bool = False, side: Side = "right"
    ) -> None:
        """Copy the tokenizer, and set the copies up for this family.

        Args:
            tokenizer: the family's tokenizer.
            max_length: most tokens of a text, special tokens included.
            words: also find the words of each text.
            side: where a text that is too long is cut, unless a request says otherwise.
        """
        self.max_length = max_length
        self._side: Side = side
        self._words = words
        whole = Tokenizer.from_str(tokenizer.to_str())
        whole.no_padding()
        self._right, self._left = (Tokenizer.from_str(whole.to_str()) for _ in range(2))
        self._right.enable_truncation(max_length)
        self._left.enable_truncation(max_length, direction="left")
        self._in_parts = has_word_borders(whole)

    @classmethod
    def of_family(cls, family: Family) -> "TextEncoder":
        """The encoder that a family's task asks for."""
        spec = family.spec
        return cls(
            family.tokenizer, spec.max_length, words=spec.of_tokens, side=spec.truncation_side
        )

    def encode(self, texts: Sequence[str], *, truncate: Truncate = True) -> list[Tokens]:
        """Token ids of each text.

        Raises:
            InvalidInput: for a text without content, or one that UTF-8 cannot encode.
            TextTooLong: for a text over ``max_length`` tokens if ``truncate`` is false.
        """
        (encoded,) = self.encode_each([(texts, truncate)])
        if isinstance(encoded, MuxserveError):
            raise encoded
        return encoded

    def encode_each(
        self, requests: Sequence[tuple[Sequence[str], Truncate]]
    ) -> list[list[Tokens] | MuxserveError]:
        """Token ids of the texts of several requests, or the error of a request.

        Args:
            requests: the texts of each, and what becomes of those that are too long.
        """
        refused = [_refused(one) for one, _ in requests]
        encoded = {
            left: iter(
                self._encodings(
                    [
                        text
                        for (one, truncate), no in zip(requests, refused, strict=True)
                        if no is None and self._cuts_left(truncate) == left
                        for text in one
                    ],
                    left=left,
                )
            )
            for left in (True, False)
        }
        answers: list[list[Tokens] | MuxserveError] = []
        for (one, truncate), no in zip(requests, refused, strict=True):
            if no is not None:
                answers.append(no)
                continue
            own = [next(encoded[self._cuts_left(truncate)]) for _ in one]
            try:
                answers.append([self._tokens(own[i], one, i, truncate) for i in range(len(one))])
            except TextTooLong as error:
                answers.append(error)
        return answers

    def _cuts_left(self, truncate: Truncate) -> bool:
        return (self._side if isinstance(truncate, bool) else truncate) == "left"

    def _encodings(self, texts: list[str], *, left: bool) -> list[_Encoded]:
        """The tokens of each text.

        Of a long text only about as much is tokenized as is kept, if cutting it changes no tokens.
        """
        found: list[_Encoded | None] = [None] * len(texts)
        pending = list(range(len(texts)))
        size = _FIRST_CHARACTERS * self.max_length
        while pending:
            spans = [self._span(texts[i], size, left=left) for i in pending]
            parts = [texts[i][start:end] for i, (start, end) in zip(pending, spans, strict=True)]
            encodings = self._encode_parts(self._left if left else self._right, parts)
            more = []
            for i, (start, end), encoding in zip(pending, spans, encodings, strict=True):
                if end - start == len(texts[i]) or self._is_cut(encoding):
                    found[i] = _Encoded(encoding, start)
                else:
                    more.append(i)
            pending, size = more, size * _MORE_TIMES
        return [one for one in found if one is not None]

    def _span(self, text: str, size: int, *, left: bool) -> tuple[int, int]:
        """The part of about ``size`` characters that is tokenized first, or the whole text."""
        if self._in_parts and len(text) > 2 * size:
            border = next_border(text, len(text) - size) if left else last_border(text, size)
            if border is not None:
                return (border, len(text)) if left else (0, border)
        return 0, len(text)

    def _encode_parts(self, tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
        if len(texts) == 1 and len(texts[0]) <= _SHORT_CHARACTERS:
            return [tokenizer.encode(texts[0])]
        if self._words:
            return tokenizer.encode_batch(texts)
        return tokenizer.encode_batch_fast(texts)

    def _is_cut(self, encoding: Encoding) -> bool:
        # Looking at what was cut off copies it, so do that only if there may be something.
        return len(encoding) == self.max_length and bool(encoding.overflowing)

    def _tokens(
        self, encoded: _Encoded, texts: Sequence[str], index: int, truncate: Truncate
    ) -> Tokens:
        encoding, start = encoded
        truncated = self._is_cut(encoding)
        if truncated and truncate is False:
            raise TextTooLong(
                f"the text has more than {self.max_length} tokens, the family takes "
                f"{self.max_length}; shorten it or allow truncation",
                field=_field(index, texts),
            )
        words = _words(encoding, texts[index], start) if self._words else ()
        return Tokens(np.asarray(encoding.ids, dtype=np.int64), truncated, words)


def _refused(texts: Sequence[str]) -> MuxserveError | None:
    for index, text in enumerate(texts):
        if not text or text.isspace():
            return InvalidInput("the text is empty", field=_field(index, texts))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return InvalidInput(
                    f"the text cannot be UTF-8: half a character at {error.start}; "
                    "it was cut or decoded in a wrong way",
                    field=_field(index, texts),
                )
    return None


def _words(encoding: Encoding, text: str, at: int) -> list[Word]:
    """The words of a text whose part from ``at`` on was encoded."""
    return [
        Word(text[at + one.start : at + one.end], at + one.start, at + one.end, one.first)
        for one in word_spans(encoding)
    ]


def _field(index: int, texts: Sequence[str]) -> str:
    return f"inputs[{index}]" if len(texts) > 1 else "inputs"
