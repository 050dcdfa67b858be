"""Train the shipped sentiment family: ``python -m recipes.sentiment --help``.

Teacher, soft labels, student and multiplexed distillation: each stage is kept in the work folder,
and a run that was stopped resumes in the stage it was in.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import one_hot
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from muxserve.training import checksums
from muxserve.training.data.batches import token_ids
from muxserve.training.data.labelled import LabelledTexts
from muxserve.training.distil.family import Lesson, fastest_device, train_student
from muxserve.training.distil.goals import Goals
from muxserve.training.distil.growth import start_from
from muxserve.training.distil.student import build_student, cut_tokenizer
from muxserve.training.distil.teacher import fine_tune, kept_soft_labels, soft_labels
from muxserve.training.evaluation.examples import labelled_examples
from muxserve.training.evaluation.quality import accuracy
from muxserve.training.pretrained import read_encoder
from muxserve.training.recipe import DistillSettings
from muxserve.training.run_log import logged_plainly
from muxserve.training.work_folder import built_whole, check_empty, claimed
from recipes.command import run
from recipes.sentiment_data import LABELS, chunks, held_out, training_reviews

log = logging.getLogger(__name__)

WIDTHS = [1, 2, 5, 10]
LAYERS = 6
WORD_PIECES = 12_000
MAX_LENGTH = 128
#: Sentences that are measured on and not trained on.
HELD_OUT = 1000
#: How much a whole review's label counts beside the teacher's logits for a piece of it.
REVIEW_LABEL_LOGIT = 1.0


def train(
    base: Annotated[Path, typer.Option(help="Folder of the pretrained BERT with tokenizer.json.")],
    work: Annotated[Path, typer.Option(help="Folder for the stages; not shipped.")],
    out: Annotated[Path, typer.Option(help="Folder for the trained weights and tokenizer.")],
    teacher_steps: Annotated[int, typer.Option(min=1)] = 900,
    soft_texts: Annotated[
        int, typer.Option(min=1, help="Review pieces that get soft labels.")
    ] = 70_000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the distillation.")] = 3000,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Weights of a trained student to go on from (safetensors); grown if flat."
        ),
    ] = None,
    retrieval_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps led by token retrieval.")
    ] = 0.3,
    learning_rate: Annotated[float, typer.Option(help="Peak for the pretrained part.")] = 3e-4,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = False,
    seed: int = 0,
) -> None:
    """Train every N of the sentiment family from a pretrained BERT; a stopped run resumes."""
    check_empty(out)
    sentences, reviews = training_reviews()
    sentences, dev = held_out(sentences, HELD_OUT, seed)
    pieces, _ = held_out(chunks(reviews, seed), 0, seed)
    encoder, base_tokenizer = read_encoder(base)
    trained = _read_weights(start) if start is not None else None
    settings = DistillSettings(
        steps=steps,
        encoder_learning_rate=learning_rate,
        retrieval_share=retrieval_share,
        bf16=bf16,
        seed=seed,
    )
    recipe = {
        "distill": settings.what_is_computed(),
        "network": [LAYERS, WORD_PIECES, MAX_LENGTH, *WIDTHS],
        "teacher_steps": teacher_steps,
        "soft_texts": soft_texts,
        "content of texts": checksums.of_texts([*sentences.texts, *dev.texts, *pieces.texts]),
        "content of labels": checksums.of_texts(
            [str([sentences.labels, dev.labels, pieces.labels])]
        ),
        "content of base": checksums.of_tensors(encoder.state),
        "content of tokenizer": checksums.of_tokenizer(base_tokenizer),
        "content of start": None if trained is None else checksums.of_tensors(trained),
    }
    with logged_plainly(), claimed(work, recipe):
        texts = LabelledTexts(
            sentences.texts + pieces.texts[:soft_texts],
            sentences.labels + pieces.labels[:soft_texts],
        )
        mixed = LabelledTexts(
            sentences.texts * 2 + pieces.texts[-len(sentences) :],
            sentences.labels * 2 + pieces.labels[-len(sentences) :],
        )
        teacher = _teacher(
            base, work, base_tokenizer, mixed, steps=teacher_steps, bf16=bf16, seed=seed
        )
        on_dev = soft_labels(teacher, base_tokenizer, dev.texts, max_length=MAX_LENGTH)
        right = accuracy(torch.stack(on_dev), torch.tensor(dev.labels))
        log.info("teacher dev accuracy %.4f", right)
        logits = kept_soft_labels(
            work, teacher, base_tokenizer, texts.texts, max_length=MAX_LENGTH, bf16=bf16
        )
        targets = torch.stack(logits) + _own_labels(texts.labels, len(sentences))
        tokenizer, kept = cut_tokenizer(base_tokenizer, texts.texts[:40_000], WORD_PIECES)
        torch.manual_seed(seed)
        student = build_student(
            encoder, kept, layers=LAYERS, widths=WIDTHS, max_length=MAX_LENGTH, labels=LABELS
        )
        if trained is not None:
            start_from(student, trained, encoder, {i: i for i in range(len(kept))})
        lesson = Lesson(
            token_ids(tokenizer, texts.texts, MAX_LENGTH),
            Goals(targets),
            labelled_examples(tokenizer, dev, MAX_LENGTH),
            "dev accuracy",
        )
        train_student(
            student, tokenizer, lesson, settings, work, out, name="sentiment", evaluate_every=1000
        )


def _teacher(
    base: Path,
    work: Path,
    tokenizer: Tokenizer,
    texts: LabelledTexts,
    *,
    steps: int,
    bf16: bool,
    seed: int,
) -> PreTrainedModel:
    """The teacher, fine-tuned once and saved."""
    folder = work / "teacher"
    device = fastest_device()
    if not folder.exists():
        made = fine_tune(
            base,
            tokenizer,
            texts,
            labels=LABELS,
            steps=steps,
            batch_size=32,
            learning_rate=7e-5,
            max_length=MAX_LENGTH,
            bf16=bf16,
            seed=seed,
            device=device,
        )
        with built_whole(folder) as building:
            made.save_pretrained(building)
    teacher: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=False
    )
    teacher.to(device)  # type: ignore[arg-type]
    return teacher.eval()


def _own_labels(labels: Sequence[int], sentences: int) -> torch.Tensor:
    """What the texts' own labels add to the teacher's logits, [texts, labels]; sentences first."""
    own = one_hot(torch.tensor(labels), len(LABELS)).float() * 2 - 1
    # A person labelled each sentence; a piece has only the label of its whole review.
    weight = torch.full((len(labels), 1), REVIEW_LABEL_LOGIT)
    weight[:sentences] = 2 * REVIEW_LABEL_LOGIT
    return own * weight


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file: {error}") from None


if __name__ == "__main__":
    run(train)
