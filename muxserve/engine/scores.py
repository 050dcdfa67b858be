"""Logits in, labelled scores out, by the family's problem type."""

from dataclasses import dataclass

import numpy as np

from muxserve.models.family import FamilySpec


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of an answer and its score."""

    label: str
    score: float


def label_scores(logits: np.ndarray, spec: FamilySpec, *, raw: bool = False) -> list[LabelScore]:
    """Scores of every label, best first.

    Args:
        logits: [labels] float32.
        spec: the family; softmax for one label of many, sigmoid for several, else nothing.
        raw: give the logits themselves.
    """
    values = logits if raw else _activate(logits, spec.problem_type)
    return [
        LabelScore(spec.labels[i], float(values[i])) for i in np.argsort(-values, kind="stable")
    ]


def _activate(logits: np.ndarray, problem_type: str) -> np.ndarray:
    if problem_type == "single_label_classification":
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum())
    if problem_type == "multi_label_classification":
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))
    return logits
