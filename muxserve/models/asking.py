"""A plain model in, what it can be served with out: found by running it, not from a list of types.

It takes as many tokens as the longest text that it answers: many types count positions from the
padding id on, and have fewer than their config says. It is refused if a text's answer depends on
padding, or on the texts beside it or before it, or if a token inside a text ends the text.
"""

import copy
import inspect
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from muxserve.errors import FamilyError, first_line

#: Fields that state how many tokens a model takes; the first one found counts.
_STATED = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
#: Most tokens of a text if neither config nor tokenizer states it.
DEFAULT_TOKENS = 512
#: Most tokens that a model is tried with unless more are asked for.
MOST_ASKED = 8192
#: Two answers are equal within this, absolute and relative to the largest logit.
_CLOSE = 2e-5
#: Tokens of a short text.
_SHORT = 8
#: Lower ids are often special tokens.
_LOW_IDS = 8


def stated_positions(config: PreTrainedConfig) -> int | None:
    """Number of positions that a config states; None if it does not."""
    text: Any = config.get_text_config()
    for field in _STATED:
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def usable_positions(config: PreTrainedConfig, wanted: int | None = None) -> int:
    """Most tokens of a text that a plain model of this config takes, at most ``wanted``.

    One layer of such a model is tried, with weights drawn at random.
    """
    stated = stated_positions(config)
    limit = min(wanted or MOST_ASKED, stated or wanted or DEFAULT_TOKENS)
    # Even a model that counts from its padding id has enough room then.
    if limit > MOST_ASKED or (stated and limit + (config.pad_token_id or 0) + 1 <= stated):
        return limit
    with torch.random.fork_rng(devices=[]):
        try:
            model = AutoModel.from_config(_small(config), trust_remote_code=False).eval()
            rows = _Rows(model.config)
            _forward(model, rows.batch([min(_SHORT, limit)]))
        except Exception:  # a failure of one layer says nothing about the model
            return limit
        return _longest(model, rows, limit)


def ask(model: PreTrainedModel, limit: int, *, shortest: int = 1) -> int:
    """Most tokens of a text that a plain classifier takes, at most ``limit``.

    Args:
        model: in eval mode.
        limit: tokens asked for.
        shortest: tokens of the shortest text, special tokens included.

    Raises:
        FamilyError: if it cannot be served at all, with its type and the reason.
    """
    kind = str(model.config.model_type)
    if "attention_mask" not in inspect.signature(model.forward).parameters:
        raise FamilyError(f"{kind} cannot be served: it takes no attention mask, so padding counts")
    rows = _Rows(model.config)
    short = max(shortest, min(_SHORT, limit))
    # The longest text comes first: a short one changes some models for good.
    length = _longest(model, rows, limit)
    if length < shortest:
        _forward_or_refuse(model, rows.batch([short]), kind)
        raise FamilyError(f"{kind} cannot be served: it takes {length} tokens")
    first = _forward_or_refuse(model, rows.batch([length]), kind)
    _check_logits(model, first, length, kind)
    _check_tokens(model, rows, min(short, length), kind)
    _check_padding(model, rows, length, shortest, kind)
    again = _forward_or_refuse(model, rows.batch([length]), kind)
    if not _same(first, again):
        raise FamilyError(
            f"{kind} cannot be served: its answer to a text changes with what it answered before"
        )
    return length


