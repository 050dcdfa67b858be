"""Data sets of the hub or of local files in, checked splits out, through ``datasets``."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from muxserve.errors import first_line
from muxserve.training.data.labelled import read_texts
from muxserve.training.data.rows import read_parquet, read_rows
from muxserve.training.recipe import Corpus

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

log = logging.getLogger(__name__)

#: What the rows of a corpus are used for.
Use = Literal["sequence-classification", "token-classification", "plain"]
#: The split that is measured on by default.
USUAL_SPLIT = "validation"
_FORMATS = ".csv, .jsonl, .parquet or .txt"


def load_corpus(corpus: Corpus, use: Use, seed: int) -> "tuple[Dataset, Dataset]":
    """Load the rows to train on and the rows to measure on, and check the columns that are used.

    Rows of plain text without any text are left out; in labelled data they are errors.

    Args:
        corpus: where it is.
        use: what the rows are used for.
        seed: of the rows held out, if the data set has no split to measure on.

    Raises:
        ValueError: for missing data, a missing split or column, or a row that cannot be used,
            naming it.
    """
    trained = _load(corpus.data, corpus)
    train = _split(trained, corpus.train_split, corpus.data)
    if corpus.eval_data is not None:
        measured = _load(corpus.eval_data, corpus)
        usual = "train" if list(measured) == ["train"] else USUAL_SPLIT
        held = _split(measured, corpus.eval_split or usual, corpus.eval_data)
    elif corpus.eval_split is not None or USUAL_SPLIT in trained:
        held = _split(trained, corpus.eval_split or USUAL_SPLIT, corpus.data)
    else:
        if len(train) < 2:
            raise ValueError(f"{corpus.data}: {len(train)} rows are too few to hold some out")
        halves = train.train_test_split(test_size=corpus.held_out, seed=seed)
        train, held = halves["train"], halves["test"]
    return _checked(train, corpus.data, corpus, use), _checked(
        held, corpus.eval_data or corpus.data, corpus, use
    )


def used_columns(corpus: Corpus, use: Use) -> list[str]:
    """The columns of a corpus that a use reads, the labels' last."""
    if use == "plain":
        return [corpus.text_column]
    if use == "token-classification":
        return [corpus.words_column, corpus.tags_column]
    pair = [corpus.pair_column] if corpus.pair_column else []
    return [corpus.text_column, *pair, corpus.label_column]


def label_names(train: "Dataset", column: str) -> list[str] | None:
    """A column's label names: a ``ClassLabel``'s, or its values sorted; None for numbers."""
    feature = _inner(train, column)
    if hasattr(feature, "names"):
        return list(feature.names)
    found: set[str] = set()
    numbers = True
    for value in _values(train, column):
        for one in value if isinstance(value, list) else [value]:
            numbers = numbers and isinstance(one, float)
            if not _is_missing(one):
                found.add(str(one))
    return None if numbers else sorted(found)


def class_ids(part: "Dataset", column: str, names: Sequence[str]) -> list[Any]:
    """Class ids of a column: one for each row, or a list for each row.

    Raises:
        ValueError: naming the row, for a label that is missing (-1 in GLUE's test splits) or not
            among ``names``.
    """
    feature = _inner(part, column)
    own = list(feature.names) if hasattr(feature, "names") else None
    number = {name: index for index, name in enumerate(names)}

    def class_id(value: Any, row: int) -> int:
        if own is not None and isinstance(value, int):
            value = own[value] if 0 <= value < len(own) else None
        if _is_missing(value):
            raise ValueError(f"row {row}: column {column!r} has no label")
        if str(value) not in number:
            raise ValueError(
                f"row {row}: unknown label {str(value)!r} in column {column!r}; known: "
                f"{', '.join(names)}"
            )
        return number[str(value)]

    return [
        [class_id(one, row) for one in value] if isinstance(value, list) else class_id(value, row)
        for row, value in enumerate(_values(part, column))
    ]


