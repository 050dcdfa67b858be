"""Checksums of what a run reads: a run does not resume after any of it has changed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from datasets import Dataset

#: Config entries that say where a model was read from and what wrote it.
_NOT_THE_NETWORK = ("_name_or_path", "transformers_version")


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over tensors: their names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_model(model: PreTrainedModel) -> str:
    """SHA-256 over a model's weights and its config, label names included."""
    config = model.config.to_dict()
    told = {key: value for key, value in config.items() if key not in _NOT_THE_NETWORK}
    described = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256((described + of_tensors(model.state_dict())).encode()).hexdigest()


def of_tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 over a tokenizer, whatever truncation and padding it was last set to."""
    stored = json.loads(tokenizer.to_str())
    stored["truncation"] = stored["padding"] = None
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def of_texts(texts: Sequence[str]) -> str:
    """SHA-256 over texts in order; it tells which data a figure was measured on."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def of_dataset(part: "Dataset", columns: list[str]) -> str:
    """SHA-256 over some columns of a data set, row by row, and over their label names."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{column} {part.features[column]}\0".encode())
    for batch in part.select_columns(columns).iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return digest.hexdigest()
