"""Logits in, labelled scores out, by the family's problem type; and the answers they make up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muxserve.engine.request import Word
from muxserve.models.family import FamilySpec


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of an answer and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class WordLabel:
    """A word of an answer, its best label and that label's score."""

    word: Word
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one text.

    Attributes:
        labels: every label with its score, best first.
        num_instances: the N that served it.
        truncated: whether the text was cut to the family's maximum.
    """

    labels: list[LabelScore]
    num_instances: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Tagging:
    """The answer to one text whose words are labelled.

    Attributes:
        words: each word with its best label, in order.
        num_instances: the N that served it.
        truncated: whether the text was cut to the family's maximum.
    """

    words: list[WordLabel]
    num_instances: int
    truncated: bool


def word_labels(
    logits: np.ndarray, words: Sequence[Word], spec: FamilySpec, *, raw: bool = False
) -> list[WordLabel]:
    """The best label of each word.

    Args:
        logits: [tokens, labels] float32.
        words: of the text.
        spec: the family.
        raw: give logits as scores, instead of probabilities.
    """
    answers = []
    for word in words:
        values = logits[word.first].tolist()
        if not raw:
            values = _activate(values, spec.problem_type)
        best = max(range(len(values)), key=values.__getitem__)
        answers.append(WordLabel(word, spec.labels[best], values[best]))
    return answers


def label_scores(logits: np.ndarray, spec: FamilySpec, *, raw: bool = False) -> list[LabelScore]:
    """Scores of every label, best first.

    Args:
        logits: [labels] float32.
        spec: the family; softmax for one label of many, sigmoid for several, else nothing.
        raw: give the logits themselves.
    """
    values = logits.tolist()
    if not raw:
        values = _activate(values, spec.problem_type)
    best_first = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    return [LabelScore(spec.labels[i], values[i]) for i in best_first]


def _activate(logits: list[float], problem_type: str) -> list[float]:
    # Lists: for a handful of labels, Python is several times as fast as numpy.
    if problem_type == "single_label_classification":
        return softmax(logits)
    if problem_type == "multi_label_classification":
        return [sigmoid(logit) for logit in logits]
    return logits


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of one label of many."""
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logit: float) -> float:
    """Probability of one label by itself."""
    # tanh does not overflow where exp(-logit) would.
    return 0.5 * (1.0 + math.tanh(0.5 * logit))
