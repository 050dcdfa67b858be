"""Settings of training: what ``muxserve train distill|retrieval|pretrain|finetune`` take.

Nothing heavy is imported here: the command line makes its flags from these fields.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Stage = Literal["retrieval", "pretrain", "finetune"]
#: Tokens that a text is cut to by default.
MOST_TOKENS = 128


class Corpus(BaseModel):
    """Where a data set is, and the names of its columns."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(
        description="Data set: a .csv, .jsonl, .parquet or .txt file, a folder, or a hub name."
    )
    data_config: str | None = Field(None, description="Its configuration, such as sst2 of glue.")
    train_split: str = Field("train", description="Split that is trained on.")
    eval_split: str | None = Field(
        None, description="Split that is measured on; default validation, where there is one."
    )
    eval_data: str | None = Field(None, description="Another data set to measure on.")
    held_out: float = Field(
        0.05, gt=0, lt=1, description="Share that is measured on where no split is for that."
    )
    text_column: str = Field("text", description="Column of the texts.")
    pair_column: str | None = Field(None, description="Column of second texts, as hypothesis.")
    label_column: str = Field("label", description="Column of the labels.")
    words_column: str = Field("tokens", description="Column of the words, in token tasks.")
    tags_column: str = Field("tags", description="Column of the words' tags, in token tasks.")


class StageRecipe(Corpus):
    """One training stage of the paper, for one N; defaults follow the reference's settings."""

    stage: Stage
    start: str = Field(
        description="What it starts from: a plain BERT or ELECTRA, or a MUX-PLM; folder or hub "
        "name."
    )
    out: Path = Field(description="Folder of the trained checkpoint.")
    work: Path | None = Field(None, description="Folder for the run's state; default OUT.work.")
    tokenizer: str | None = Field(
        None, description="Folder, tokenizer.json or hub name, where the start has none."
    )
    task: Literal["sequence-classification", "token-classification"] = Field(
        "sequence-classification", description="What finetune trains for."
    )
    num_instances: int | None = Field(
        None, ge=1, description="N; default the start's, 2 for a plain one. 1 finetunes it plain."
    )
    muxing_variant: str | None = Field(None, description="Default gaussian_hadamard.")
    demuxing_variant: str | None = Field(None, description="Default index_pos.")
    num_hidden_demux_layers: int | None = Field(None, ge=1, description="Default 2.")
    retrieval_loss_coeff: float | None = Field(
        None, ge=0, description="Default 1, 0.1 and 0 by stage; 0.1 for token tasks."
    )
    task_loss_coeff: float | None = Field(
        None, ge=0, description="Default 0, 0.9 and 1 by stage; 0.9 for token tasks."
    )
    mask_share: float = Field(
        0.15, gt=0, lt=1, description="Share of the tokens that pretrain asks for."
    )
    generator: str | None = Field(
        None, description="Masked LM that replaces tokens for MUX-ELECTRA; default random ones."
    )
    max_length: int | None = Field(
        None, ge=8, description="Most tokens of a text; default the start's, at most 128."
    )
    steps: int = Field(10_000, ge=1, description="Optimiser steps.")
    groups: int = Field(32, ge=1, description="Groups of N texts in a batch.")
    gradient_accumulation: int = Field(1, ge=1, description="Batches in a step.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak; default 1e-4, for finetune 5e-5."
    )
    warm_up_share: float = Field(0.1, ge=0, lt=1, description="Share of steps to the peak.")
    evaluate_every: int = Field(
        500, ge=1, description="Steps between two measurements; the state is saved after each."
    )
    bf16: bool = Field(False, description="Matrix products in bfloat16.")
    seed: int = Field(0, description="Of everything that is drawn.")

    @property
    def work_folder(self) -> Path:
        """Where the run's state is kept."""
        return self.work or self.out.with_name(f"{self.out.name}.work")

    @property
    def peak_learning_rate(self) -> float:
        """The rate that is given, or the reference's for the stage (MUX-PLM run scripts)."""
        return self.learning_rate or (5e-5 if self.stage == "finetune" else 1e-4)

    @property
    def loss_coefficients(self) -> tuple[float, float]:
        """Weights of the retrieval and the task loss; by default the reference's."""
        retrieval, task = {"retrieval": (1.0, 0.0), "pretrain": (0.1, 0.9), "finetune": (0.0, 1.0)}[
            self.stage
        ]
        if self.stage == "finetune" and self.task == "token-classification":
            retrieval, task = 0.1, 0.9
        return (
            retrieval if self.retrieval_loss_coeff is None else self.retrieval_loss_coeff,
            task if self.task_loss_coeff is None else self.task_loss_coeff,
        )

    def what_is_computed(self) -> dict[str, Any]:
        """Every setting that changes the result, as JSON values."""
        return self.model_dump(mode="json", exclude={"out", "work"})


