"""Files in a folder that somebody else wrote: where they may be, and JSON within bounds.

A name in ``family.json`` leads to a file in its folder and nowhere else, a file is read only up to
a size, and JSON only up to a depth. Everything else is a ``FamilyError`` that names the file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

from muxserve.errors import FamilyError

#: ``config.json`` and ``family.json`` with a hundred thousand labels are smaller.
MOST_JSON_BYTES = 8 << 20
#: Lists and objects of one JSON file: each takes memory, however few characters it has.
MOST_CONTAINERS = 2_000_000
MOST_DEPTH = 32
_PACKAGE = Path(__file__).parents[1]
#: Characters of a value, or of another library's message, in an error.
_TOLD_CHARACTERS = 60
_TOLD_REASON = 240
#: Characters of a path: every system allows this many in a file name.
_MOST_PATH = 255


def shown(value: object) -> str:
    """A value as an error shows it: short, whatever it is."""
    if is_whole(value):
        return f"{value:,}" if abs(value) < 10**30 else "a number of over 30 digits"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    text = json.dumps(value, default=str)
    return text if len(text) <= _TOLD_CHARACTERS else f"{text[:_TOLD_CHARACTERS]}..."


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def short(text: str) -> str:
    """What another library says, in one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _TOLD_REASON else f"{line[:_TOLD_REASON]}..."


def reason(error: BaseException) -> str:
    """Why another library refused, in one line; with the error's class if that says more."""
    text = str(error)
    if not text or isinstance(error, KeyError | ZeroDivisionError | AttributeError | IndexError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return short(text)


def read_bounded(file: Path, most_bytes: int) -> bytes:
    """The content of a file of at most ``most_bytes``.

    Raises:
        FamilyError: for a larger file, or one that cannot be read.
    """
    try:
        if not file.is_file():
            raise FamilyError(f"{file}: missing, or not a file")
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise FamilyError(f"{file}: cannot be read: {error.strerror}") from None
    if len(content) > most_bytes:
        raise FamilyError(f"{file}: larger than the {most_bytes:,} bytes that are read of such one")
    return content


def read_json(file: Path, *, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The content of a JSON file, of bounded size and depth.

    Raises:
        FamilyError: naming the file and what is wrong in it.
    """
    content = read_bounded(file, most_bytes)
    return parse_json(content, file)


def parse_json(content: bytes, file: Path) -> Any:
    """Parse JSON as ``read_json`` does; ``file`` is where it was read, for the error."""
    if content.count(b"[") + content.count(b"{") > MOST_CONTAINERS:
        raise FamilyError(f"{file}: has more than {MOST_CONTAINERS:,} lists and objects")
    deep = f"{file}: nested more than {MOST_DEPTH} levels deep"
    try:
        parsed = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise FamilyError(deep) from None
    except UnicodeDecodeError as error:
        raise FamilyError(f"{file}: not JSON: not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # also for a number of thousands of digits
        raise FamilyError(f"{file}: not JSON: {reason(error)}") from None
    level = [parsed] if isinstance(parsed, dict | list) else []
    for _ in range(MOST_DEPTH + 1):
        if not level:
            return parsed
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
    raise FamilyError(deep)


def read_json_object(file: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """As ``read_json``, for a file with an object."""
    content = read_json(file, most_bytes=most_bytes)
    if not isinstance(content, dict):
        raise FamilyError(f"{file}: not a JSON object, but {shown(content)}")
    return content


def inside(folder: Path, name: str, *, file: Path, field: str) -> Path:
    """The path of ``name`` in ``folder``, checked to stay in that folder.

    Args:
        folder: what the name is relative to.
        name: as written in ``file``.
        file: where the name is written, for the error.
        field: of ``file``, for the error.

    Raises:
        FamilyError: for an absolute path, one with ``..``, and a link out of the folder.
    """
    told = f"{file}: field {field}: {shown(name)}"
    pure = PurePosixPath(name)
    absolute = pure.is_absolute() or PureWindowsPath(name).drive
    plain = name.isprintable() and "\\" not in name and 0 < len(name) <= _MOST_PATH
    if absolute or ".." in pure.parts or not plain:
        raise FamilyError(
            f"{told} is not a path within the folder: expected a relative one without '..'",
            field=field,
        )
    path = folder / name
    if not _leads_inside(path, folder):
        raise FamilyError(
            f"{told} is a link out of the folder: copy what it leads to into the folder",
            field=field,
        )
    return path


def check_links(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder in which one of these files is a link to somewhere else.

    Raises:
        FamilyError: naming the file.
    """
    for name in names:
        if not _leads_inside(folder / name, folder):
            raise FamilyError(
                f"{folder / name}: a link out of the folder: copy what it leads to into the folder"
            )


def _leads_inside(path: Path, folder: Path) -> bool:
    if folder.absolute().is_relative_to(_PACKAGE):
        return True  # installed: some installers link each file to their cache
    try:
        real = path.resolve()
        return any(real.is_relative_to(root) for root in (folder.resolve(), *_blobs(folder)))
    except (OSError, RuntimeError):  # links in a circle
        return False


def _blobs(folder: Path) -> Iterator[Path]:
    """Where the hub's cache has the content that links in ``snapshots/REVISION`` lead to."""
    for start in {folder.absolute(), folder.resolve()}:
        for above in (start, *start.parents):
            if above.name == "snapshots":
                yield (above.parent / "blobs").resolve()


def checksum(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; OSError if it cannot be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_checksums(folder: Path, names: set[str], sums: Mapping[str, str], *, file: Path) -> None:
    """Compare files with their checksums; files without one are not compared.

    Args:
        folder: what the names are relative to.
        names: the files to compare.
        sums: checksums by name.
        file: where the checksums are, for the error.

    Raises:
        FamilyError: naming the file that has changed.
    """
    for name in sorted(names & set(sums)):
        try:
            found = checksum(folder / name)
        except OSError as error:
            raise FamilyError(f"{folder / name}: cannot be read: {error.strerror}") from None
        if found != sums[name]:
            raise FamilyError(
                f"{folder / name}: its content is not what {file.name} has a checksum of: copy it "
                f"again; if you changed it yourself, remove its line from checksums in {file}",
                field="checksums",
            )
