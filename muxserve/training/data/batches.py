"""Texts in, batches of token ids out: whole groups of texts of similar length."""

import random
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Encoding, Tokenizer

#: Batches whose rows are sorted by length together: more of them are closer in length, and an epoch
#: is less random.
_POOL_BATCHES = 50


def encoded(
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    max_length: int,
    side: str = "right",
) -> list[Encoding]:
    """Encode texts or pairs with special tokens, cut to ``max_length`` tokens at ``side``."""
    tokenizer.enable_truncation(max_length, direction=side)
    tokenizer.no_padding()
    return list(tokenizer.encode_batch(list(texts)))


def token_ids(
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    max_length: int,
    side: str = "right",
) -> list[list[int]]:
    """The token ids of each text or pair, as ``encoded`` has them."""
    return [encoding.ids for encoding in encoded(tokenizer, texts, max_length, side)]


def pad_batch(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    length: int | None = None,
    *,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of token ids to ids and mask, both [B, length] int64.

    The length is the longest row's by default.
    """
    longest = length or max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def near_length_batches(
    lengths: Sequence[int], size: int, rng: random.Random
) -> Iterator[list[int]]:
    """Yield batches of ``size`` indices of similar length without end, epoch after epoch."""
    while True:
        yield from near_length_epoch(lengths, size, rng)


def near_length_epoch(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield one epoch of batches of ``size`` indices of similar length, in random order.

    Each epoch is a new permutation, so a row also gets other partners in its group. Rows that do
    not fill a batch are left out.

    Raises:
        ValueError: if there are fewer rows than one batch takes.
    """
    if size > len(lengths):
        raise ValueError(f"{len(lengths)} texts do not fill a batch of {size}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    for start in range(0, len(order), size * _POOL_BATCHES):
        chunk = sorted(order[start : start + size * _POOL_BATCHES], key=lambda i: lengths[i])
        batches = [chunk[i : i + size] for i in range(0, len(chunk) - size + 1, size)]
        rng.shuffle(batches)
        for batch in batches:
            rng.shuffle(batch)
            yield batch
