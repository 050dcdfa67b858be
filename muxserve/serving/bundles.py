"""What travels between an ingress and a replica: requests as one bundle, their answers as another.

A bundle is a flat array of token ids, and its answer one of logits. Pure functions over values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muxserve.engine.request import Outcome, Prediction, RequestOptions, Tokens
from muxserve.errors import MuxserveError
from muxserve.serving.demand import HeldBack


@dataclass(frozen=True, slots=True)
class BundledRequest:
    """One request of a bundle.

    Attributes:
        texts: how many of the bundle's texts belong to it.
        max_num_instances, isolation_key, caller, weight: as in ``RequestOptions``.
        remaining_s: seconds to its deadline when the bundle was sent; processes share no clock.
    """

    texts: int
    max_num_instances: int | None
    isolation_key: str | None
    remaining_s: float | None
    caller: str
    weight: float


@dataclass(frozen=True, slots=True)
class Bundle:
    """Texts of several requests, for one call.

    Attributes:
        ids: [sum of lengths] int32, the texts' token ids one after another.
        lengths: [texts] int32.
        requests: in the order of their texts.
        held_back: what its sender did not send, for autoscaling.
    """

    ids: np.ndarray
    lengths: np.ndarray
    requests: tuple[BundledRequest, ...]
    held_back: HeldBack | None = None


@dataclass(frozen=True, slots=True)
class BundleAnswer:
    """Outcomes of a bundle's texts.

    Attributes:
        logits: [texts, labels] float32, zeros where a text failed; or the tokens of all texts,
            [sum of tokens, labels].
        tokens: [texts] int32, how many tokens of each text are in ``logits``; None where its rows
            are texts.
        num_instances: [texts] int32.
        errors: by index of text.
    """

    logits: np.ndarray
    tokens: np.ndarray | None
    num_instances: np.ndarray
    errors: dict[int, MuxserveError]


def pack(
    requests: Sequence[tuple[Sequence[Tokens], RequestOptions]],
    now_s: float,
    held_back: HeldBack | None = None,
) -> Bundle:
    """Requests as a bundle; ``now_s`` is on ``time.monotonic()``'s clock."""
    texts = [one.ids for tokens, _ in requests for one in tokens]
    return Bundle(
        np.concatenate(texts).astype(np.int32),
        np.fromiter(map(len, texts), np.int32, len(texts)),
        tuple(
            BundledRequest(
                len(tokens),
                options.max_num_instances,
                options.isolation_key,
                None if options.deadline_s is None else options.deadline_s - now_s,
                options.caller,
                options.weight,
            )
            for tokens, options in requests
        ),
        held_back,
    )


def unpack(bundle: Bundle, now_s: float) -> list[tuple[list[Tokens], RequestOptions]]:
    """A bundle's requests, their deadlines on this process's clock."""
    # What Ray hands over is read-only, and the engine wants int64: one copy does for both.
    ids = bundle.ids.astype(np.int64)
    texts = np.split(ids, np.cumsum(bundle.lengths)[:-1])
    requests, start = [], 0
    for request in bundle.requests:
        remaining_s = request.remaining_s
        options = RequestOptions(
            request.max_num_instances,
            None if remaining_s is None else now_s + remaining_s,
            request.isolation_key,
            request.caller,
            request.weight,
        )
        end = start + request.texts
        requests.append(([Tokens(one) for one in texts[start:end]], options))
        start = end
    return requests


def pack_answer(outcomes: Sequence[Outcome], labels: int, *, of_tokens: bool) -> BundleAnswer:
    """Outcomes of every text of a bundle as one answer.

    Args:
        outcomes: of each text.
        labels: labels that the family has.
        of_tokens: whether tokens are labelled, and not texts.
    """
    nothing = np.zeros((0, labels) if of_tokens else labels, np.float32)
    logits = [nothing] * len(outcomes)
    num_instances = np.zeros(len(outcomes), np.int32)
    errors: dict[int, MuxserveError] = {}
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, MuxserveError):
            errors[index] = outcome
        else:
            logits[index] = outcome.logits
            num_instances[index] = outcome.num_instances
    if not of_tokens:
        return BundleAnswer(np.stack(logits), None, num_instances, errors)
    tokens = np.fromiter(map(len, logits), np.int32, len(logits))
    return BundleAnswer(np.concatenate(logits), tokens, num_instances, errors)


def unpack_answer(answer: BundleAnswer) -> list[Outcome]:
    """The outcome of each text of a bundle."""
    rows: Sequence[np.ndarray] | np.ndarray = answer.logits
    if answer.tokens is not None:
        rows = np.split(answer.logits, np.cumsum(answer.tokens)[:-1])
    predictions = zip(rows, answer.num_instances.tolist(), strict=True)
    return [
        answer.errors.get(index) or Prediction(logits, n)
        for index, (logits, n) in enumerate(predictions)
    ]
