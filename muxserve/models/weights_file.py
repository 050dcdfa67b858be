"""How many tensors and bytes the weights of a checkpoint have, read from their first bytes.

No tensor is read. The claims of ``config.json`` are compared with it before a model is built.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from muxserve.errors import FamilyError
from muxserve.models.files import check_links, parse_json, reason

SAFE = "model.safetensors"
#: Names of weights; the first pattern that matches is read.
_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """What is known of weights without reading them.

    Attributes:
        tensors: their number.
        bytes: their size on disk; a value takes at least one byte.
        name: the file, for errors.
    """

    tensors: int
    bytes: int
    name: str


def weights_facts(folder: Path) -> WeightsFacts:
    """What the weights in a checkpoint's folder contain; no tensors if there are none.

    Raises:
        FamilyError: naming a file that has no weights, or is a link out of the folder.
    """
    for pattern in _PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            check_links(folder, [file.name for file in files])
            facts = [
                _of_safe(one) if one.suffix == ".safetensors" else _of_zip(one) for one in files
            ]
            return WeightsFacts(
                sum(one.tensors for one in facts), sum(one.bytes for one in facts), files[0].name
            )
    return WeightsFacts(0, 0, "no weights")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, whose header must fit its size.

    Raises:
        FamilyError: for another file.
    """
    _of_safe(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FamilyError(f"{file}: not a safetensors file: {reason(error)}") from None


def _of_safe(file: Path) -> WeightsFacts:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(_LENGTH.size)
            length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else size
            if length > min(size - _LENGTH.size, _MOST_HEADER_BYTES):
                raise FamilyError(
                    f"{file}: not a safetensors file: its header would have {length:,} bytes"
                )
            header = parse_json(stream.read(length), file)
    except OSError as error:
        raise FamilyError(f"{file}: cannot be read: {error.strerror}") from None
    if not isinstance(header, dict):
        raise FamilyError(f"{file}: not a safetensors file: its header is no object")
    return WeightsFacts(len(header), size, file.name)


def _of_zip(file: Path) -> WeightsFacts:
    """Facts of a file of ``torch.save``; another file is refused when it is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return WeightsFacts(0, 0, file.name)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise FamilyError(f"{file}: refused, it is packed, which torch.save never does")
    return WeightsFacts(len(parts), file.stat().st_size, file.name)
