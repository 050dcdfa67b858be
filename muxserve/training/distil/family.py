"""A student and what it learns from in, a family of its trained weights out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from muxserve.models.family import Family
from muxserve.models.plain import task_of
from muxserve.models.spec import FamilySpec, Member, Task, write_spec
from muxserve.training.distil.goals import Goals
from muxserve.training.distil.multiplex import distill
from muxserve.training.evaluation.examples import Examples
from muxserve.training.evaluation.groupings import grouped_predictions
from muxserve.training.evaluation.quality import Measured, MeasuredOn, accuracy, measure
from muxserve.training.evaluation.stated import store_measured
from muxserve.training.pretrained import Student
from muxserve.training.recipe import DistillSettings
from muxserve.training.saving import save_tokenizer, without_retrieval_head
from muxserve.training.work_folder import built_whole

log = logging.getLogger(__name__)

#: Folder, in the family's, of the one set of weights that serves every N.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Lesson:
    """What a student learns from, and what it is measured on meanwhile.

    Attributes:
        rows: token ids of each text.
        goals: of each text, or of each of its tokens.
        held_out: texts that are not trained on, and what is right.
        metric: name of the share of right answers on them.
        measured_on: the data set that they are, where ``family.json`` is to state that share.
    """

    rows: Sequence[Sequence[int]]
    goals: Goals
    held_out: Examples
    metric: str
    measured_on: MeasuredOn | None = None


def train_student(
    student: Student,
    tokenizer: Tokenizer,
    lesson: Lesson,
    settings: DistillSettings,
    work: Path,
    out: Path,
    *,
    name: str,
    evaluate_every: int = 500,
) -> list[Measured]:
    """Train a student at every N, or resume, and write its family: whole or not at all.

    Args:
        student: as it was built; trained in place.
        tokenizer: the student's.
        lesson: what it learns from.
        settings: of the distillation.
        work: the run's folder, which is claimed.
        out: folder of the family.
        name: of the family.
        evaluate_every: steps between two measurements on the texts held out.

    Returns:
        What ``family.json`` states of each member; empty without ``lesson.measured_on``.

    Raises:
        OSError: naming the file, if something cannot be written.
    """
    student.to(fastest_device())  # type: ignore[arg-type]
    distill(
        student,
        lesson.rows,
        lesson.goals,
        settings,
        work / "distil.pt",
        evaluate=_watch(student, lesson),
        evaluate_every=evaluate_every,
    )
    measured: list[Measured] = []
    with built_whole(out) as building:
        save_family(student.cpu(), tokenizer, building, name=name)
        if lesson.measured_on is not None:
            family = Family.load(building)
            measured = measure(family, lesson.held_out, lesson.measured_on, metric=lesson.metric)
            store_measured(family.spec, measured, building)
    return measured


def save_family(model: Student, tokenizer: Tokenizer, out: Path, *, name: str) -> None:
    """Write a family folder: fp16 weights without the retrieval head, tokenizer, ``family.json``.

    Its members have no quality yet: ``store_measured`` writes it.
    """
    without_retrieval_head(model).half().save_pretrained(out / WEIGHTS)
    save_tokenizer(tokenizer, out)
    config = model.config
    ids: dict[Any, str] = config.id2label or {}
    spec = FamilySpec(
        name=name,
        task=classifier_task(model),
        labels=[ids[index] for index in range(config.label_count)],
        max_length=config.trained_length,
        members=[Member(num_instances=n, path=WEIGHTS) for n in config.served_widths],
    )
    write_spec(out, spec)


def classifier_task(classifier: PreTrainedModel) -> Task:
    """The task of a classifier that is taught or saved."""
    task = task_of(type(classifier).__name__)
    assert task is not None, "only classifiers are taught and saved"
    return task


def fastest_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _watch(student: Student, lesson: Lesson) -> Callable[[int], dict[str, float]]:
    """What ``distill`` calls to log and get the share of right answers at every N."""

    def evaluate(step: int) -> dict[str, float]:
        examples = lesson.held_out
        shares = {}
        for n in student.config.served_widths:
            logits = grouped_predictions(
                student, examples.ids, n, firsts=examples.firsts, seed=step
            )
            share = accuracy(logits, examples.labels)
            log.info("step %d N=%d %s %.4f", step, n, lesson.metric, share)
            shares[f"{lesson.metric}/N={n}"] = share
        return shares

    return evaluate
