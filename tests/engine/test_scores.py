"""Scores: the problem type decides how logits become scores."""

import numpy as np
import pytest

from muxserve.engine.scores import label_scores
from muxserve.models.family import FamilySpec, Member

LOGITS = np.array([0.0, 2.0, -1000.0], dtype=np.float32)


def spec(problem_type: str) -> FamilySpec:
    return FamilySpec(
        name="x",
        task="sequence-classification",
        problem_type=problem_type,
        labels=["a", "b", "c"],
        max_length=8,
        members=[Member(num_instances=1, path=".")],
    )


def test_one_label_of_many_is_a_softmax_best_first():
    scores = label_scores(LOGITS, spec("single_label_classification"))
    assert [score.label for score in scores] == ["b", "a", "c"]
    assert sum(score.score for score in scores) == pytest.approx(1)
    assert scores[0].score == pytest.approx(np.exp(2) / (1 + np.exp(2)))


def test_several_labels_are_sigmoids():
    scores = {
        s.label: s.score for s in label_scores(LOGITS[:2], spec("multi_label_classification"))
    }
    assert scores == pytest.approx({"a": 0.5, "b": 1 / (1 + np.exp(-2))})


@pytest.mark.parametrize(("problem_type", "raw"), [("regression", False), ("regression", True)])
def test_regression_and_raw_scores_are_the_logits(problem_type, raw):
    scores = label_scores(LOGITS, spec(problem_type), raw=raw)
    assert [score.score for score in scores] == [2.0, 0.0, -1000.0]
