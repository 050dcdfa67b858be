"""Files in, texts with a label each or a label for each word out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from muxserve.training.data.rows import read_rows


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
        """The words of each text, joined with spaces."""
        return [" ".join(words) for words in self.words]


def read_labelled(
    path: Path, labels: Sequence[str], *, text_column: str = "text", label_column: str = "label"
) -> LabelledTexts:
    """Read a CSV (with a header), JSONL or Parquet file of texts and label names.

    Args:
        path: the file; its suffix tells the format.
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

    Blank lines of a .txt file are skipped.

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
    """A label's name; JSON and Parquet files may have a number instead."""
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
