"""``muxserve train``: a family from a classifier and texts, and the stages of the paper."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from muxserve.cli.app import JsonOption, app, table, told_in_one_line
from muxserve.cli.families import print_measured
from muxserve.cli.flags import flags_of
from muxserve.errors import InvalidInput
from muxserve.training.recipe import Stage, StageRecipe

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
        Path | None,
        typer.Option(help="Texts like those to be served: .txt, .csv, .jsonl or .parquet."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new family.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the stages; by default OUT.work.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the texts, where there are columns.")
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

    from muxserve.training.distillation import FamilyRecipe, distill_family

    recipe = FamilyRecipe.model_validate(settings)
    with _logged_plainly():
        measured = distill_family(recipe)
    print_measured(measured, as_json=as_json)
    typer.echo(f"written to {recipe.out}; next: muxserve serve --family {recipe.out}", err=True)


_STAGE_FLAGS = flags_of(StageRecipe, leave_out=frozenset({"stage"}))
ConfigOption = Annotated[
    Path | None, typer.Option(help="YAML file with any of the settings below; flags win.")
]


@train.command()
@told_in_one_line()
@_STAGE_FLAGS
def retrieval(config: ConfigOption = None, as_json: JsonOption = False, **flags: Any) -> None:
    """Warm a MUX-PLM up: name the token that each slot holds (stage 1 of the paper).

    A run that was stopped goes on with the same command; so do the two stages after it.

    \b
    Examples:
      muxserve train retrieval --start bert-base-uncased --data texts.txt --num-instances 5 \\
        --steps 20000 --out warm/
      muxserve train retrieval --start google/electra-base-discriminator --data wikitext \\
        --data-config wikitext-103-raw-v1 --out warm/
    """
    _run_stage("retrieval", config, as_json, flags)


@train.command()
@told_in_one_line()
@_STAGE_FLAGS
def pretrain(config: ConfigOption = None, as_json: JsonOption = False, **flags: Any) -> None:
    """Pre-train a MUX-PLM (stage 2): masked words for BERT, replaced words for ELECTRA.

    \b
    Examples:
      muxserve train pretrain --start warm/ --data texts.txt --steps 100000 --out pretrained/
      muxserve train pretrain --config pretrain.yaml
    """
    _run_stage("pretrain", config, as_json, flags)


@train.command()
@told_in_one_line()
@_STAGE_FLAGS
def finetune(config: ConfigOption = None, as_json: JsonOption = False, **flags: Any) -> None:
    """Fine-tune a MUX-PLM on labelled texts or words (stage 3); at N=1 a plain model.

    `muxserve convert OUT FAMILY` makes the checkpoint a member of a family.

    \b
    Examples:
      muxserve train finetune --start pretrained/ --data glue --data-config sst2 \\
        --text-column sentence --steps 20000 --out sst2-n5/
      muxserve train finetune --start pretrained/ --task token-classification \\
        --data train.jsonl --eval-data dev.jsonl --out tags-n5/
      muxserve train finetune --start bert-base-uncased --num-instances 1 --data labelled.csv \\
        --out n1/
    """
    _run_stage("finetune", config, as_json, flags)


def _run_stage(stage: Stage, config: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    settings = _read_settings(config) if config else {}
    settings |= {key: value for key, value in flags.items() if value is not None}
    if settings.setdefault("stage", stage) != stage:
        raise InvalidInput(
            f"{config}: stage: is {settings['stage']!r}, this command's is {stage!r}"
        )
    recipe = StageRecipe.model_validate(settings)
    try:
        from muxserve.training.stages import run_stage
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the stages need the package {error.name}: pip install 'muxserve[training]'"
        ) from None

    with _logged_plainly():
        measured = run_stage(recipe)
    if as_json:
        typer.echo(json.dumps(measured))
    else:
        typer.echo(table([(name, f"{value:.4f}") for name, value in measured.items()]))
    after = {
        "retrieval": f"muxserve train pretrain --start {recipe.out}",
        "pretrain": f"muxserve train finetune --start {recipe.out}",
        "finetune": f"muxserve convert {recipe.out} FAMILY",
    }
    typer.echo(f"written to {recipe.out}; next: {after[stage]}", err=True)


@contextmanager
def _logged_plainly() -> Iterator[None]:
    """Our lines with the time, above a bar; of the libraries, only what went wrong."""
    from tqdm.contrib.logging import logging_redirect_tqdm
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for library in ("httpx", "huggingface_hub", "accelerate", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with logging_redirect_tqdm():
        yield


def _read_settings(file: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidInput(f"{file}: not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file}: expected settings as `key: value` lines")
    return settings
