"""Fixtures shared by all tests."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from muxserve.models import (
    MuxBertConfig,
    MuxBertForSequenceClassification,
    MuxBertForTokenClassification,
)
from muxserve.models.family import FamilySpec, Member, Task, write_spec

# Where the tests run in the background of a script, Ctrl-C is ignored, and every server that they
# start would inherit that and never end on it.
signal.signal(signal.SIGINT, signal.default_int_handler)

WIDTHS = [1, 2, 5]
MAX_LENGTH = 32
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "the", "not", "very"]
PIECES += [f"{mark}{character}" for mark in ("", "##") for character in "bcdefghijklmnopqrstuvwxyz"]


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer with a few words and every letter."""
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(PIECES[:4])
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def tiny_config(**changes) -> MuxBertConfig:
    """Two layers of 32, one set of weights for N = 1, 2 and 5."""
    settings = {
        "vocab_size": len(PIECES),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_LENGTH,
        "trained_length": MAX_LENGTH,
        "num_instances": WIDTHS[-1],
        "widths": WIDTHS,
        "plain_single": True,
        "gaussian_hadamard_norm": 32**0.5,
        "demuxing_variant": "hadamard_gate",
        "pooling": "mean",
        "classifier_head": "dense",
        "id2label": {0: "negative", 1: "positive"},
        "label2id": {"negative": 0, "positive": 1},
    }
    return MuxBertConfig(**{**settings, **changes})


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family folder with random weights that serves N = 1, 2 and 5; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    MuxBertForSequenceClassification(tiny_config()).save_pretrained(folder / "weights")
    write_family(folder, "sequence-classification", ["negative", "positive"])
    return folder


def tiny_plain_config(**more: Any) -> BertConfig:
    """Of a plain classifier that is even smaller."""
    return BertConfig(
        vocab_size=len(PIECES),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        **more,
    )


def tiny_bert(layers: int) -> BertModel:
    """A plain encoder with random weights, for students to be cut from."""
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=len(PIECES),
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
        )
    )


TAGS = ["ADJ", "NOUN", "VERB"]


@pytest.fixture(scope="session")
def tiny_token_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family folder with random weights that labels words at N = 1, 2 and 5."""
    folder = tmp_path_factory.mktemp("tiny-tokens")
    torch.manual_seed(0)
    names = dict(enumerate(TAGS))
    config = tiny_config(id2label=names, label2id={name: i for i, name in names.items()})
    MuxBertForTokenClassification(config).save_pretrained(folder / "weights")
    write_family(folder, "token-classification", TAGS)
    return folder


def write_family(folder: Path, task: Task, labels: list[str]) -> None:
    """Tokenizer and ``family.json`` beside ``weights``."""
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    members = [Member(num_instances=n, path="weights") for n in WIDTHS]
    spec = FamilySpec(
        name=folder.name.rstrip("0123456789"),
        task=task,
        labels=labels,
        max_length=MAX_LENGTH,
        members=members,
    )
    write_spec(folder, spec)


def program(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A ``muxserve`` command as a user would type it, run in ``folder``."""
    arguments = shlex.split(command)
    assert arguments[0] == "muxserve"
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
