"""``muxserve train``: a family from a classifier and texts, and the stages of the paper."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from muxserve.cli.app import JsonOption, app, table, told_in_one_line
from muxserve.cli.families import print_measured
from muxserve.cli.flags import SeveralWidths, flags_of
from muxserve.errors import InvalidInput
from muxserve.extras import require
from muxserve.training.recipe import DistillSettings, FamilyRecipe, Stage, StageRecipe
from muxserve.training.run_log import logged_plainly

train = typer.Typer(
    help="Train a family.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
app.add_typer(train, name="train")


@train.callback()
def _root() -> None:
    pass


ConfigOption = Annotated[
    Path | None, typer.Option(help="YAML file with any of the settings below; flags win.")
]
#: Fields of a family's recipe whose flags are not made from them alone.
_BY_HAND = frozenset({"num_instances", "labels", "distill"})
_FOR_LABELS = frozenset(
    {"task", "label_column", "pair_column", "words_column", "tags_column", "stage"}
)
_FOR_MASKING = frozenset({"mask_share", "generator"})
_WEIGHTS_OF_LOSSES = frozenset({"retrieval_loss_coeff", "task_loss_coeff"})


@train.command(cls=SeveralWidths)
@told_in_one_line()
@flags_of(DistillSettings)
@flags_of(FamilyRecipe, leave_out=_BY_HAND)
def distill(
    more: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with any of the settings below; those from --steps on under `distill`."
        ),
    ] = None,
    num_instances: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", help="Every N to serve, 1 among them; default 1 2 5 10."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the teacher's labels, where it has none, in the order of its logits, "
            "with commas between."
        ),
    ] = None,
    as_json: JsonOption = False,
    **flags: Any,
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
    if more:
        raise InvalidInput(f"unexpected argument {more[0]}")
    settings = _read_settings(config) if config else {}
    nested = settings.get("distill", {})
    if not isinstance(nested, dict):
        raise InvalidInput(f"{config}: distill: expected settings as `key: value` lines")
    given = {**flags, "num_instances": num_instances or None, "labels": labels}
    given = {key: value for key, value in given.items() if value is not None}
    of_steps = {key: given.pop(key) for key in DistillSettings.model_fields if key in given}
    settings = {**settings, **given, "distill": {**nested, **of_steps}}
    recipe = FamilyRecipe.model_validate(settings)

    from muxserve.training.distil.distillation import distill_family

    with logged_plainly():
        measured = distill_family(recipe)
    print_measured(measured, as_json=as_json)
    typer.echo(f"written to {recipe.out}; next: muxserve serve --family {recipe.out}", err=True)


@train.command()
@told_in_one_line()
@flags_of(StageRecipe, leave_out=_FOR_LABELS | _FOR_MASKING | _WEIGHTS_OF_LOSSES)
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
@flags_of(StageRecipe, leave_out=_FOR_LABELS)
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
@flags_of(StageRecipe, leave_out=_FOR_MASKING | {"stage"})
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
    require(f"the stage {stage}", "training", "accelerate", "datasets")
    from muxserve.training.stages.run import run_stage

    with logged_plainly():
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


def _read_settings(file: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file}: not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{file}: not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file}: expected settings as `key: value` lines")
    return settings
