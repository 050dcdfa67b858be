"""``muxserve classify``: texts in, one line per text out, in this process."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muxserve.cli.app import BAR_DELAY_S, FamilyOption, app, told_in_one_line
from muxserve.errors import InvalidInput

if TYPE_CHECKING:
    from muxserve.engine.scores import Classification, Tagging

#: Texts that are read, answered and printed at a time: they fill every slot of a few batches.
CHUNK_TEXTS = 1024
#: Forward times only size the batches here, so rough ones are enough.
WARM_UP_S = 0.5


@app.command()
@told_in_one_line()
def classify(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to classify.")
    ] = None,
    family: FamilyOption = "sentiment",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read texts from a file, one per line; - is stdin."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per text, with every label.")
    ] = False,
    raw_scores: Annotated[
        bool, typer.Option("--raw-scores", help="Print logits instead of probabilities.")
    ] = False,
    num_instances: Annotated[
        int | None,
        typer.Option(min=1, help="N texts share a forward; by default the family's narrowest."),
    ] = None,
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Refuse a text over the family's length limit.")
    ] = False,
) -> None:
    """Classify texts, or their words, in this process, without Ray.

    Texts come as arguments, from a file, or from stdin (one per line, UTF-8). Each output line has
    the best label, its score, the N that served it, and the text; or the N and each word with its
    label. Nobody waits here, so accuracy comes first: N is 1 unless a wider one is asked for.

    \b
    Examples:
      muxserve classify "A moving, beautifully shot film." "Two hours of my life, gone."
      muxserve classify --file reviews.txt --json > scored.jsonl
      cat reviews.txt | muxserve classify --num-instances 5
      muxserve classify --family part-of-speech "The jury further said."
    """
    if texts and file:
        raise InvalidInput("give texts as arguments or with --file, not both")
    if not texts and file is None and sys.stdin.isatty():
        raise InvalidInput("no text given: pass texts as arguments, with --file, or on stdin")
    if file is not None and str(file) != "-" and not file.is_file():
        raise InvalidInput(f"{file}: no such file")

    source = iter(texts) if texts else _lines(file)
    chunk = list(islice(source, CHUNK_TEXTS))
    if not chunk:
        raise InvalidInput("no text given: the input is empty")

    from tqdm import tqdm

    from muxserve.engine.config import EngineConfig
    from muxserve.engine.engine import Engine
    from muxserve.models.family import Family, read_spec, resolve

    folder = resolve(family)
    n = num_instances or read_spec(folder).members[0].num_instances
    config = EngineConfig(num_instances=n, warm_up_s=WARM_UP_S)
    show = sys.stderr.isatty()
    total = len(texts) if texts else _count_lines(file) if show else None
    with (
        Engine(Family.load(folder, [n], dtype=None), config) as engine,
        tqdm(total=total, unit="text", delay=BAR_DELAY_S, disable=not show, leave=False) as bar,
    ):
        render = _as_json if as_json else _as_line
        label: Callable[..., Sequence[Classification | Tagging]]
        label = engine.tag if engine.family.spec.of_tokens else engine.classify
        while chunk:
            answers: Sequence[Classification | Tagging] = label(
                chunk, truncate=not no_truncate, raw_scores=raw_scores
            )
            # The bar and the answers may share one terminal.
            with tqdm.external_write_mode() if show else nullcontext():
                for text, answer in zip(chunk, answers, strict=True):
                    typer.echo(render(text, answer))
            bar.update(len(chunk))
            chunk = list(islice(source, CHUNK_TEXTS))


def _lines(file: Path | None) -> Iterator[str]:
    """Texts of a file or stdin, one per line; blank lines may stand only at the end."""
    name = "stdin" if file is None or str(file) == "-" else str(file)
    blank: int | None = None
    with nullcontext(sys.stdin.buffer) if name == "stdin" else open(name, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise InvalidInput(f"{name}, line {number}: not UTF-8") from None
            if not line.strip():
                blank = blank or number
                continue
            if blank is not None:
                raise InvalidInput(f"{name}, line {blank}: the line is blank")
            yield line


def _count_lines(file: Path | None) -> int | None:
    """Lines of a regular file, for a bar that has an end; None for a stream."""
    if file is None or not file.is_file():
        return None
    with file.open("rb") as stream:
        return sum(1 for _ in stream)


def _as_json(text: str, answer: "Classification | Tagging") -> str:
    from muxserve.engine.scores import Tagging

    found: dict[str, object]
    if isinstance(answer, Tagging):
        found = {
            "words": [
                {
                    "word": one.word.text,
                    "start": one.word.start,
                    "end": one.word.end,
                    "label": one.label,
                    "score": one.score,
                }
                for one in answer.words
            ]
        }
    else:
        found = {"labels": [{"label": one.label, "score": one.score} for one in answer.labels]}
    return json.dumps(
        {
            "text": text,
            **found,
            "num_instances": answer.num_instances,
            "truncated": answer.truncated,
        },
        ensure_ascii=False,
    )


def _as_line(text: str, answer: "Classification | Tagging") -> str:
    from muxserve.engine.scores import Tagging

    cut = "  (truncated)" if answer.truncated else ""
    if isinstance(answer, Tagging):
        words = " ".join(f"{one.word.text}/{one.label}" for one in answer.words)
        return f"N={answer.num_instances:<2}  {words}{cut}"
    best = max(answer.labels, key=lambda one: one.score)
    shown = " ".join(text.split())
    return f"{best.label:<10}  {best.score:>7.4f}  N={answer.num_instances:<2}  {shown}{cut}"
