"""Texts in files in, labelled texts and batches of token ids out."""

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Encoding, Tokenizer

from muxserve.extras import require

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the class id of each."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TaggedTexts:
    """Texts as words, with the class id of each word."""

    words: list[list[str]]
    tags: list[list[int]]

    def __len__(self) -> int:
        return len(self.words)

    @property
    def texts(self) -> list[str]:
        """The words of each text with spaces between."""
        return [" ".join(words) for words in self.words]


def read_labelled(
    path: Path, labels: Sequence[str], *, text_column: str = "text", label_column: str = "label"
) -> LabelledTexts:
    """Read a CSV (with a header), JSONL or Parquet file of texts and label names.

    Args:
        path: the file; its ending says which format.
        labels: the label names, in the order of their class ids.

    Raises:
        ValueError: naming the file and line, for a missing column, an unknown label, an empty text
            or bytes that are not UTF-8.
    """
    ids = {name: index for index, name in enumerate(labels)}
    texts: list[str] = []
    classes: list[int] = []
    for line, row in read_rows(path):
        text = _text(path, line, row, text_column)
        label = _label(path, line, row, label_column)
        if label not in ids:
            raise ValueError(
                f"{path}, line {line}: unknown label {label!r}; known: {', '.join(labels)}"
            )
        texts.append(text)
        classes.append(ids[label])
    if not texts:
        raise ValueError(f"{path}: no rows")
    return LabelledTexts(texts, classes)


def read_tagged(
    path: Path, labels: Sequence[str], *, words_column: str = "tokens", tags_column: str = "tags"
) -> TaggedTexts:
    """Read a JSONL or Parquet file of words and the tag of each.

    Args:
        path: the file.
        labels: the tag names, in the order of their class ids.

    Raises:
        ValueError: naming the file and line, for a missing column, an unknown tag, words and tags
            that do not match, a text without words, an empty word, or bytes that are not UTF-8.
    """
    ids = {name: index for index, name in enumerate(labels)}
    texts = TaggedTexts([], [])
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: expected a .jsonl or .parquet file of words and their tags")
    for line, row in read_rows(path):
        words = _list_column(path, line, row, words_column)
        tags = _list_column(path, line, row, tags_column)
        if len(words) != len(tags):
            raise ValueError(f"{path}, line {line}: {len(words)} words, but {len(tags)} tags")
        unknown = [tag for tag in tags if tag not in ids]
        if unknown:
            raise ValueError(
                f"{path}, line {line}: unknown tag {unknown[0]!r}; known: {', '.join(labels)}"
            )
        texts.words.append(words)
        texts.tags.append([ids[tag] for tag in tags])
    if not texts.words:
        raise ValueError(f"{path}: no rows")
    return texts


def read_texts(path: Path, *, text_column: str = "text") -> list[str]:
    """Read unlabelled texts: one per line of a .txt file, or a column of another file.

    Blank lines of a .txt file are passed over.

    Raises:
        ValueError: naming the file and line, for a missing column, an empty text or bytes that are
            not UTF-8.
    """
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 (byte {error.start}); convert it first") from None
        texts = [line for line in lines if line.strip()]
    else:
        texts = [
            _text(path, line, row, text_column)
            for line, row in read_rows(path, ".txt, .csv, .jsonl or .parquet")
        ]
    if not texts:
        raise ValueError(f"{path}: no texts")
    return texts


def _value(path: Path, line: int, row: dict[str, object], column: str) -> object:
    if column not in row:
        found = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{path}, line {line}: no column {column!r}; columns: {found}")
    if row[column] is None:
        raise ValueError(f"{path}, line {line}: column {column!r} has no value")
    return row[column]


def _text(path: Path, line: int, row: dict[str, object], column: str) -> str:
    value = _value(path, line, row, column)
    if not isinstance(value, str):
        raise ValueError(f"{path}, line {line}: column {column!r} is no text: {value!r}")
    if not value.strip():
        raise ValueError(f"{path}, line {line}: the text is empty")
    return value


