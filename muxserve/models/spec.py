"""``family.json``: the description of a family, read and written whole.

A mistake in it is a ``FamilyError`` that names the field. Writing adds the checksum of every file
that the family names.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from muxserve.errors import FamilyError
from muxserve.models.claims import label_fault
from muxserve.models.files import MOST_JSON_BYTES, checksum, inside, read_bounded, short
from muxserve.models.weights_file import SAFE

FAMILY_FILE = "family.json"
Task = Literal["sequence-classification", "token-classification"]
#: Where a text that is too long is cut.
Side = Literal["left", "right"]
#: Far above what any network has; a larger number is a mistake.
MOST_INSTANCES, MOST_LENGTH = 1024, 1 << 20


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

    num_instances: int = Field(ge=1, le=MOST_INSTANCES, description="N of this member.")
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

    @property
    def file_names(self) -> set[str]:
        """The files of its checkpoint, relative to the family's folder."""
        return {str(PurePosixPath(self.path, name)) for name in ("config.json", SAFE)}


class FamilySpec(BaseModel):
    """The content of ``family.json``."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="Name of the family.")
    task: Task = Field(description="Task of every member.")
    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression"
    ] = Field("single_label_classification", description="Decides how logits become scores.")
    labels: list[str] = Field(min_length=1, description="Label names, in the order of the logits.")
    max_length: int = Field(
        ge=3, le=MOST_LENGTH, description="Most tokens of a text, special tokens included."
    )
    truncation_side: Side = Field(
        "right", description="Where a text that is too long is cut, unless a request says."
    )
    tokenizer: str = Field("tokenizer.json", description="Tokenizer file, relative.")
    members: list[Member] = Field(min_length=1, description="One entry per N, ascending.")
    checksums: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] | None = Field(
        None, description="SHA-256 of each file that is named here, by its path."
    )

    @model_validator(mode="after")
    def _members_ascend(self) -> "FamilySpec":
        widths = [member.num_instances for member in self.members]
        if widths != sorted(set(widths)):
            raise ValueError(f"members must be in ascending order of num_instances, got {widths}")
        return self

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: list[str]) -> list[str]:
        if problem := label_fault(labels):
            raise ValueError(problem)
        return labels

    @model_validator(mode="after")
    def _tokens_have_one_label(self) -> "FamilySpec":
        if self.of_tokens and self.problem_type != "single_label_classification":
            raise ValueError(f"tokens are classified with one label each, not {self.problem_type}")
        return self

    @property
    def of_tokens(self) -> bool:
        """Whether every token gets a label, rather than the text."""
        return self.task == "token-classification"

    @property
    def file_names(self) -> set[str]:
        """Every file of the family but its description: paths relative to its folder."""
        return {self.tokenizer}.union(*(member.file_names for member in self.members))


def read_spec(folder: Path) -> FamilySpec:
    """Read and check ``family.json``; FamilyError names the field."""
    file = folder / FAMILY_FILE
    try:
        text = read_bounded(file, MOST_JSON_BYTES).decode("utf-8")
        spec = FamilySpec.model_validate_json(text)
    except UnicodeDecodeError:
        raise FamilyError(f"{file}: not UTF-8") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        raise FamilyError(
            f"{file}: field {short(field)}: {short(first['msg'])}", field=field
        ) from None
    inside(folder, spec.tokenizer, file=file, field="tokenizer")
    for index, member in enumerate(spec.members):
        inside(folder, member.path, file=file, field=f"members.{index}.path")
    return spec


def write_spec(folder: Path, spec: FamilySpec, *, files: Path | None = None) -> None:
    """Write ``family.json``, whole or not at all, with checksums of the files that it names.

    Checksums that the spec has are kept, so a file that has changed since is found. A file that
    does not exist yet has none.

    Args:
        folder: where ``family.json`` goes.
        spec: its content.
        files: the family's folder, if ``family.json`` is moved there afterwards.
    """
    home = files or folder
    sums = {name: told for name, told in (spec.checksums or {}).items() if name in spec.file_names}
    for name in sorted(spec.file_names - set(sums)):
        if (home / name).is_file():
            sums[name] = checksum(home / name)
    written = spec.model_copy(update={"checksums": dict(sorted(sums.items())) or None})
    temporary = folder / f".{FAMILY_FILE}.tmp"
    text = written.model_dump_json(indent=2, exclude_none=True) + "\n"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / FAMILY_FILE)
