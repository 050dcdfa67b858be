"""A family on disk: ``family.json`` and the checkpoints it names, checked before it serves.

In: a folder. Out: a ``Family`` with one loaded model for each member N (members that name the same
folder share it). Whatever is wrong is a ``FamilyError`` that names the file and the field.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from muxserve.errors import FamilyError
from muxserve.models.asking import usable_positions
from muxserve.models.config import MuxConfig
from muxserve.models.official import is_official
from muxserve.models.precision import fastest_dtype

FAMILY_FILE = "family.json"
Task = Literal["sequence-classification", "token-classification"]
#: What loads the checkpoints of each task.
AUTO_MODELS: dict[Task, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


class Quality(BaseModel):
    """A measured quality, written by the evaluation command."""

    model_config = ConfigDict(extra="forbid")

    metric: str = Field(description="Name of the metric, such as accuracy.")
    value: float = Field(description="Mean over random groupings.")
    std: Annotated[float, Field(ge=0)] = Field(description="Standard deviation over groupings.")
    groupings: int = Field(ge=1, description="Random groupings measured.")
    examples: int = Field(ge=1, description="Examples of the data set.")
    dataset: str = Field(description="Data set and split.")
    dataset_sha256: str | None = Field(None, description="Checksum of its texts, in order.")
    measured_on: str = Field(description="Date, ISO 8601.")


class LengthQuality(BaseModel):
    """Quality on texts of some lengths."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(None, description="Most tokens; absent for the longest texts.")
    value: float = Field(description="Mean over random groupings, of the member's metric.")
    examples: int = Field(ge=1, description="Examples among them.")


class Member(BaseModel):
    """One N of a family."""

    model_config = ConfigDict(extra="forbid")

    num_instances: int = Field(ge=1, description="N of this member.")
    path: str = Field(description="Checkpoint folder, relative to family.json.")
    quality: Quality | None = Field(None, description="Measured quality at this N.")
    flip_rate: float | None = Field(
        None, ge=0, le=1, description="How often a prediction changes when only neighbours change."
    )
    ensembled: float | None = Field(
        None, description="Quality where a text takes a slot per grouping, its logits averaged."
    )
    calibration_error: float | None = Field(
        None, ge=0, le=1, description="How far confidence is from being right (ECE, 15 bins)."
    )
    by_length: list[LengthQuality] | None = Field(
        None, description="Quality by the token count of a text, ascending."
    )


class FamilySpec(BaseModel):
    """What ``family.json`` holds."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="Name of the family.")
    task: Task = Field(description="Task of every member.")
    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression"
    ] = Field("single_label_classification", description="Decides how logits become scores.")
    labels: list[str] = Field(min_length=1, description="Label names, in the order of the logits.")
    max_length: int = Field(ge=3, description="Most tokens of a text, special tokens included.")
    truncation_side: Literal["left", "right"] = Field(
        "right", description="Where a text that is too long is cut, unless a request says."
    )
    tokenizer: str = Field("tokenizer.json", description="Tokenizer file, relative.")
    members: list[Member] = Field(min_length=1, description="One entry per N, ascending.")

    @model_validator(mode="after")
    def _members_ascend(self) -> "FamilySpec":
        widths = [member.num_instances for member in self.members]
        if widths != sorted(set(widths)):
            raise ValueError(f"members must be in ascending order of num_instances, got {widths}")
        return self

    @model_validator(mode="after")
    def _tokens_have_one_label(self) -> "FamilySpec":
        if self.of_tokens and self.problem_type != "single_label_classification":
            raise ValueError(f"tokens are classified with one label each, not {self.problem_type}")
        return self

    @property
    def of_tokens(self) -> bool:
        """Whether every token gets a label, rather than the text."""
        return self.task == "token-classification"


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
        """The one length that every text is padded to, or None where the longest text decides."""
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
    ) -> "Family":
        """Load a family by shipped name ("sentiment") or folder.

        Args:
            family: name or folder.
            widths: load only these N.
            dtype: of the weights; None takes what is fastest there, see ``fastest_dtype``.
            device: where the weights go, "cpu" or "cuda".

        Raises:
            FamilyError: naming the file and the field.
        """
        folder = resolve(family)
        spec = read_spec(folder)
        wanted = _wanted_members(spec, widths, folder)
        tokenizer = _read_tokenizer(folder / spec.tokenizer)
        configs = _check_members(wanted, spec, folder, tokenizer)
        dtype = dtype or fastest_dtype(configs.values(), device)
        loaded = {
            path: _load_member(folder / path, config, spec.task, dtype, device)
            for path, config in configs.items()
        }
        models = {member.num_instances: loaded[member.path] for member in wanted}
        return cls(spec, tokenizer, models)


def check_family(family: str | Path) -> FamilySpec:
    """Check a family as ``Family.load`` does, reading no weights but their names and shapes.

    Raises:
        FamilyError: naming the file and the field.
    """
    folder = resolve(family)
    spec = read_spec(folder)
    tokenizer = _read_tokenizer(folder / spec.tokenizer)
    _check_members(spec.members, spec, folder, tokenizer)
    return spec


def member_logits(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, n: int
) -> torch.Tensor:
    """Logits of one member for [B, L] ids; a plain classifier is the N=1 member.

    [B, labels] of texts, [B, L, labels] of tokens.
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
    """The folder of a shipped family's name, or of a path.

    Raises:
        FamilyError: where there is no such folder.
    """
    shipped = Path(str(files("muxserve") / "families" / str(family)))
    is_name = Path(family).name == str(family)
    for folder in (Path(family), shipped) if is_name else (Path(family),):
        if (folder / FAMILY_FILE).is_file():
            return folder
    if (Path(family) / "config.json").is_file():
        config = json.loads((Path(family) / "config.json").read_text())
        if is_official(config):
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


