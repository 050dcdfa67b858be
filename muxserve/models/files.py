"""Files of a folder that somebody else wrote: where they may lie, and JSON that cannot hurt.

A name in ``family.json`` leads to a file of its folder and nowhere else, a file is read only up to
a size, and JSON only up to a depth. Everything else is a ``FamilyError`` that names the file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

from muxserve.errors import FamilyError

#: ``config.json`` and ``family.json`` of a hundred thousand labels take less.
MOST_JSON_BYTES = 8 << 20
#: Lists and objects of one JSON file: each costs memory, however few characters it has.
MOST_CONTAINERS = 2_000_000
MOST_DEPTH = 32
_PACKAGE = Path(__file__).parents[1]
#: What is told of a value, or of another library's reason.
_TOLD_CHARACTERS = 60
_TOLD_REASON = 240
#: Characters of a path: the name of one file may have so many on every system.
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
    """Whether a value of JSON is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def short(text: str) -> str:
    """What another library says, in one line of some length."""
    line = " ".join(text.split())
    return line if len(line) <= _TOLD_REASON else f"{line[:_TOLD_REASON]}..."


def reason(error: BaseException) -> str:
    """Why another library refused, in one line; with the error's kind where that says more."""
    text = str(error)
    if not text or isinstance(error, KeyError | ZeroDivisionError | AttributeError | IndexError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return short(text)


def read_bounded(file: Path, most_bytes: int) -> bytes:
    """The content of a file of up to so many bytes.

    Raises:
        FamilyError: for one that is larger, or is no file that can be read.
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
        FamilyError: naming the file and what is wrong with it.
    """
    content = read_bounded(file, most_bytes)
    return parse_json(content, file)


def parse_json(content: bytes, file: Path) -> Any:
    """As ``read_json``, of what was read from ``file``."""
    if content.count(b"[") + content.count(b"{") > MOST_CONTAINERS:
        raise FamilyError(f"{file}: has more than {MOST_CONTAINERS:,} lists and objects")
    deep = f"{file}: nested more than {MOST_DEPTH} levels deep"
    try:
        parsed = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise FamilyError(deep) from None
    except UnicodeDecodeError as error:
        raise FamilyError(f"{file}: not JSON: not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # also a number of thousands of digits
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
    """As ``read_json``, of a file that holds an object."""
    content = read_json(file, most_bytes=most_bytes)
    if not isinstance(content, dict):
        raise FamilyError(f"{file}: not a JSON object, but {shown(content)}")
    return content


def inside(folder: Path, name: str, *, file: Path, field: str) -> Path:
    """The path in ``folder`` that ``name`` says, where it leads to a place in that folder.

    Args:
        folder: what the name is relative to.
        name: as it stands in ``file``.
        file, field: where the name stands, for the error.

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
    """Refuse a folder that has one of these files as a link to somewhere else.

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
        return True  # installed: some installers link each file to a cache of theirs
    try:
        real = path.resolve()
        return any(real.is_relative_to(root) for root in (folder.resolve(), *_blobs(folder)))
    except (OSError, RuntimeError):  # links in a circle
        return False


def _blobs(folder: Path) -> Iterator[Path]:
    """Where the hub's cache has the content that the links in ``snapshots/REVISION`` lead to."""
    for start in {folder.absolute(), folder.resolve()}:
        for above in (start, *start.parents):
            if above.name == "snapshots":
                yield (above.parent / "blobs").resolve()


def checksum(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; OSError where it cannot be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_checksums(folder: Path, names: set[str], sums: Mapping[str, str], *, file: Path) -> None:
    """Compare files with their checksums, those that have one.

    Args:
        folder: what the names are relative to.
        names: the files to compare.
        sums: checksums by name.
        file: where they stand, for the error.

    Raises:
        FamilyError: naming the file that is not what it was.
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
