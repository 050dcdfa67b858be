"""``muxserve export triton``: a family as a model repository for NVIDIA Triton."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from muxserve.cli.app import BAR_DELAY_S, JsonOption, app, table, told_in_one_line
from muxserve.cli.flags import flags_of
from muxserve.extras import require
from muxserve.triton.settings import ExportSettings

export_app = typer.Typer(
    help="Write a family in the form of another server.", no_args_is_help=True, add_completion=False
)
app.add_typer(export_app, name="export")


@export_app.callback()
def _root() -> None:
    pass


@export_app.command()
@told_in_one_line()
@flags_of(ExportSettings)
def triton(
    family: Annotated[str, typer.Argument(help="A shipped family's name, or a folder.")],
    repository: Annotated[Path, typer.Argument(help="Folder to make: a Triton model repository.")],
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Write a family as a model repository that a stock Triton server loads.

    \b
    Examples:
      muxserve export triton sentiment models/
      muxserve export triton sentiment models/ --text --num-instances 1 --num-instances 5
      muxserve export triton ./my-family models/ --backend onnxruntime --device gpu
    """
    require("an export to Triton", "triton", "onnx", "onnxscript", "tritonclient")
    from tqdm import tqdm

    from muxserve.triton.repository import export

    given = {name: value for name, value in settings.items() if value is not None}
    checked = ExportSettings.model_validate(given)
    with tqdm(
        total=100,
        unit="%",
        delay=BAR_DELAY_S,
        disable=not sys.stderr.isatty(),
        leave=False,
        bar_format="{desc}: {bar} {n:.0f}% {elapsed}",
    ) as bar:

        def show(what: str, share: float) -> None:
            bar.set_description(what, refresh=False)
            bar.update(100 * share - bar.n)

        exported = export(family, repository, checked, on_progress=show)
    if as_json:
        models = [
            {"name": one.name, "kind": one.kind, "num_instances": one.widths}
            for one in exported.models
        ]
        typer.echo(json.dumps({"repository": str(exported.folder), "models": models}, indent=2))
        return
    rows = [("model", "kind", "N")]
    rows += [
        (one.name, one.kind, ", ".join(map(str, one.widths)) or "-") for one in exported.models
    ]
    typer.echo(table(rows))
    typer.echo(f"written to {exported.folder}; its README.md says how to run it")
