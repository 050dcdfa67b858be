"""Texts in, token ids out; says which text is empty or too long, and never cuts one in silence."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from muxserve.engine.request import Tokens, Word
from muxserve.errors import InvalidInput, MuxserveError, TextTooLong
from muxserve.models.family import Family
from muxserve.models.words import word_spans

#: One text of up to so many characters is quicker without the batch call's thread pool; a longer
#: one is not, and the batch call lets other threads run meanwhile, which the other does not.
_SHORT_CHARACTERS = 2000


class TextEncoder:
    """Tokenizes for one family. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, *, words: bool = False) -> None:
        """Args:
        tokenizer: the family's tokenizer; it is copied.
        max_length: most tokens of a text, special tokens included.
        words: say where the words of each text are.
        """
        self.max_length = max_length
        self._words = words
        self._whole = Tokenizer.from_str(tokenizer.to_str())
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = Tokenizer.from_str(self._whole.to_str())
        self._cut.enable_truncation(max_length)

    @classmethod
    def of_family(cls, family: Family) -> "TextEncoder":
        """The encoder that a family's task asks for."""
        return cls(family.tokenizer, family.spec.max_length, words=family.spec.of_tokens)

    def encode(self, texts: Sequence[str], *, truncate: bool = True) -> list[Tokens]:
        """Token ids of each text.

        Raises:
            InvalidInput: for a text without content, or one that has no UTF-8.
            TextTooLong: for a text over ``max_length`` tokens when ``truncate`` is false.
        """
        (encoded,) = self.encode_each([(texts, truncate)])
        if isinstance(encoded, MuxserveError):
            raise encoded
        return encoded

    def encode_each(
        self, requests: Sequence[tuple[Sequence[str], bool]]
    ) -> list[list[Tokens] | MuxserveError]:
        """Token ids of the texts of several requests, or the error of a request.

        Args:
            requests: texts, and whether those that are too long are cut.
        """
        refused = [_refused(one) for one, _ in requests]
        encodings = {
            truncate: iter(
                self._encodings(
                    self._cut if truncate else self._whole,
                    [
                        text
                        for (one, cut), no in zip(requests, refused, strict=True)
                        if no is None and cut == truncate
                        for text in one
                    ],
                )
            )
            for truncate in (True, False)
        }
        answers: list[list[Tokens] | MuxserveError] = []
        for (one, truncate), no in zip(requests, refused, strict=True):
            if no is not None:
                answers.append(no)
                continue
            own = [next(encodings[truncate]) for _ in one]
            try:
                answers.append([self._tokens(own[i], one, i) for i in range(len(one))])
            except TextTooLong as error:
                answers.append(error)
        return answers

    def _encodings(self, tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
        if not texts:
            return []
        if len(texts) == 1 and len(texts[0]) <= _SHORT_CHARACTERS:
            return [tokenizer.encode(texts[0])]
        if self._words:
            return tokenizer.encode_batch(texts)
        return tokenizer.encode_batch_fast(texts)

    def _tokens(self, encoding: Encoding, texts: Sequence[str], index: int) -> Tokens:
        ids = encoding.ids
        if len(ids) > self.max_length:
            raise TextTooLong(
                f"the text has {len(ids)} tokens, the family takes {self.max_length}; "
                "shorten it or allow truncation",
                field=_field(index, texts),
            )
        # What was cut off is looked at only where it may be there: it is copied on the way here.
        truncated = len(ids) == self.max_length and bool(encoding.overflowing)
        words = _words(encoding, texts[index]) if self._words else ()
        return Tokens(np.asarray(ids, dtype=np.int64), truncated, words)


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


def _words(encoding: Encoding, text: str) -> list[Word]:
    return [
        Word(text[span.start : span.end], span.start, span.end, span.first)
        for span in word_spans(encoding)
    ]


def _field(index: int, texts: Sequence[str]) -> str:
    return f"inputs[{index}]" if len(texts) > 1 else "inputs"
