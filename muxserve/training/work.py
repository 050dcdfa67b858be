"""The work folder of a run: whose it is, and results that are whole or not there."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def claimed(work: Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Make a work folder a recipe's, or see that it is, and keep other processes out of it.

    Args:
        work: the folder; made where it is missing.
        recipe: every setting that changes what is computed, as JSON has it.

    Raises:
        ValueError: for a folder with a run of other settings, naming them, or one that another
            process is at work in.
    """
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            _claim(work, recipe)
            yield
    except Timeout:
        raise ValueError(f"{work}: another process is at work on this run") from None


def _claim(work: Path, recipe: Mapping[str, Any]) -> None:
    file = work / "recipe.json"
    if file.exists():
        theirs = json.loads(file.read_text())
        other = sorted(key for key in recipe if recipe[key] != theirs.get(key))
        if other:
            raise ValueError(
                f"{work}: holds a run with other settings ({', '.join(other)}); give another "
                "--work folder, or delete this one"
            )
        log.info("going on with the run in %s", work)
        return
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(recipe, indent=1))
    temporary.replace(file)


def check_empty(out: Path) -> None:
    """Raise ValueError where a result's folder has content."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; choose another folder")


@contextmanager
def built_whole(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to build a result in; it becomes ``out`` where nothing fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield building
        if out.exists():
            out.rmdir()
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
