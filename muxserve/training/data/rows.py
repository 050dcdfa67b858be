"""Files in, rows with their line numbers out: CSV, JSONL and Parquet."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from muxserve.errors import first_line
from muxserve.extras import require

if TYPE_CHECKING:
    from datasets import Dataset


def read_rows(
    path: Path, formats: str = ".csv, .jsonl or .parquet"
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the line number and the columns of each row of a CSV, JSONL or Parquet file.

    A CSV file has a header; a cell that a row of it lacks is None.

    Raises:
        ValueError: naming the file and line, if the content is not of that format or not UTF-8.
    """
    try:
        # utf-8-sig: spreadsheets write a byte order mark.
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
    """Yield the rows of a JSONL file; blank lines are allowed only at the end."""
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
    """Read a Parquet file; ValueError if it is not one."""
    require(f"{path}: Parquet", "training", "datasets")
    from datasets import Dataset

    try:
        return Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:  # pyarrow and datasets raise many kinds
        why = first_line(error.__cause__ or error)
        raise ValueError(f"{path}: not a Parquet file: {why}") from None
