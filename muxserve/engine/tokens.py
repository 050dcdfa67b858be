"""Texts in, token ids out; says which text is empty or too long, and never cuts one in silence."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from muxserve.engine.request import Tokens, Word
from muxserve.errors import InvalidInput, MuxserveError, TextTooLong
from muxserve.models.family import Family
from muxserve.models.words import word_spans


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
            InvalidInput: for a text without content.
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
        outcomes = [_empty_text(one) for one, _ in requests]
        texts = [
            text
            for (one, _), refused in zip(requests, outcomes, strict=True)
            if refused is None
            for text in one
        ]
        # One text is quicker without the batch call's thread pool.
        if len(texts) == 1:
            encodings = iter([self._whole.encode(texts[0])])
        elif self._words:
            encodings = iter(self._whole.encode_batch(texts))
        else:
            encodings = iter(self._whole.encode_batch_fast(texts))
        answers: list[list[Tokens] | MuxserveError] = []
        for (one, truncate), refused in zip(requests, outcomes, strict=True):
            if refused is not None:
                answers.append(refused)
                continue
            own = [next(encodings) for _ in one]
            try:
                answers.append([self._fit(own[i], one, i, truncate) for i in range(len(one))])
            except TextTooLong as error:
                answers.append(error)
        return answers

    def _fit(self, encoding: Encoding, texts: Sequence[str], index: int, truncate: bool) -> Tokens:
        cut = len(encoding.ids) > self.max_length
        if cut and not truncate:
            raise TextTooLong(
                f"the text has {len(encoding.ids)} tokens, the family takes {self.max_length}; "
                "shorten it or allow truncation",
                field=_field(index, texts),
            )
        if cut:
            encoding = self._cut.encode(texts[index])
        words = _words(encoding, texts[index]) if self._words else ()
        return Tokens(np.asarray(encoding.ids, dtype=np.int64), cut, words)


def _empty_text(texts: Sequence[str]) -> MuxserveError | None:
    for index, text in enumerate(texts):
        if not text or text.isspace():
            return InvalidInput("the text is empty", field=_field(index, texts))
    return None


def _words(encoding: Encoding, text: str) -> list[Word]:
    return [
        Word(text[span.start : span.end], span.start, span.end, span.first)
        for span in word_spans(encoding)
    ]


def _field(index: int, texts: Sequence[str]) -> str:
    return f"inputs[{index}]" if len(texts) > 1 else "inputs"
