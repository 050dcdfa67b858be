"""A folder or a name on the Hugging Face hub in; the tensors of its checkpoint out.

Weights are one file, or several with an index, in safetensors or pickled. Pickled ones are read as
tensors only, and an index may only name files beside it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from muxserve.errors import FamilyError, first_line
from muxserve.models.files import read_json_object
from muxserve.models.weights_file import SAFE

WEIGHTS = (SAFE, "pytorch_model.bin")
#: Files of a checkpoint that are fetched from the hub.
FILES = (*WEIGHTS, "model-*.safetensors", "pytorch_model-*.bin", "*.json", "*.txt", "*.model")

State = dict[str, torch.Tensor]


def fetch(source: str, patterns: Sequence[str] = FILES) -> Path:
    """``source`` as a folder: a local one, or one with the files of these patterns from the hub.

    Raises:
        FamilyError: if there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise FamilyError(f"{source}: expected a folder with config.json and weights, got a file")
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except HFValidationError:
        raise FamilyError(f"{source}: no such folder, and no name of a model either") from None
    except (HfHubHTTPError, OSError) as error:
        raise FamilyError(
            f"{source}: no such folder here, and the hub did not give it: {first_line(error)}"
        ) from None


def read_state(folder: Path) -> State:
    """The tensors of a checkpoint's folder.

    Safetensors are taken before pickled weights, and one file before several.

    Raises:
        FamilyError: for no weights, for more than tensors, and for an index that does not fit its
            files.
    """
    readers: tuple[tuple[str, Callable[[Path], State]], ...] = (
        (WEIGHTS[0], _read_safetensors),
        (WEIGHTS[1], _read_pickled),
    )
    for name, read in readers:
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_sharded(index, read)
    raise FamilyError(f"{folder}: no weights; expected {' or '.join(WEIGHTS)}, or an index of them")


def _read_sharded(index: Path, read: Callable[[Path], State]) -> State:
    shards = read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
        raise FamilyError(
            f"{index}: field weight_map: expected the file of each tensor", field="weight_map"
        )
    state: State = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise FamilyError(
                f"{index}: field weight_map: {name!r} is no file beside it", field="weight_map"
            )
        if not (index.parent / name).is_file():
            raise FamilyError(f"{index.parent / name}: missing; {index.name} names it")
        state |= read(index.parent / name)
    lacking = sorted(set(shards) - set(state))
    if lacking:
        file = index.parent / shards[lacking[0]]
        raise FamilyError(f"{file}: {lacking[0]} is not in it, though {index.name} says so")
    return state


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise FamilyError(f"{file}: not a safetensors file: {error}") from None


def _read_pickled(file: Path) -> State:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader may raise anything for a file that is no pickle
        raise FamilyError(
            f"{file}: refused, it is not tensors alone: {first_line(error)}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise FamilyError(f"{file}: expected a dictionary of tensors")
    return state
