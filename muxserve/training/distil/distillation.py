"""From a classifier of yours and texts to a family: the whole path, stage by stage.

Teacher -> soft labels -> a student cut from its encoder -> multiplexed distillation -> a family
whose members state how often they agree with the teacher on texts held out. Each stage is kept in
the work folder, so that a run that was stopped resumes where it was.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from muxserve.models.checkpoint import read_config
from muxserve.models.plain import label_names, plain_classifier, problem_type
from muxserve.models.source import fetch
from muxserve.models.source_tokenizer import read_tokenizer
from muxserve.training import checksums
from muxserve.training.data.batches import token_ids
from muxserve.training.data.labelled import read_texts
from muxserve.training.distil.family import Lesson, classifier_task, fastest_device, train_student
from muxserve.training.distil.goals import at_words, teacher_goals
from muxserve.training.distil.student import build_student, cut_tokenizer
from muxserve.training.distil.teacher import kept_soft_labels
from muxserve.training.evaluation.examples import answered_examples
from muxserve.training.evaluation.quality import Measured, MeasuredOn
from muxserve.training.pretrained import PlainEncoder, plain_encoder
from muxserve.training.recipe import MOST_TOKENS, FamilyRecipe
from muxserve.training.work_folder import check_empty, claimed

#: The metric of a family made without labels.
AGREEMENT = "agreement with the teacher"


def distill_family(recipe: FamilyRecipe) -> list[Measured]:
    """Run a recipe, or resume it, and return the measured members of the family that it made.

    Raises:
        ValueError: for texts that cannot be read or are too few, a work folder of another recipe,
            or settings that do not fit the teacher.
        FamilyError: for a teacher that cannot be read.
        OSError: naming the file, if something cannot be written.
    """
    check_empty(recipe.out)
    texts = read_texts(recipe.texts, text_column=recipe.text_column)
    folder = fetch(recipe.teacher, ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model"))
    teacher = plain_classifier(folder, read_config(folder))
    labels = label_names(teacher, recipe.labels, folder)
    task = classifier_task(teacher)
    if problem_type(teacher) != "single_label_classification":
        raise ValueError(f"{folder}: only teachers with one label per text or token are covered")
    tokenizer = read_tokenizer(str(folder), teacher)
    encoder = plain_encoder(teacher)
    _check_fit(recipe, encoder, len(texts))
    max_length = recipe.max_length or min(MOST_TOKENS, encoder.sizes["max_position_embeddings"])
    work = recipe.work_folder
    with claimed(work, _settings(recipe, texts, teacher, labels, tokenizer)):
        teacher.to(fastest_device())  # type: ignore[arg-type]
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
        order = torch.randperm(len(texts)).tolist()
        held, trained = order[: recipe.held_out], order[recipe.held_out :]
        held_texts, trained_texts = [texts[i] for i in held], [texts[i] for i in trained]
        lesson = Lesson(
            token_ids(tokenizer, trained_texts, max_length),
            teacher_goals([logits[i] for i in trained], tokenizer, trained_texts, max_length),
            answered_examples(tokenizer, held_texts, [logits[i] for i in held], max_length),
            AGREEMENT,
            MeasuredOn(f"{recipe.texts.name}, held out", checksums.of_texts(held_texts)),
        )
        return train_student(
            student, tokenizer, lesson, recipe.distill, work, recipe.out, name=recipe.out.name
        )


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
    return {
        **settings,
        "distill": recipe.distill.what_is_computed(),
        "labels": list(labels),
        "content of texts": checksums.of_texts(texts),
        "content of teacher": checksums.of_model(teacher),
        "content of tokenizer": checksums.of_tokenizer(tokenizer),
    }