def read_spec(folder: Path) -> FamilySpec:
    """Read and check ``family.json``; FamilyError names the field."""
    file = folder / FAMILY_FILE
    try:
        return FamilySpec.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FamilyError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FamilyError(f"{file}: not UTF-8") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        raise FamilyError(f"{file}: field {field}: {first['msg']}", field=field) from None


def write_spec(folder: Path, spec: FamilySpec) -> None:
    """Write ``family.json``, whole or not at all."""
    temporary = folder / f".{FAMILY_FILE}.tmp"
    temporary.write_text(spec.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
    temporary.replace(folder / FAMILY_FILE)


def _wanted_members(spec: FamilySpec, widths: Sequence[int] | None, folder: Path) -> list[Member]:
    if widths is None:
        return spec.members
    have = [member.num_instances for member in spec.members]
    for n in widths:
        if n not in have:
            raise FamilyError(f"{folder / FAMILY_FILE}: no member with num_instances {n}: {have}")
    return [member for member in spec.members if member.num_instances in widths]


def _read_tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise FamilyError(f"{file}: missing (field tokenizer of {FAMILY_FILE})", field="tokenizer")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise FamilyError(f"{file}: not a tokenizer file: {error}", field="tokenizer") from None


def _check_members(
    members: Sequence[Member], spec: FamilySpec, folder: Path, tokenizer: Tokenizer
) -> dict[str, PreTrainedConfig]:
    """Check members against their checkpoints; the config of each checkpoint, by its path."""
    configs: dict[str, PreTrainedConfig] = {}
    for member in members:
        if member.path not in configs:
            configs[member.path] = _check_checkpoint(folder / member.path, spec.task)
        _check_member(configs[member.path], member, spec, folder)
    pieces = tokenizer.get_vocab_size()
    for path, config in configs.items():
        file = folder / path / "config.json"
        if config.vocab_size < pieces:
            raise FamilyError(
                f"{file}: field vocab_size: {config.vocab_size:,}, but the family's tokenizer has "
                f"{pieces:,} pieces",
                field="vocab_size",
            )
        first = next(iter(configs.values()))
        if (config.pad_token_id or 0) != (first.pad_token_id or 0):
            raise FamilyError(
                f"{file}: field pad_token_id: {config.pad_token_id}, but another member has "
                f"{first.pad_token_id}",
                field="pad_token_id",
            )
    return configs


def _load_member(
    folder: Path, config: PreTrainedConfig, task: Task, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    # Not from_pretrained: all is checked by now, and it would draw a progress bar for each member.
    model: PreTrainedModel = AUTO_MODELS[task].from_config(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    torch.nn.Module.to(model, device, dtype)
    return model.eval()


def _check_checkpoint(folder: Path, task: Task) -> PreTrainedConfig:
    """A checkpoint's config, once every tensor's name and shape agrees with it."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FamilyError(f"{folder / name}: missing (field members.path of {FAMILY_FILE})")
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if is_official(stored):
            raise FamilyError(_unconverted(folder, stored))
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            expected = AUTO_MODELS[task].from_config(config).state_dict()
    except (ValueError, OSError, TypeError) as error:
        raise FamilyError(f"{folder / 'config.json'}: {error}") from None
    file = folder / "model.safetensors"
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FamilyError(f"{file}: not a safetensors file: {error}") from None
    for key, tensor in expected.items():
        if key not in shapes:
            raise FamilyError(f"{file}: tensor {key} is missing", field=key)
        if shapes[key] != tuple(tensor.shape):
            raise FamilyError(
                f"{file}: tensor {key} has shape {list(shapes[key])}, "
                f"config.json asks for {list(tensor.shape)}",
                field=key,
            )
    unknown = sorted(set(shapes) - set(expected))
    if unknown:
        raise FamilyError(f"{file}: unexpected tensors {', '.join(unknown[:5])}", field=unknown[0])
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
