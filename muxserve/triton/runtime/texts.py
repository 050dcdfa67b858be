"""Texts in, arrays of token ids out; for families that label words also the words' positions."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from muxserve.models.words import word_spans
from muxserve.triton.runtime.facts import Facts
from muxserve.triton.runtime.rows import Refused


@dataclass(frozen=True)
class TextRow:
    """One text with its encoding, cut if it is too long.

    Attributes:
        text: the original text.
        encoding: at most as many tokens as the model takes.
        tokens: number of tokens before cutting.
    """

    text: str
    encoding: Encoding
    tokens: int


def read_texts(name: str, raw: np.ndarray) -> list[str]:
    """The texts of a request, [texts, 1] of bytes.

    Raises:
        Refused: a text is empty or not UTF-8.
    """
    texts = []
    for row, value in enumerate(raw.reshape(-1)):
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise Refused(f"{name}[{row}] is not UTF-8") from None
        if not text or text.isspace():
            raise Refused(f"{name}[{row}]: the text is empty")
        texts.append(text)
    return texts


class TextRows:
    """Tokenizes for one family, as the engine does."""

    def __init__(self, tokenizer: Tokenizer, facts: Facts) -> None:
        self._facts = facts
        self._whole = tokenizer
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = Tokenizer.from_str(tokenizer.to_str())
        self._cut.enable_truncation(facts.max_length, direction=facts.truncation_side)

    def encode(self, texts: list[str]) -> list[TextRow]:
        """Encode every text, cut if it is too long."""
        rows = []
        for text, encoding in zip(texts, self._whole.encode_batch(texts), strict=True):
            tokens = len(encoding.ids)
            if tokens > self._facts.max_length:
                encoding = self._cut.encode(text)
            rows.append(TextRow(text, encoding, tokens))
        return rows

    def arrays(self, name: str, rows: list[TextRow], *, truncate: bool) -> dict[str, np.ndarray]:
        """The outputs of one request.

        Returns:
            ``input_ids`` [texts, tokens of the longest] int64 and ``truncated`` [texts, 1] bool.
            If words are labelled, also ``words`` [texts, most words] and ``word_tokens``, the
            token at which each word is read, -1 past a text's last word.

        Raises:
            Refused: a text is too long and ``truncate`` is false.
        """
        most = self._facts.max_length
        for index, row in enumerate(rows):
            if row.tokens > most and not truncate:
                raise Refused(
                    f"{name}[{index}] has {row.tokens} tokens, the model takes {most}; "
                    "shorten it or allow truncation"
                )
        longest = max(len(row.encoding.ids) for row in rows)
        ids = np.full((len(rows), longest), self._facts.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row.encoding.ids)] = row.encoding.ids
        truncated = np.array([[row.tokens > most] for row in rows], dtype=bool)
        outputs = {"input_ids": ids, "truncated": truncated}
        return {**outputs, **_words(rows)} if self._facts.of_tokens else outputs


def _words(rows: list[TextRow]) -> dict[str, np.ndarray]:
    spans = [word_spans(row.encoding) for row in rows]
    # Triton allows no empty dimension in a batch, so a text without words gets one empty word.
    most = max(1, *(len(one) for one in spans))
    words = np.full((len(rows), most), b"", dtype=object)
    places = np.full((len(rows), most), -1, dtype=np.int64)
    for index, (row, own) in enumerate(zip(rows, spans, strict=True)):
        for place, span in enumerate(own):
            words[index, place] = row.text[span.start : span.end].encode()
            places[index, place] = span.first
    return {"words": words, "word_tokens": places}
