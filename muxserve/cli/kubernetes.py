"""``muxserve kubernetes``: a settings file in, the patch of a RayService out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from muxserve.cli.app import app, told_in_one_line
from muxserve.errors import InvalidInput, MuxserveError

#: Exit code where a patch differs from its settings file.
EXIT_DIFFERS = 1


@app.command()
@told_in_one_line()
def kubernetes(
    files: Annotated[
        list[Path], typer.Argument(metavar="SETTINGS.yaml...", help="Settings files of overlays.")
    ],
    write: Annotated[
        bool, typer.Option("--write", help="Write serve-config.yaml beside each settings file.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit with 1 where serve-config.yaml differs."),
    ] = False,
) -> None:
    """Make a RayService's serveConfigV2 from checked settings: a patch for kustomize.

    A settings file has import_path, and may have application (its name), route_prefix, and
    settings: those of `serve run`, nested or dotted.

    \b
    Examples:
      muxserve kubernetes k8s/overlays/cpu/settings.yaml
      muxserve kubernetes k8s/overlays/*/settings.yaml --write
      muxserve kubernetes k8s/overlays/*/settings.yaml --check
    """
    try:
        from muxserve.serving.manifest import (
            PATCH_FILE,
            rayservice_patch,
            read_deployment,
            serve_config,
        )
    except ModuleNotFoundError as error:
        raise InvalidInput(f"this needs Ray ({error}): pip install 'ray[serve]'") from None

    if write and check:
        raise InvalidInput("--write and --check: give one of them")
    if len(files) > 1 and not (write or check):
        raise InvalidInput("several files: give --write, or --check")
    # As in `serve run`: applications are modules of the current folder.
    sys.path.insert(0, ".")
    differing = False
    for file in files:
        deployment = read_deployment(file)
        try:
            patch = rayservice_patch(serve_config(deployment), file.name)
        except MuxserveError as error:
            raise InvalidInput(f"{file}: {error.message}", field=error.field) from None
        target = file.with_name(PATCH_FILE)
        if check:
            if not target.is_file() or target.read_text(encoding="utf-8") != patch:
                typer.echo(f"{target}: not what {file} says; run again with --write", err=True)
                differing = True
        elif write:
            target.write_text(patch, encoding="utf-8")
            typer.echo(f"wrote {target}")
        else:
            typer.echo(patch, nl=False)
    if differing:
        raise typer.Exit(EXIT_DIFFERS)