def _label(path: Path, line: int, row: dict[str, object], column: str) -> str:
    """A label's name, which files of JSON and Parquet may also have as a number."""
    value = str(_value(path, line, row, column))
    if not value.strip():
        raise ValueError(f"{path}, line {line}: the label is empty")
    return value


def _list_column(path: Path, line: int, row: dict[str, object], column: str) -> list[str]:
    value = _value(path, line, row, column)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{path}, line {line}: {column} is not a list of strings")
    if not value or not all(one.strip() for one in value):
        raise ValueError(f"{path}, line {line}: {column} is empty, or has an empty entry")
    return value


def read_rows(
    path: Path, formats: str = ".csv, .jsonl or .parquet"
) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and columns of each row of a CSV (with a header), JSONL or Parquet file.

    A cell that a row of a CSV file lacks is None.

    Raises:
        ValueError: naming the file and line, for what is not of that format or not UTF-8.
    """
    try:
        # With a mark of the byte order, as spreadsheets write it, or without.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                yield from _json_lines(path, file)
            elif path.suffix == ".parquet":
                yield from enumerate(read_parquet(path))
            elif path.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    if None in row:
                        columns = len(reader.fieldnames or ())
                        raise ValueError(
                            f"{path}, line {reader.line_num}: more cells than the header's "
                            f"{columns}; a text with a comma needs quotes"
                        )
                    yield reader.line_num, dict(row)
            else:
                raise ValueError(f"{path}: expected a {formats} file")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: not CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start}); convert it first") from None


def _json_lines(path: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """Rows of a JSONL file, in which blank lines may stand only at the end."""
    blank: int | None = None
    for line, raw in enumerate(file, 1):
        if not raw.strip():
            blank = blank or line
            continue
        if blank is not None:
            raise ValueError(f"{path}, line {blank}: the line is blank")
        try:
            row = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: not a JSON object")
        yield line, row


def read_parquet(path: Path) -> "Dataset":
    """The rows of a Parquet file; ValueError for what is none."""
    require(f"{path}: Parquet", "training", "datasets")
    from datasets import Dataset

    try:
        return Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:  # pyarrow's and datasets' own kinds
        why = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a Parquet file: {why}") from None


def checksum(texts: Sequence[str]) -> str:
    """SHA-256 over texts in order, to say which data a figure was measured on."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def encoded(
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    max_length: int,
    side: str = "right",
) -> list[Encoding]:
    """Each text or pair encoded with special tokens, cut to ``max_length`` tokens at ``side``."""
    tokenizer.enable_truncation(max_length, direction=side)
    tokenizer.no_padding()
    return list(tokenizer.encode_batch(list(texts)))


def pad_batch(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    length: int | None = None,
    *,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as ids and mask, both [B, length] int64; length defaults to the longest."""
    longest = length or max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def near_length_batches(
    lengths: Sequence[int], size: int, rng: random.Random, *, pool: int = 50
) -> Iterator[list[int]]:
    """Endless batches of ``size`` indices of similar length, epoch after epoch."""
    while True:
        yield from near_length_epoch(lengths, size, rng, pool=pool)


def near_length_epoch(
    lengths: Sequence[int], size: int, rng: random.Random, *, pool: int = 50
) -> Iterator[list[int]]:
    """One epoch of batches of ``size`` indices of similar length, in random order.

    Each epoch is a new permutation, so a row's partners in a group change too. What does not fill
    a batch is left out.

    Raises:
        ValueError: where there is not one batch.
    """
    if size > len(lengths):
        raise ValueError(f"{len(lengths)} texts do not fill a batch of {size}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    for start in range(0, len(order), size * pool):
        chunk = sorted(order[start : start + size * pool], key=lambda i: lengths[i])
        batches = [chunk[i : i + size] for i in range(0, len(chunk) - size + 1, size)]
        rng.shuffle(batches)
        for batch in batches:
            rng.shuffle(batch)
            yield batch
