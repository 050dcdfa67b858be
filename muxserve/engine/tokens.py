"""Texts in, token ids out; says which text is empty or too long, and never cuts one in silence."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from muxserve.engine.request import Tokens
from muxserve.errors import InvalidInput, TextTooLong


class TextEncoder:
    """Tokenizes for one family. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        """Args:
        tokenizer: the family's tokenizer; it is copied.
        max_length: most tokens of a text, special tokens included.
        """
        self.max_length = max_length
        self._whole = Tokenizer.from_str(tokenizer.to_str())
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = Tokenizer.from_str(self._whole.to_str())
        self._cut.enable_truncation(max_length)

    def encode(self, texts: Sequence[str], *, truncate: bool = True) -> list[Tokens]:
        """Token ids of each text.

        Raises:
            InvalidInput: for a text without content.
            TextTooLong: for a text over ``max_length`` tokens when ``truncate`` is false.
        """
        for index, text in enumerate(texts):
            if not text or text.isspace():
                raise InvalidInput("the text is empty", field=_field(index, texts))
        # One text is quicker without the batch call's thread pool.
        if len(texts) == 1:
            encodings = [self._whole.encode(texts[0])]
        else:
            encodings = self._whole.encode_batch_fast(list(texts))
        return [
            self._fit(encoding, texts, index, truncate) for index, encoding in enumerate(encodings)
        ]

    def _fit(self, encoding: Encoding, texts: Sequence[str], index: int, truncate: bool) -> Tokens:
        ids = encoding.ids
        if len(ids) <= self.max_length:
            return Tokens(np.asarray(ids, dtype=np.int64))
        if not truncate:
            raise TextTooLong(
                f"the text has {len(ids)} tokens, the family takes {self.max_length}; shorten it "
                "or allow truncation",
                field=_field(index, texts),
            )
        return Tokens(np.asarray(self._cut.encode(texts[index]).ids, dtype=np.int64), True)


def _field(index: int, texts: Sequence[str]) -> str:
    return f"inputs[{index}]" if len(texts) > 1 else "inputs"
