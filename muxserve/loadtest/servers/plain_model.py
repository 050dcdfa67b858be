"""What every peer serves: a plain BERT classifier with random weights, for timing only."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForSequenceClassification

from muxserve.models.family import Family

LABELS = ("negative", "positive")


def write_plain_model(
    folder: Path,
    tokenizer_file: Path,
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    vocab: int,
    max_length: int,
    seed: int = 0,
) -> Path:
    """Write a BERT classifier of ``LABELS`` with random weights, and its tokenizer.

    ``AutoTokenizer`` and ``AutoModelForSequenceClassification`` of transformers 4 and 5 load it.

    Args:
        folder: made if need be.
        tokenizer_file: a ``tokenizer.json`` with ``[PAD]``, ``[UNK]``, ``[CLS]`` and ``[SEP]``.
        hidden: size of the hidden states.
        layers: number of encoder layers.
        heads: attention heads.
        intermediate: size inside the feed-forward layers.
        vocab: rows of the word embedding.
        max_length: most tokens of a text; longer ones are cut.
        seed: of the weights.

    Returns:
        The folder, for convenience.

    Raises:
        ValueError: the tokenizer has more tokens than ``vocab``.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    if (tokens := tokenizer.get_vocab_size()) > vocab:
        raise ValueError(f"vocab is {vocab}, but {tokenizer_file} has {tokens} tokens")
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        # Said outright, because infinity takes a config without labels for a reranker's.
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    # Not by save_pretrained: version 5 names a class that version 4 does not know.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def write_plain_model_like(folder: Path, family: Path) -> Path:
    """Write a plain model of a family's size, with the family's tokenizer."""
    config = Family.load(family, [1]).models[1].config
    return write_plain_model(
        folder,
        family / "tokenizer.json",
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        max_length=config.max_position_embeddings,
    )
