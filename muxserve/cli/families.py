"""``muxserve families | evaluate | convert``: what families there are, measured and made."""

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muxserve.cli.app import JsonOption, app, table, told_in_one_line
from muxserve.errors import MuxserveError

if TYPE_CHECKING:
    from muxserve.models.family import Family
    from muxserve.training.evaluation.quality import Measured


class Precision(StrEnum):
    """The engine's ``dtype`` setting."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


@app.command()
@told_in_one_line()
def families(as_json: JsonOption = False) -> None:
    """List the families that the package ships, with their measured quality.

    \b
    Examples:
      muxserve families
      muxserve families --json
    """
    from muxserve.models.family import read_spec, resolve, shipped_families

    specs = [read_spec(resolve(name)) for name in shipped_families()]
    if as_json:
        typer.echo(json.dumps([spec.model_dump(mode="json") for spec in specs], indent=2))
        return
    for spec in specs:
        typer.echo(f"{spec.name}: {spec.task}, {' | '.join(spec.labels)}, {spec.max_length} tokens")
        rows = [("N", "quality", "flip rate", "measured on")]
        for member in spec.members:
            quality = member.quality
            rows.append(
                (
                    str(member.num_instances),
                    _quality(quality.metric, quality.value, quality.std) if quality else "-",
                    "-" if member.flip_rate is None else f"{member.flip_rate:.1%}",
                    f"{quality.dataset} ({quality.examples:,})" if quality else "-",
                )
            )
        typer.echo(table(rows))


@app.command()
@told_in_one_line()
def evaluate(
    family: Annotated[str, typer.Argument(help="A shipped family's name, or a folder.")],
    data: Annotated[
        Path,
        typer.Option(
            help="CSV (with a header), JSONL or Parquet of labelled texts; JSONL or Parquet where "
            "words are labelled."
        ),
    ],
    text_column: Annotated[
        str | None, typer.Option(help="Column of the texts, or of lists of words; text or tokens.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the label names, or of lists; label or tags.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set; by default the file's name.")
    ] = None,
    groupings: Annotated[
        int, typer.Option(min=2, help="Random groupings that each N is measured over.")
    ] = 5,
    dtype: Annotated[
        Precision, typer.Option(help="Of weights and forwards; auto is what an engine takes here.")
    ] = Precision.FLOAT32,
    write: Annotated[
        bool, typer.Option("--write", help="Store the figures in the family's family.json.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Fail where a figure is not what family.json states, within 0.2 points; with "
            "--write, before anything is written.",
        ),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw quality against offline throughput: .svg, .png or .pdf."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a family's quality and flip rate at each N on labelled texts or words.

    \b
    Examples:
      muxserve evaluate sentiment --data reviews.csv
      muxserve evaluate ./my-family --data test.jsonl --label-column stars --write
      muxserve evaluate part-of-speech --data tagged.jsonl --figure quality.svg
    """
    from muxserve.engine.forward import DTYPES, load_to_serve
    from muxserve.models.family import Family, read_spec, resolve
    from muxserve.training.data.labelled import (
        LabelledTexts,
        TaggedTexts,
        read_labelled,
        read_tagged,
    )
    from muxserve.training.evaluation.quality import evaluate_family
    from muxserve.training.evaluation.stated import deviations, store_measured

    folder = resolve(family)
    spec = read_spec(folder)
    texts: LabelledTexts | TaggedTexts
    if spec.of_tokens:
        texts = read_tagged(
            data,
            spec.labels,
            words_column=text_column or "tokens",
            tags_column=label_column or "tags",
        )
    else:
        texts = read_labelled(
            data,
            spec.labels,
            text_column=text_column or "text",
            label_column=label_column or "label",
        )
    if dtype is Precision.INT8:
        loaded = load_to_serve(folder, dtype)
    else:
        loaded = Family.load(folder, dtype=DTYPES[dtype])
    measured = evaluate_family(
        loaded, texts, dataset or data.name, groupings=groupings, progress=sys.stderr.isatty()
    )
    print_measured(measured, as_json=as_json)
    if check and (found := deviations(spec, measured)):
        raise MuxserveError(f"{folder / 'family.json'}: {'; '.join(found)}")
    if write:
        store_measured(loaded.spec, measured, folder)
        typer.echo(f"written to {folder / 'family.json'}", err=True)
    if figure is not None:
        _draw(loaded, measured, texts.texts, figure)
        typer.echo(f"drawn to {figure}", err=True)


