"""From a classifier of yours and texts to a family: the whole path, stage by stage.

Teacher -> soft labels -> a student cut from its encoder -> multiplexed distillation -> a family
whose members carry how often they agree with the teacher on texts held out. Each stage is kept in
the work folder, so that a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from muxserve.models.checkpoint import read_config
from muxserve.models.family import Family, FamilySpec, Member, Task, write_spec
from muxserve.models.plain import label_names, plain_classifier, problem_type, task_of
from muxserve.models.source import fetch
from muxserve.models.source_tokenizer import read_tokenizer
from muxserve.training import checksums
from muxserve.training.data.labelled import checksum, read_texts
from muxserve.training.distil.goals import at_words, teacher_goals
from muxserve.training.distil.multiplex import distill
from muxserve.training.distil.student import (
    cut_student,
    cut_tokenizer,
    spread,
    without_retrieval_head,
)
from muxserve.training.distil.teacher import kept_soft_labels, token_ids
from muxserve.training.evaluation import (
    Measured,
    answered_examples,
    measure,
    store_measured,
    watch,
)
from muxserve.training.pretrained import PlainEncoder, Student, plain_encoder
from muxserve.training.recipe import MOST_TOKENS, FamilyRecipe
from muxserve.training.work_folder import built_whole, check_empty, claimed

#: What a family made without labels is measured by.
AGREEMENT = "agreement with the teacher"
#: Folder of the one set of weights that serves every N, in the family's.
WEIGHTS = "weights"
#: Every distilled student: what docs/training.md found to work.
NETWORK: dict[str, Any] = {
    "plain_single": True,
    "learn_muxing": True,
    "demuxing_variant": "hadamard_gate",
    "pooling": "mean",
    "classifier_head": "dense",
    "retrieval_head": True,
    "retrieval_percentage": 0.25,
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.05,
}


def distill_family(recipe: FamilyRecipe) -> list[Measured]:
    """Run a recipe, or go on with it; the measured members of the family that it made.

    Raises:
        ValueError: for texts that cannot be read or are too few, a work folder of another recipe,
            or settings that do not fit the teacher.
        FamilyError: for a teacher that cannot be read.
        OSError: naming the file, where something cannot be written.
    """
    check_empty(recipe.out)
    texts = read_texts(recipe.texts, text_column=recipe.text_column)
    folder = fetch(recipe.teacher, ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model"))
    device = fastest_device()
    teacher = plain_classifier(folder, read_config(folder))
    labels = label_names(teacher, recipe.labels, folder)
    task = _task(teacher)
    if problem_type(teacher) != "single_label_classification":
        raise ValueError(f"{folder}: only teachers with one label per text or token are covered")
    tokenizer = read_tokenizer(str(folder), teacher)
    encoder = plain_encoder(teacher)
    _check_fit(recipe, encoder, len(texts))
    max_length = recipe.max_length or min(MOST_TOKENS, encoder.sizes["max_position_embeddings"])
    work = recipe.work_folder
    with claimed(work, _settings(recipe, texts, teacher, labels, tokenizer)):
        teacher.to(device)  # type: ignore[arg-type]
        logits = kept_soft_labels(work, teacher, tokenizer, texts, max_length=max_length)
        if task == "token-classification":
            logits = at_words(logits, tokenizer, texts, max_length)
        kept = list(range(int(encoder.sizes["vocab_size"])))
        if recipe.word_pieces is not None:
            tokenizer, kept = cut_tokenizer(tokenizer, texts, recipe.word_pieces)
        torch.manual_seed(recipe.distill.seed)
        student = build_student(
            encoder,
            kept,
            layers=recipe.layers or encoder.layers,
            widths=recipe.num_instances,
            max_length=max_length,
            labels=labels,
            task=task,
        )
        student.to(device)  # type: ignore[arg-type]
        order = torch.randperm(len(texts)).tolist()
        held, trained = order[: recipe.held_out], order[recipe.held_out :]
        held_texts, trained_texts = [texts[i] for i in held], [texts[i] for i in trained]
        examples = answered_examples(tokenizer, held_texts, [logits[i] for i in held], max_length)
        distill(
            student,
            token_ids(tokenizer, trained_texts, max_length),
            teacher_goals([logits[i] for i in trained], tokenizer, trained_texts, max_length),
            recipe.distill,
            work / "distil.pt",
            evaluate=watch(student, examples, AGREEMENT),
        )
        with built_whole(recipe.out) as building:
            save_family(student.cpu(), tokenizer, building, name=recipe.out.name)
            family = Family.load(building)
            measured = measure(
                family,
                examples,
                f"{recipe.texts.name}, held out",
                checksum(held_texts),
                metric=AGREEMENT,
            )
            store_measured(family.spec, measured, building)
        return measured


def build_student(
    encoder: PlainEncoder,
    kept: Sequence[int],
    *,
    layers: int | Sequence[int],
    widths: Sequence[int],
    max_length: int,
    labels: Sequence[str],
    task: Task = "sequence-classification",
) -> Student:
    """A student of ``NETWORK`` cut from an encoder.

    Args:
        encoder: what it is cut from.
        kept: the old id of each word piece.
        layers: the layers kept, or how many: then spread evenly from the first to the last.
        widths: every N, 1 among them.
        max_length: positions.
        labels: label names.
        task: what the student is for.
    """
    if isinstance(layers, int):
        layers = spread(layers, encoder.layers)
    config = encoder.config(
        **NETWORK,
        vocab_size=len(kept),
        pad_token_id=list(kept).index(encoder.sizes["pad_token_id"]),
        num_hidden_layers=len(layers),
        max_position_embeddings=max_length,
        trained_length=max_length,
        num_instances=widths[-1],
        widths=list(widths),
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )
    return cut_student(encoder, config, layers, kept, task)


def save_family(model: Student, tokenizer: Tokenizer, out: Path, *, name: str) -> None:
    """Write a family folder: fp16 weights without the retrieval head, tokenizer, ``family.json``.

    Its members carry no quality yet: ``store_measured`` writes it.
    """
    without_retrieval_head(model).half().save_pretrained(out / WEIGHTS)
    tokenizer.no_truncation()
    # Not by the tokenizer's own save, which tells of a full disk as a bare Exception.
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = model.config
    ids: dict[Any, str] = config.id2label or {}
    spec = FamilySpec(
        name=name,
        task=_task(model),
        labels=[ids[index] for index in range(config.label_count)],
        max_length=config.trained_length,
        members=[Member(num_instances=n, path=WEIGHTS) for n in config.served_widths],
    )
    write_spec(out, spec)


def fastest_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _task(classifier: PreTrainedModel) -> Task:
    task = task_of(type(classifier).__name__)
    assert task is not None, "only classifiers are taught and saved"
    return task


def _check_fit(recipe: FamilyRecipe, encoder: PlainEncoder, texts: int) -> None:
    if recipe.layers is not None and recipe.layers > encoder.layers:
        raise ValueError(f"layers: the teacher has {encoder.layers}, got {recipe.layers}")
    positions = encoder.sizes["max_position_embeddings"]
    if recipe.max_length is not None and recipe.max_length > positions:
        raise ValueError(
            f"max_length: the teacher takes {positions} tokens, got {recipe.max_length}"
        )
    batch = recipe.distill.groups * recipe.num_instances[-1]
    if texts < recipe.held_out + batch:
        raise ValueError(
            f"{recipe.texts}: {texts} texts are too few: {recipe.held_out} are held out and a "
            f"step takes {batch} (distill.groups times the widest N)"
        )


def _settings(
    recipe: FamilyRecipe,
    texts: Sequence[str],
    teacher: PreTrainedModel,
    labels: Sequence[str],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """What decides the result of a run."""
    # What is read counts by its content, not by where it is.
    settings = recipe.model_dump(mode="json", exclude={"out", "work", "teacher", "texts"})
    # How often a run is saved changes nothing of what it computes.
    settings["distill"].pop("save_every_s")
    return {
        **settings,
        "labels": list(labels),
        "content of texts": checksum(texts),
        "content of teacher": checksums.of_model(teacher),
        "content of tokenizer": checksums.of_tokenizer(tokenizer),
    }
