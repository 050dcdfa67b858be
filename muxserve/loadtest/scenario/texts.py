"""Texts and what is known of each: its label, and what N=1 answers."""

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muxserve.loadtest.scenario.generated_reviews import opinions
from muxserve.loadtest.scenario.scenario import ScenarioError, TextsSpec

#: One label, or one for each word.
Labels = str | list[str]


@dataclass
class Text:
    """One text.

    Attributes:
        text: itself.
        label: what is right, where it is known.
        alone: what N=1 answers, where it is known.
        body: what is sent instead of a body of ours; for peers.
    """

    text: str
    label: Labels | None = None
    alone: Labels | None = None
    body: str | None = None


def load_texts(
    spec: TextsSpec,
    seed: int,
    vocabulary: Callable[[], Any] | None = None,
    labels: Collection[str] | None = None,
) -> list[Text]:
    """The texts of a scenario.

    Args:
        spec: where from.
        seed: of generated ones.
        vocabulary: gives the family's tokenizer, for source 'generated'.
        labels: those that answers can have, where that is known. Opinions are given without
            labels to a family that has others.

    Raises:
        ScenarioError: the file cannot be read, or a row is wrong.
    """
    if spec.source == "opinions":
        made = opinions(spec.count, seed=seed, words=spec.words)
        fit = labels is None or {label for _, label in made} <= set(labels)
        return [Text(text, label if fit else None) for text, label in made]
    if spec.source == "generated":
        if vocabulary is None:
            raise ScenarioError("texts of source 'generated' need a family")
        from muxserve.measure.texts import generated_texts

        words = generated_texts(vocabulary(), spec.count, words=spec.words, seed=seed)
        return [Text(one) for one in words]
    assert spec.file is not None
    found = [text for text, _ in zip(_read(spec.file, spec), range(spec.count), strict=False)]
    if not found:
        raise ScenarioError(f"{spec.file}: no texts")
    unknown = labels_in(one.label for one in found) - set(labels) if labels is not None else ()
    if unknown:
        raise ScenarioError(
            f"{spec.file}: {spec.label_field!r} has {min(unknown)!r}, which is no label of the "
            f"family: {', '.join(labels or ())}"
        )
    return found


def labels_in(given: Iterable[Labels | None]) -> set[str]:
    """Every label that occurs."""
    found: set[str] = set()
    for one in given:
        found.update([one] if isinstance(one, str) else one or ())
    return found


def _read(file: Path, spec: TextsSpec) -> Iterator[Text]:
    try:
        for line, row in _rows(file, spec):
            text, label = row.get(spec.text_field), None
            if isinstance(text, list):
                text = " ".join(map(str, text))
            if not isinstance(text, str) or not text.strip():
                raise ScenarioError(
                    f"{file}, line {line}: expected a text in {spec.text_field!r}, got {text!r}"
                )
            if spec.label_field is not None:
                label = row.get(spec.label_field)
                if not label or not isinstance(label, str | list):
                    raise ScenarioError(
                        f"{file}, line {line}: expected a label's name in {spec.label_field!r}, "
                        f"got {label!r}"
                    )
            yield Text(text, label)
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{file}: not UTF-8") from None


def _rows(file: Path, spec: TextsSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix not in (".csv", ".jsonl", ".txt"):
        raise ScenarioError(f"{file}: expected a .csv, .jsonl or .txt file")
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".csv":
            reader = csv.DictReader(lines)
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if file.suffix == ".txt":
                yield number, {spec.text_field: line.strip()}
                continue
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            if not isinstance(content, dict):
                raise ScenarioError(f"{file}, line {number}: expected a JSON object")
            yield number, content


def write_texts(file: Path, texts: list[Text]) -> None:
    """As JSONL, for the load generator."""
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in texts), encoding="utf-8")


def read_texts(file: Path) -> list[Text]:
    """What ``write_texts`` wrote."""
    with file.open(encoding="utf-8") as lines:
        return [Text(**json.loads(line)) for line in lines]