def _draw(
    family: "Family", measured: "Sequence[Measured]", texts: "Sequence[str]", file: Path
) -> None:
    from muxserve.engine.config import available_cores
    from muxserve.engine.tokens import TextEncoder
    from muxserve.measure.figure import Point, draw
    from muxserve.measure.offline import offline_rate

    rows = [one.ids for one in TextEncoder.of_family(family).encode(texts)]
    points = [
        Point(
            one.num_instances,
            offline_rate(family, one.num_instances, rows, threads=available_cores()).texts_per_s,
            one.quality.value,
            one.quality.std,
            one.ensembled,
        )
        for one in measured
    ]
    quality = measured[0].quality
    draw(points, quality.metric, f"{family.spec.name}, {quality.dataset}", file)


def print_measured(measured: "Sequence[Measured]", *, as_json: bool) -> None:
    """Measured members as a table, or as JSON."""
    if as_json:
        fields = [
            {
                "num_instances": one.num_instances,
                "quality": one.quality.model_dump(mode="json"),
                "flip_rate": one.flip_rate,
                "ensembled": one.ensembled,
                "calibration_error": one.calibration_error,
                "by_length": [length.model_dump(mode="json") for length in one.by_length],
            }
            for one in measured
        ]
        typer.echo(json.dumps(fields, indent=2))
        return
    rows = [("N", "quality", "flip rate", "ensembled", "calibration error")]
    rows += [
        (
            str(one.num_instances),
            _quality(one.quality.metric, one.quality.value, one.quality.std),
            f"{one.flip_rate:.1%}",
            f"{one.ensembled:.4f}",
            f"{one.calibration_error:.4f}",
        )
        for one in measured
    ]
    typer.echo(table(rows))


def _quality(metric: str, value: float, std: float) -> str:
    return f"{metric} {value:.4f} ± {std:.4f}"


@app.command()
@told_in_one_line()
def convert(
    source: Annotated[
        str, typer.Argument(help="A folder with a checkpoint, or a model's name on the hub.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the family; a new one, or one to widen.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder, tokenizer.json or hub name; by default the checkpoint's own."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Label names in the order of the logits, with commas between."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Most tokens of a text of a new family; by default the tokenizer's "
            "model_max_length, or what the model takes.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint a member of a family that muxserve serves.

    Official MUX-PLM checkpoints (princeton-nlp/mux...) are converted; a plain classifier of texts
    or tokens of transformers becomes the N=1 member as it is, or is refused with a reason: it is
    run, to see which lengths it takes and that padding changes nothing. Pre-trained MUX-PLMs are
    converted too, for training; they are not served.

    \b
    Examples:
      muxserve convert princeton-nlp/muxbert_base_sst2_gaussian_hadamard_index_pos_5 sst2/ \\
        --tokenizer bert-base-uncased --labels negative,positive
      muxserve convert ./my-bert-classifier sst2/
      muxserve serve --family sst2/
    """
    from transformers.utils.logging import disable_progress_bar

    from muxserve.models.convert import convert as convert_checkpoint

    if not sys.stderr.isatty():
        disable_progress_bar()
    names = [name.strip() for name in labels.split(",")] if labels is not None else None
    made = convert_checkpoint(source, out, tokenizer=tokenizer, labels=names, max_length=max_length)
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=2))
        return
    typer.echo(f"{made.kind}, N={made.num_instances}, written to {made.folder}")
    if made.dropped:
        typer.echo(f"  dropped, as the model does not use them: {', '.join(made.dropped)}")
    if made.served:
        typer.echo(f"  texts of up to {made.max_length} tokens")
        typer.echo(f"  muxserve serve --family {out}")
        typer.echo(f"  muxserve evaluate {out} --data labelled.csv --write")
    else:
        typer.echo("  not a classifier, so it is not served: train it further first")