class DistillSettings(BaseModel):
    """Settings of one multiplexed distillation run."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(3000, ge=1, description="Optimiser steps.")
    groups: int = Field(32, ge=1, description="Groups per step of the larger N.")
    single_texts: int = Field(32, ge=1, description="Texts of the step's batch also run at N=1.")
    encoder_learning_rate: float = Field(3e-4, gt=0, description="Peak, for what was pretrained.")
    new_learning_rate: float = Field(1e-3, gt=0, description="Peak, for keys, gates and heads.")
    warm_up_share: float = Field(0.04, gt=0, lt=1, description="Share of steps to the peak rate.")
    retrieval_share: float = Field(0.3, ge=0, le=1, description="Share of steps led by retrieval.")
    retrieval_weight: float = Field(0.2, ge=0, description="Weight of retrieval after its lead.")
    state_weight: float = Field(1.0, ge=0, description="Weight of matching the states of N=1.")
    temperature: float = Field(
        1.0, gt=0, description="Softening of both sides of the distillation."
    )
    bf16: bool = Field(False, description="Matrix products in bfloat16, weights in fp32.")
    seed: int = Field(0, description="Of batches, picks and dropout.")
    save_every_s: float = Field(300, gt=0, description="Seconds between two saved states.")

    def what_is_computed(self) -> dict[str, Any]:
        """Every setting that changes the result; how often a run is saved does not."""
        return self.model_dump(mode="json", exclude={"save_every_s"})


class FamilyRecipe(BaseModel):
    """A family distilled from a classifier; one run of ``muxserve train distill``."""

    model_config = ConfigDict(extra="forbid")

    teacher: str = Field(description="The classifier: a folder, or a model's name on the hub.")
    labels: list[str] | None = Field(
        None, description="Names of its labels, where it has none, in the order of the logits."
    )
    texts: Path = Field(
        description="Texts like those to be served: .txt, .csv, .jsonl or .parquet."
    )
    out: Path = Field(description="Folder of the new family.")
    work: Path | None = Field(None, description="Folder for the stages; by default OUT.work.")
    text_column: str = Field("text", description="Column of the texts, where there are columns.")
    num_instances: list[int] = Field([1, 2, 5, 10], description="Every N to serve, 1 among them.")
    layers: int | None = Field(None, ge=1, description="Layers of the student; all by default.")
    word_pieces: int | None = Field(
        None, ge=100, description="Keep only the most frequent word pieces; all by default."
    )
    max_length: int | None = Field(
        None, ge=8, description="Most tokens of a text; default the teacher's, at most 128."
    )
    held_out: int = Field(1000, ge=10, description="Texts that are measured on, not trained on.")
    distill: DistillSettings = Field(default_factory=DistillSettings)

    @field_validator("num_instances")
    @classmethod
    def _with_one(cls, widths: list[int]) -> list[int]:
        widths = sorted(set(widths))
        if widths[0] != 1 or len(widths) < 2:
            raise ValueError("1 must be among them, and a wider one: the wider N learn from N=1")
        return widths

    @field_validator("labels", mode="before")
    @classmethod
    def _with_commas(cls, labels: object) -> object:
        return [name.strip() for name in labels.split(",")] if isinstance(labels, str) else labels

    @property
    def work_folder(self) -> Path:
        """Where the stages are kept."""
        return self.work or self.out.with_name(f"{self.out.name}.work")