class _Rows:
    """Rows of random tokens, none of them padding; row ``i`` is always the same."""

    def __init__(self, config: PreTrainedConfig) -> None:
        text: Any = config.get_text_config()
        self.pad = int(config.pad_token_id or 0)
        self.end = _first_id(config.eos_token_id)
        special = {self.pad, self.end}
        special |= {_first_id(getattr(text, f"{one}_token_id", None)) for one in ("bos", "sep")}
        # The first ids are skipped: some types treat one of them as padding, whatever their config
        # says, and would count fewer positions.
        pieces = int(text.vocab_size)
        some = range(min(_LOW_IDS, pieces // 2), min(_LOW_IDS + 1000, pieces))
        ordinary = [one for one in some if one not in special]
        self.ordinary = torch.tensor(ordinary or [0])

    def row(self, length: int, index: int) -> torch.Tensor:
        """[length] ids; the last is the token that ends a text, if there is one."""
        drawn = torch.Generator().manual_seed(index)
        ids = self.ordinary[torch.randint(len(self.ordinary), (length,), generator=drawn)]
        if self.end is not None and length > 1:
            ids[-1] = self.end
        return ids

    def batch(self, lengths: list[int], first: int = 0) -> dict[str, torch.Tensor]:
        """Rows ``first``, ``first + 1``, ..., padded on the right to the longest, as served."""
        ids = torch.full((len(lengths), max(lengths)), self.pad)
        mask = torch.zeros_like(ids)
        for index, length in enumerate(lengths):
            ids[index, :length] = self.row(length, first + index)
            mask[index, :length] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _first_id(value: Any) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) else None


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with one layer, and only as many pieces as its special tokens need."""
    small: Any = copy.deepcopy(config)
    highest = max(
        (
            value
            for key, value in small.to_dict().items()
            if key.endswith("token_id") and isinstance(value, int)
        ),
        default=0,
    )
    if hasattr(small, "num_hidden_layers"):
        small.num_hidden_layers = 1
    small.vocab_size = min(small.vocab_size, highest + 1 + 2 * _LOW_IDS)
    return small


def _forward(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """Logits in float32, or None if the model has none."""
    with torch.inference_mode():
        output = model(**batch)
    logits = getattr(output, "logits", None)
    return None if logits is None else logits.float()


def _forward_or_refuse(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], kind: str
) -> torch.Tensor:
    try:
        logits = _forward(model, batch)
    except Exception as error:  # a network may raise anything
        rows, length = batch["input_ids"].shape
        texts = "a text" if rows == 1 else f"{rows} texts"
        raise FamilyError(
            f"{kind} cannot be served: it fails on {texts} of {length} tokens: {first_line(error)}"
        ) from None
    if logits is None:
        raise FamilyError(f"{kind} cannot be served: it gives no logits")
    return logits


def _works(model: PreTrainedModel, rows: _Rows, length: int) -> bool:
    try:
        _forward(model, rows.batch([length]))
    except Exception:  # a network may raise anything where its positions end
        return False
    return True


def _longest(model: PreTrainedModel, rows: _Rows, limit: int) -> int:
    """Tokens of the longest text up to ``limit`` that the model answers; 0 if it answers none."""
    if _works(model, rows, limit):
        return limit
    fails, step = limit, 1
    # Usually only a token or two are too many, so the search begins at the top.
    while limit - step > 0 and not _works(model, rows, limit - step):
        fails, step = limit - step, step * 2
    works = max(0, limit - step)
    while fails - works > 1:
        middle = (works + fails) // 2
        if _works(model, rows, middle):
            works = middle
        else:
            fails = middle
    return works


def _check_tokens(model: PreTrainedModel, rows: _Rows, length: int, kind: str) -> None:
    """Refuse a model that fails if a text contains the token that ends texts."""
    if rows.end is None or length < 3:
        return
    batch = rows.batch([length, length])
    before = _forward_or_refuse(model, batch, kind)
    batch["input_ids"][0, 1] = rows.end
    try:
        after = _forward(model, batch)
    except Exception as error:
        raise FamilyError(
            f"{kind} cannot be served: a text that has the end token {rows.end} in it makes the "
            f"texts beside it fail: {first_line(error)}"
        ) from None
    if after is None or not _same(after[1], before[1]):
        raise FamilyError(
            f"{kind} cannot be served: a text that has the end token {rows.end} in it changes the "
            "answers to others"
        )


def _check_logits(model: PreTrainedModel, logits: torch.Tensor, length: int, kind: str) -> None:
    labels = int(model.config.num_labels or 0)
    of_tokens = type(model).__name__.endswith("ForTokenClassification")
    expected = [1, length, labels] if of_tokens else [1, labels]
    if list(logits.shape) != expected:
        raise FamilyError(
            f"{kind} cannot be served: its logits are {list(logits.shape)}, expected {expected}"
        )
    if not bool(logits.isfinite().all()):
        raise FamilyError(f"{kind} cannot be served: it gives logits that are no numbers")


def _check_padding(
    model: PreTrainedModel, rows: _Rows, length: int, shortest: int, kind: str
) -> None:
    """Refuse a model that gives a text other logits in a padded batch than alone."""
    pairs = {(shortest, min(length, shortest + 5)), (min(5, length), min(16, length))}
    pairs |= {(length // 2, length)}
    for short, long in sorted(pairs, key=sum, reverse=True):
        if short < shortest:
            continue
        both = _forward_or_refuse(model, rows.batch([short, long], first=1), kind)
        for index, own in enumerate((short, long)):
            alone = _forward_or_refuse(model, rows.batch([own], first=1 + index), kind)[0]
            batched = both[index][: len(alone)] if alone.dim() == 2 else both[index]
            if not _same(batched, alone):
                difference = float((batched - alone).abs().max())
                raise FamilyError(
                    f"{kind} cannot be served: a text of {own} tokens gets other logits beside "
                    f"one of {short + long - own} than alone (by {difference:.1g}), as padding or "
                    "the other text changes its result"
                )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(
        (one - other).abs().max() <= _CLOSE * max(1.0, float(one.abs().max()))
    )
