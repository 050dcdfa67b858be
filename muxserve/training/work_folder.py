"""The work folder of a run: which run it belongs to, and files that are whole or not there."""

import errno
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

log = logging.getLogger(__name__)

#: Prefix of the checksums in a recipe.
CONTENT = "content of "
#: Errors of a disk, a quota or a file that has no room left.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def claimed(work: Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Claim a work folder for a run, and keep other processes out of it.

    Args:
        work: the folder; made if it is missing.
        recipe: all that changes what is computed, as JSON values: every setting, and a checksum of
            everything that is read (see ``checksums``).

    Raises:
        ValueError: if the folder holds a run with other settings, naming them, or if another
            process is at work in it.
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
            # A setting may also change what is read; then only the setting is named.
            told = [key for key in other if not key.startswith(CONTENT)] or other
            raise ValueError(
                f"{work}: holds a run with other settings ({', '.join(told)}); give another "
                "--work folder, or delete this one"
            )
        log.info("going on with the run in %s", work)
        return
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(recipe, indent=1))


def check_empty(out: Path) -> None:
    """Raise ValueError if a result's folder has content."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; choose another folder")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Yield a temporary file to write; it becomes ``file`` if nothing fails.

    Raises:
        OSError: naming ``file`` and why it could not be written.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        yield temporary
        temporary.replace(file)
    except BaseException as error:
        # Where the disk was full, the temporary file may be missing.
        temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError, RuntimeError)):
            raise unwritten(file, error) from None
        raise


@contextmanager
def built_whole(out: Path) -> Iterator[Path]:
    """Yield a folder to build a result in; it becomes ``out`` if nothing fails.

    Raises:
        OSError: naming ``out`` and why, if the disk is full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield building
        if out.exists():
            out.rmdir()
        building.rename(out)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        full = isinstance(error, OSError) and error.errno in _FULL
        if isinstance(error, SafetensorError) or full:
            raise unwritten(out, error) from None
        raise


def unwritten(path: Path, error: BaseException) -> OSError:
    """The error for a ``path`` that could not be written."""
    if isinstance(error, OSError) and error.strerror:
        return OSError(f"{path}: could not be written: {error.strerror}")
    # What torch says of a full disk is about its internals only.
    told = "" if isinstance(error, RuntimeError) else f" ({error})"
    return OSError(f"{path}: could not be written, is the disk full?{told}")
