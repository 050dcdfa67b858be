"""A request's array of token ids in, its texts out; errors name the input and the position."""

import json
from dataclasses import dataclass

import numpy as np

from muxserve.triton.runtime.facts import Facts


class Refused(ValueError):
    """A request cannot be answered; the message says which input, where, and what is expected."""


@dataclass(frozen=True)
class Options:
    """The options of a request, from Triton's request parameters.

    Attributes:
        max_num_instances: widest N that may answer, or None.
        isolation_key: texts with different keys never share a group.
    """

    max_num_instances: int | None = None
    isolation_key: str | None = None


def read_options(parameters: str, narrowest: int) -> Options:
    """The options in a request's parameters, which are JSON; other parameters are ignored.

    Raises:
        Refused: a value is invalid.
    """
    values = json.loads(parameters) if parameters else {}
    cap = values.get("max_num_instances")
    key = values.get("isolation_key")
    if cap is not None:
        if not isinstance(cap, int) or isinstance(cap, bool):
            raise Refused(f"parameter max_num_instances: expected an integer, got {cap!r}")
        if cap < narrowest:
            raise Refused(
                f"parameter max_num_instances: the narrowest N here is {narrowest}, got {cap}"
            )
    if key is not None and not isinstance(key, str):
        raise Refused(f"parameter isolation_key: expected a string, got {key!r}")
    return Options(cap, key)


def read_rows(name: str, ids: np.ndarray, facts: Facts) -> list[np.ndarray]:
    """The token ids of each text of a request, without the padding at its end.

    Args:
        name: name of the input, for messages.
        ids: [texts, tokens] integers.
        facts: the model's facts.

    Raises:
        Refused: an id is outside the vocabulary, or a text is too long or has no tokens.
    """
    if ids.ndim != 2:
        raise Refused(f"{name}: expected shape [texts, tokens], got {list(ids.shape)}")
    wrong = np.argwhere((ids < 0) | (ids >= facts.vocab_size))
    if len(wrong):
        row, column = map(int, wrong[0])
        raise Refused(
            f"{name}[{row}, {column}] is {int(ids[row, column])}, "
            f"expected a token id from 0 to {facts.vocab_size - 1}"
        )
    is_token = ids != facts.pad_id
    lengths = np.where(is_token.any(axis=1), ids.shape[1] - is_token[:, ::-1].argmax(axis=1), 0)
    for row, length in enumerate(lengths.tolist()):
        if not length:
            raise Refused(f"{name}[{row}] has no tokens, only padding (id {facts.pad_id})")
        if length > facts.max_length:
            raise Refused(
                f"{name}[{row}] has {length} tokens, the model takes at most {facts.max_length}; "
                "shorten the text"
            )
    return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]
