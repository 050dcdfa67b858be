"""A family on disk: ``family.json`` and the checkpoints it names, checked before it serves.

In: a folder. Out: a ``Family`` with one loaded model for each member N (members that name the same
folder share it). Every mistake is a ``FamilyError`` that names the file and the field.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from muxserve.errors import FamilyError
from muxserve.models.asking import usable_positions
from muxserve.models.checkpoint import (
    CONFIG_FILE,
    check_shapes,
    check_values,
    empty_model,
    model_config,
    read_claims,
)
from muxserve.models.config import MuxConfig
from muxserve.models.files import check_checksums, read_json, short
from muxserve.models.official import is_official
from muxserve.models.precision import fastest_dtype
from muxserve.models.spec import FAMILY_FILE, FamilySpec, Member, Task, read_spec, write_spec
from muxserve.models.tokenizer_file import MOST_ROWS, read_tokenizer_file
from muxserve.models.weights_file import SAFE, tensor_shapes

__all__ = [
    "AUTO_MODELS",
    "FAMILY_FILE",
    "Family",
    "FamilySpec",
    "Member",
    "Task",
    "check_family",
    "member_logits",
    "read_spec",
    "resolve",
    "shipped_families",
    "write_spec",
]

#: The class that loads the checkpoints of each task.
AUTO_MODELS: dict[Task, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


class Family:
    """A family's checked description, its tokenizer and one model per N."""

    def __init__(
        self, spec: FamilySpec, tokenizer: Tokenizer, models: dict[int, PreTrainedModel]
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.models = models

    @property
    def widths(self) -> list[int]:
        """Every N of the family, ascending."""
        return list(self.models)

    @property
    def padded_length(self) -> int | None:
        """The length that every text is padded to, or None if the longest text decides."""
        for model in self.models.values():
            if getattr(model.config, "padding", "longest") == "max_length":
                return self.spec.max_length
        return None

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return int(next(iter(self.models.values())).config.pad_token_id or 0)

    @classmethod
    def load(
        cls,
        family: str | Path,
        widths: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str = "cpu",
        verify_checksums: bool = True,
    ) -> "Family":
        """Load a family by shipped name ("sentiment") or folder.

        Args:
            family: name or folder.
            widths: load only these N.
            dtype: of the weights; None takes what is fastest there, see ``fastest_dtype``.
            device: where the weights go, "cpu" or "cuda".
            verify_checksums: compare every loaded file with its checksum in ``family.json``, if it
                has one.

        Raises:
            FamilyError: naming the file and the field.
        """
        folder = resolve(family)
        spec = read_spec(folder)
        wanted = _wanted_members(spec, widths, folder)
        tokenizer, configs = _checked(spec, wanted, folder, verify_checksums=verify_checksums)
        dtype = dtype or fastest_dtype(configs.values(), device)
        loaded = {
            path: _load_member(folder / path, config, spec.task, dtype, device)
            for path, config in configs.items()
        }
        models = {member.num_instances: loaded[member.path] for member in wanted}
        return cls(spec, tokenizer, models)


def check_family(family: str | Path, *, verify_checksums: bool = True) -> FamilySpec:
    """Check a family as ``Family.load`` does, without loading weights.

    Raises:
        FamilyError: naming the file and the field.
    """
    folder = resolve(family)
    spec = read_spec(folder)
    _checked(spec, spec.members, folder, verify_checksums=verify_checksums)
    return spec


def member_logits(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, n: int
) -> torch.Tensor:
    """Logits of one member for [B, L] ids; a plain classifier is the N=1 member.

    Returns:
        [B, labels] for texts, [B, L, labels] for tokens.
    """
    if isinstance(model.config, MuxConfig):
        output = model(input_ids, attention_mask, num_instances=n)
    else:
        output = model(input_ids=input_ids, attention_mask=attention_mask)
    return output.logits.float()


def shipped_families() -> list[str]:
    """Names of the families that the package ships."""
    root = Path(str(files("muxserve") / "families"))
    return sorted(path.parent.name for path in root.glob(f"*/{FAMILY_FILE}"))


def resolve(family: str | Path) -> Path:
    """The folder of a shipped family, by name, or of a path.

    Raises:
        FamilyError: if there is no such folder.
    """
    shipped = Path(str(files("muxserve") / "families" / str(family)))
    is_name = Path(family).name == str(family)
    for folder in (Path(family), shipped) if is_name else (Path(family),):
        if (folder / FAMILY_FILE).is_file():
            return folder
    if (Path(family) / CONFIG_FILE).is_file():
        config = read_json(Path(family) / CONFIG_FILE)
        if isinstance(config, dict) and is_official(config):
            raise FamilyError(_unconverted(family, config))
    raise FamilyError(
        f"no family {str(family)!r}: expected a folder with {FAMILY_FILE}, or one of "
        f"{', '.join(shipped_families()) or 'no shipped families'}"
    )


def _unconverted(folder: str | Path, config: dict[str, Any]) -> str:
    return (
        f"{folder} is an official MUX-PLM checkpoint, not yet converted: its model_type says plain "
        f"{config['model_type']!r}, but it has muxing keys; run: muxserve convert {folder} FAMILY"
    )


def _wanted_members(spec: FamilySpec, widths: Sequence[int] | None, folder: Path) -> list[Member]:
    if widths is None:
        return spec.members
    have = [member.num_instances for member in spec.members]
    for n in widths:
        if n not in have:
            raise FamilyError(f"{folder / FAMILY_FILE}: no member with num_instances {n}: {have}")
    return [member for member in spec.members if member.num_instances in widths]


def _checked(
    spec: FamilySpec, members: Sequence[Member], folder: Path, *, verify_checksums: bool
) -> tuple[Tokenizer, dict[str, PreTrainedConfig]]:
    """Check a family; its tokenizer, and the config of each checkpoint by its path."""
    configs = _check_members(members, spec, folder)
    rows = min((int(config.vocab_size) for config in configs.values()), default=MOST_ROWS)
    tokenizer = _read_tokenizer(folder / spec.tokenizer, rows, spec.max_length)
    if verify_checksums and spec.checksums:
        names = {spec.tokenizer}.union(*(member.file_names for member in members))
        check_checksums(folder, names, spec.checksums, file=folder / FAMILY_FILE)
    return tokenizer, configs


def _read_tokenizer(file: Path, rows: int, max_length: int) -> Tokenizer:
    if not file.is_file():
        raise FamilyError(f"{file}: missing (field tokenizer of {FAMILY_FILE})", field="tokenizer")
    return read_tokenizer_file(file, rows=rows, max_length=max_length)


def _check_members(
    members: Sequence[Member], spec: FamilySpec, folder: Path
) -> dict[str, PreTrainedConfig]:
    """Check members against their checkpoints; the config of each checkpoint by its path."""
    configs: dict[str, PreTrainedConfig] = {}
    for member in members:
        if member.path not in configs:
            configs[member.path] = _check_checkpoint(folder / member.path, spec.task)
        _check_member(configs[member.path], member, spec, folder)
    for path, config in configs.items():
        first = next(iter(configs.values()))
        if (config.pad_token_id or 0) != (first.pad_token_id or 0):
            raise FamilyError(
                f"{folder / path / CONFIG_FILE}: field pad_token_id: {config.pad_token_id}, but "
                f"another member has {first.pad_token_id}",
                field="pad_token_id",
            )
    return configs


def _load_member(
    folder: Path, config: PreTrainedConfig, task: Task, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    # Not from_pretrained: everything is checked, and it would draw a progress bar for each member.
    model: PreTrainedModel = AUTO_MODELS[task].from_config(config)
    model.load_state_dict(load_file(folder / SAFE))
    torch.nn.Module.to(model, device, dtype)
    return model.eval()


def _check_checkpoint(folder: Path, task: Task) -> PreTrainedConfig:
    """Check a checkpoint: every tensor's name and shape must fit its config, which is returned."""
    for name in (CONFIG_FILE, SAFE):
        if not (folder / name).is_file():
            raise FamilyError(f"{folder / name}: missing (field members.path of {FAMILY_FILE})")
    stored, weights = read_claims(folder)
    if is_official(stored):
        raise FamilyError(_unconverted(folder, stored))
    config = model_config(stored, folder)
    network = empty_model(AUTO_MODELS[task], config, folder)
    check_values(network, weights, folder)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    file = folder / SAFE
    found = tensor_shapes(file)
    missing = sorted(set(shapes) - set(found))
    if missing:
        raise FamilyError(f"{file}: tensor {missing[0]} is missing", field=missing[0])
    check_shapes(found, shapes, file)
    unknown = sorted(set(found) - set(shapes))
    if unknown:
        told = short(", ".join(unknown[:5]))
        raise FamilyError(f"{file}: unexpected tensors {told}", field=unknown[0])
    return config


def _check_member(config: PreTrainedConfig, member: Member, spec: FamilySpec, folder: Path) -> None:
    file = folder / member.path / "config.json"
    n = member.num_instances
    widths = config.served_widths if isinstance(config, MuxConfig) else [1]
    if n not in widths:
        raise FamilyError(
            f"{file}: field widths: {FAMILY_FILE} wants num_instances {n}, these weights serve "
            f"{widths}",
            field="num_instances",
        )
    if config.num_labels != len(spec.labels):
        raise FamilyError(
            f"{folder / FAMILY_FILE}: field labels: {len(spec.labels)} names, but {file} has "
            f"{config.num_labels} labels",
            field="labels",
        )
    if isinstance(config, MuxConfig):
        most = config.trained_length
        if config.padding == "max_length" and spec.max_length != config.trained_length:
            raise FamilyError(
                f"{folder / FAMILY_FILE}: field max_length: these weights must be served at the "
                f"length they were trained with, {config.trained_length}; got {spec.max_length}",
                field="max_length",
            )
    else:
        most = usable_positions(config, spec.max_length)
    if spec.max_length > most:
        raise FamilyError(
            f"{folder / FAMILY_FILE}: field max_length: {spec.max_length} is over the {most} "
            f"tokens of {file}",
            field="max_length",
        )