def numbers(part: "Dataset", column: str) -> list[float]:
    """A column of real numbers; ValueError, naming the row, for anything else."""
    found = []
    for row, value in enumerate(_values(part, column)):
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            raise ValueError(f"row {row}: {value!r} in column {column!r} is no number") from None
    return found


def _values(part: "Dataset", column: str) -> Iterator[Any]:
    for batch in part.select_columns(column).iter(batch_size=1000):
        yield from batch[column]


def _is_missing(label: object) -> bool:
    return label is None or not str(label).strip()


def _inner(part: "Dataset", column: str) -> Any:
    feature: Any = part.features[column]
    return getattr(feature, "feature", feature)


def _load(source: str, corpus: Corpus) -> "DatasetDict":
    import datasets

    path = Path(source)
    if path.is_file():
        return datasets.DatasetDict({"train": _read_file(path, corpus)})
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            stored = datasets.load_from_disk(source)
        else:
            if not path.exists():
                log.info("looking for %s on the hub", source)
            stored = datasets.load_dataset(source, corpus.data_config)
    except Exception as error:  # readers and the hub's client raise many kinds
        why = first_line(error)
        kind = "cannot be read" if path.exists() else "no such file or folder, nor had by name"
        raise ValueError(f"{source}: {kind}: {why}") from None
    if isinstance(stored, datasets.Dataset):
        return datasets.DatasetDict({"train": stored})
    return stored


def _read_file(path: Path, corpus: Corpus) -> "Dataset":
    import datasets

    if path.suffix == ".txt":
        return datasets.Dataset.from_dict({corpus.text_column: read_texts(path)})
    if path.suffix == ".parquet":
        return read_parquet(path)
    try:
        rows = [row for _, row in read_rows(path, _FORMATS)]
        if not rows:
            raise ValueError(f"{path}: no rows")
        return datasets.Dataset.from_list(rows)
    except (ValueError, OSError):
        raise
    except Exception as error:  # pyarrow and datasets raise many kinds
        why = first_line(error.__cause__ or error)
        raise ValueError(f"{path}: cannot be read: {why}") from None


def _split(data: "DatasetDict", split: str, source: str) -> "Dataset":
    if split not in data:
        raise ValueError(f"{source}: no split {split!r}; splits: {', '.join(map(str, data))}")
    return data[split]


def _checked(part: "Dataset", source: str, corpus: Corpus, use: Use) -> "Dataset":
    for column in used_columns(corpus, use):
        if column not in part.column_names:
            raise ValueError(
                f"{source}: no column {column!r}; columns: {', '.join(part.column_names)}"
            )
    if len(part) == 0:
        raise ValueError(f"{source}: no rows")
    if use == "plain":
        return _with_text(part, source, corpus.text_column)
    if use == "token-classification":
        _check_words(part, source, corpus)
        return part
    for column in used_columns(corpus, use)[:-1]:
        for row, text in enumerate(_values(part, column)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{source}, row {row}: column {column!r} has no text")
    return part


def _with_text(part: "Dataset", source: str, column: str) -> "Dataset":
    filled = part.filter(
        lambda batch: [isinstance(text, str) and bool(text.strip()) for text in batch[column]],
        batched=True,
        desc="rows with text",
    )
    if len(filled) < len(part):
        log.info("%s: %d rows without text are left out", source, len(part) - len(filled))
    if len(filled) == 0:
        raise ValueError(f"{source}: column {column!r} has no text in any row")
    return filled


def _check_words(part: "Dataset", source: str, corpus: Corpus) -> None:
    for row, (words, tags) in enumerate(
        zip(_values(part, corpus.words_column), _values(part, corpus.tags_column), strict=True)
    ):
        if not isinstance(words, list) or not isinstance(tags, list) or not words:
            raise ValueError(f"{source}, row {row}: expected a list of words and one of tags")
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"{source}, row {row}: an empty word, or one that is no string")
        if len(words) != len(tags):
            raise ValueError(f"{source}, row {row}: {len(words)} words, but {len(tags)} tags")
