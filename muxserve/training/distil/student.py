"""A student cut from a pretrained encoder: fewer layers, only the frequent word pieces, new parts.

In: a plain encoder and its fast tokenizer. Out: a multiplexed model whose encoder and embeddings
start from the pretrained ones, and a tokenizer for the smaller vocabulary.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from muxserve.models import MuxBertConfig, MuxElectraConfig
from muxserve.models.demultiplexers import HadamardGate
from muxserve.models.multiplexers import GaussianHadamard
from muxserve.models.spec import Task
from muxserve.training.pretrained import PlainEncoder, Student

#: Settings of every distilled student: what docs/training.md found to work.
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
    """Build a student with the settings of ``NETWORK``.

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


def cut_tokenizer(
    tokenizer: Tokenizer, texts: Sequence[str], size: int
) -> tuple[Tokenizer, list[int]]:
    """Keep the special tokens, every single character and the most frequent word pieces of texts.

    Args:
        tokenizer: a WordPiece tokenizer.
        texts: where frequency is counted.
        size: word pieces kept.

    Returns:
        The tokenizer of the smaller vocabulary, without padding or truncation, and the old id of
        each of its tokens, in order.

    Raises:
        ValueError: for a tokenizer of another kind, or fewer word pieces than are always kept.
    """
    spec = json.loads(tokenizer.to_str())
    if spec["model"]["type"] != "WordPiece":
        raise ValueError(
            f"only a WordPiece vocabulary can be cut, this tokenizer is {spec['model']['type']}"
        )
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(list(texts[start : start + 1000])):
            counts.update(encoding.ids)
    # Added tokens may stand outside of the vocabulary.
    always = {token["id"] for token in spec["added_tokens"]}
    always |= {old for piece, old in vocabulary.items() if len(piece.removeprefix("##")) == 1}
    if len(always) > size:
        raise ValueError(
            f"word_pieces: {size} are too few: special tokens and single characters alone are "
            f"{len(always)}"
        )
    frequent = [old for old, _ in counts.most_common()]
    kept = list(dict.fromkeys([*sorted(always), *frequent]))[:size]
    kept.sort()
    new_id = {old: new for new, old in enumerate(kept)}
    spec["model"]["vocab"] = {
        piece: new_id[old] for piece, old in vocabulary.items() if old in new_id
    }
    for token in spec["added_tokens"]:
        token["id"] = new_id[token["id"]]
    processor = spec["post_processor"] or {}
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [new_id[old] for old in entry["ids"]]
    for end in ("cls", "sep"):
        if end in processor:
            processor[end][1] = new_id[processor[end][1]]
    spec["padding"] = spec["truncation"] = None
    return Tokenizer.from_str(json.dumps(spec)), kept


def cut_student(
    encoder: PlainEncoder,
    config: MuxBertConfig | MuxElectraConfig,
    layers: Sequence[int],
    kept: Sequence[int],
    task: Task = "sequence-classification",
) -> Student:
    """A multiplexed model that starts from some layers and word pieces of a pretrained one.

    Slot 0's key is all ones and the other keys are random signs. So N=1 and the first slot start
    close to what the pretrained encoder knows, and keys are as far apart as random ones can be.

    Args:
        encoder: what it is cut from.
        config: of the student, see ``PlainEncoder.config``.
        layers: the layers kept, by number.
        kept: the old id of each word piece, in order.
        task: what the student is for.

    Raises:
        ValueError: if config and the cut disagree on layers or vocabulary.
    """
    if config.num_hidden_layers != len(layers) or config.vocab_size != len(kept):
        raise ValueError(
            f"config has {config.num_hidden_layers} layers and {config.vocab_size} word pieces; "
            f"the cut keeps {len(layers)} and {len(kept)}"
        )
    student = encoder.student(config, task)
    state = student.backbone.state_dict()
    for key in state:
        source = key
        if key.startswith("encoder.layer."):
            _, _, index, rest = key.split(".", 3)
            source = f"encoder.layer.{layers[int(index)]}.{rest}"
        value = encoder.state[source]
        if key == "embeddings.word_embeddings.weight":
            value = value[list(kept)]
        elif key == "embeddings.position_embeddings.weight":
            value = value[: config.max_position_embeddings]
        state[key] = value
    student.backbone.load_state_dict(state)
    signs = torch.randint(0, 2, (config.num_instances, config.hidden_size)) * 2.0 - 1.0
    signs[0] = 1
    multiplexer, demultiplexer = student.multiplexer, student.demultiplexer
    with torch.no_grad():
        if isinstance(multiplexer, GaussianHadamard):
            multiplexer.instance_embedding.copy_(signs[:, : config.embedding_width])
        if isinstance(demultiplexer, HadamardGate):
            demultiplexer.gate_scale.copy_(signs)
    return student


def spread(count: int, available: int) -> list[int]:
    """Pick ``count`` of ``available`` layers, spread evenly from the first to the last."""
    if count == 1:
        return [available - 1]
    return [round(i * (available - 1) / (count - 1)) for i in range(count)]
