"""``muxserve train distill``: a family from a classifier and texts."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from muxserve.cli.app import JsonOption, app, told_in_one_line
from muxserve.cli.families import print_measured
from muxserve.errors import InvalidInput

train = typer.Typer(
    help="Train a family.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
app.add_typer(train, name="train")


@train.callback()
def _root() -> None:
    pass


@train.command()
@told_in_one_line()
def distill(
    more: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of the settings below, and `distill` for the rest."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The classifier: a folder, or a model's name on the hub.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts like those to be served: .txt, .csv or .jsonl.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new family.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the stages; by default OUT.work.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the texts in a CSV or JSONL file.")
    ] = None,
    num_instances: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", help="Every N to serve, 1 among them; default 1 2 5 10."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Layers of the student; by default the teacher's.")
    ] = None,
    word_pieces: Annotated[
        int | None, typer.Option(help="Keep only the most frequent word pieces; by default all.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text; 128.")] = None,
    held_out: Annotated[
        int | None, typer.Option(help="Texts measured on, not trained on; 1000.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the distillation; 3000.")] = None,
    groups: Annotated[int | None, typer.Option(help="Groups in a step; 32.")] = None,
    bf16: Annotated[
        bool | None, typer.Option(help="Matrix products in bfloat16, where the machine is fast.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn; 0.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a family from a Hugging Face classifier and texts without labels.

    The student starts from the teacher's encoder and serves every N with one set of weights. What
    it reaches is how often each N agrees with the teacher on texts held out; `muxserve evaluate`
    measures it on labelled texts. A run that was stopped goes on with the same command.

    \b
    Examples:
      muxserve train distill --teacher ./my-classifier --texts texts.txt --out family/
      muxserve train distill --teacher org/model --texts logs.csv --text-column body \\
        --num-instances 1 2 5 --layers 4 --steps 5000 --out family/
      muxserve train distill --config recipe.yaml
    """
    if more and not num_instances:
        raise InvalidInput(f"unexpected argument {more[0]}")
    given = {
        "teacher": teacher,
        "texts": texts,
        "out": out,
        "work": work,
        "text_column": text_column,
        # `--num-instances 1 2 5`: the first belongs to the option, the others follow it.
        "num_instances": [*num_instances, *(more or [])] if num_instances else None,
        "layers": layers,
        "word_pieces": word_pieces,
        "max_length": max_length,
        "held_out": held_out,
    }
    settings = _read_settings(config) if config else {}
    settings |= {key: value for key, value in given.items() if value is not None}
    nested = {"steps": steps, "groups": groups, "bf16": bf16, "seed": seed}
    changed = {key: value for key, value in nested.items() if value is not None}
    settings["distill"] = {**settings.get("distill", {}), **changed}

    from transformers.utils.logging import disable_progress_bar

    from muxserve.training.distillation import FamilyRecipe, distill_family

    disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    recipe = FamilyRecipe.model_validate(settings)
    measured = distill_family(recipe)
    print_measured(measured, as_json=as_json)
    typer.echo(f"written to {recipe.out}; next: muxserve serve --family {recipe.out}", err=True)


def _read_settings(file: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidInput(f"{file}: not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file}: expected settings as `key: value` lines")
    return settings
