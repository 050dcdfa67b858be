"""Train the shipped sentiment family: ``python -m muxserve.training.sentiment --help``.

Teacher, soft labels, student and multiplexed distillation, each stage kept in the work folder, so
that a run that was stopped goes on with the stage it was in.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

from muxserve.training.data import LabelledTexts
from muxserve.training.distillation import build_student, save_family
from muxserve.training.evaluation import labelled_examples, watch
from muxserve.training.goals import Goals
from muxserve.training.growth import start_from
from muxserve.training.multiplex import DistillSettings, distill
from muxserve.training.pretrained import plain_encoder
from muxserve.training.sentiment_data import LABELS, chunks, held_out, training_reviews
from muxserve.training.student import cut_tokenizer
from muxserve.training.teacher import accuracy, fine_tune, soft_labels, token_ids

log = logging.getLogger(__name__)

WIDTHS = [1, 2, 5, 10]
LAYERS = 6
WORD_PIECES = 12_000
MAX_LENGTH = 128
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
    """Train every width of the sentiment family from a pretrained BERT, resuming where possible."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    work.mkdir(parents=True, exist_ok=True)
    sentences, reviews = training_reviews()
    sentences, dev = held_out(sentences, 1000, seed)
    pieces, _ = held_out(chunks(reviews, seed), 0, seed)

    targets, texts = _soft_targets(
        base,
        work,
        sentences,
        pieces,
        dev,
        teacher_steps=teacher_steps,
        size=soft_texts,
        bf16=bf16,
        seed=seed,
    )
    tokenizer, kept = cut_tokenizer(
        Tokenizer.from_file(str(base / "tokenizer.json")), texts[:40_000], WORD_PIECES
    )
    torch.manual_seed(seed)
    encoder = plain_encoder(AutoModel.from_pretrained(base, add_pooling_layer=False))
    student = build_student(
        encoder,
        kept,
        layers=LAYERS,
        widths=WIDTHS,
        max_length=MAX_LENGTH,
        labels=LABELS,
    )
    if start is not None:
        start_from(student, load_file(start), encoder, {i: i for i in range(len(kept))})
    rows = token_ids(tokenizer, texts, MAX_LENGTH)
    settings = DistillSettings(
        steps=steps,
        encoder_learning_rate=learning_rate,
        retrieval_share=retrieval_share,
        bf16=bf16,
        seed=seed,
    )
    distill(
        student,
        rows,
        Goals(targets),
        settings,
        work / "distil.pt",
        evaluate=watch(student, labelled_examples(tokenizer, dev, MAX_LENGTH), "dev accuracy"),
        evaluate_every=1000,
    )
    save_family(student, tokenizer, out, name="sentiment")


def _soft_targets(
    base: Path,
    work: Path,
    sentences: LabelledTexts,
    pieces: LabelledTexts,
    dev: LabelledTexts,
    *,
    teacher_steps: int,
    size: int,
    bf16: bool,
    seed: int,
) -> tuple[torch.Tensor, list[str]]:
    """Teacher logits [texts, labels] of sentences and pieces, with what their own labels add."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    texts = sentences.texts + pieces.texts[:size]
    labels = sentences.labels + pieces.labels[:size]
    file = work / "soft_labels.safetensors"
    if not file.exists():
        folder = work / "teacher"
        if not (folder / "config.json").exists():
            mixed = LabelledTexts(
                sentences.texts * 2 + pieces.texts[-len(sentences) :],
                sentences.labels * 2 + pieces.labels[-len(sentences) :],
            )
            teacher = fine_tune(
                base,
                tokenizer,
                mixed,
                labels=LABELS,
                steps=teacher_steps,
                batch_size=32,
                learning_rate=7e-5,
                max_length=MAX_LENGTH,
                bf16=bf16,
                seed=seed,
            )
            teacher.save_pretrained(folder)
        teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        on_dev = soft_labels(teacher, tokenizer, dev.texts, max_length=MAX_LENGTH)
        log.info("teacher dev accuracy %.4f", accuracy(torch.stack(on_dev), dev.labels))
        logits = soft_labels(teacher, tokenizer, texts, max_length=MAX_LENGTH, bf16=bf16)
        save_file({"logits": torch.stack(logits)}, file)
    stored = load_file(file)["logits"]
    own = torch.nn.functional.one_hot(torch.tensor(labels), len(LABELS)).float() * 2 - 1
    # A sentence's own label is a person's word on that sentence; a piece's is its review's.
    weight = torch.full((len(labels), 1), REVIEW_LABEL_LOGIT)
    weight[: len(sentences)] = 2 * REVIEW_LABEL_LOGIT
    return stored + own * weight, texts


if __name__ == "__main__":
    typer.run(train)
