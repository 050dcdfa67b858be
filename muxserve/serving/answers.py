"""Predictions in, the entries of an answer out: a label, its score, the N that served the text.

An entry is a plain dict, because it becomes JSON at once. It says when the text was cut.
"""

import math
from typing import Any

from muxserve.engine.request import Prediction
from muxserve.engine.scores import label_scores
from muxserve.models.family import FamilySpec
from muxserve.serving.schemas import ScoreFunction
from muxserve.serving.service import Answered

Entry = dict[str, Any]


def entries(
    answered: Answered, spec: FamilySpec, function: ScoreFunction | None = None
) -> list[list[Entry]]:
    """Entries of every text, best label first.

    Args:
        answered: the predictions of a request.
        spec: the family they came from.
        function: how logits become scores; None does as the family was trained.
    """
    return [
        _of_text(prediction, truncated, spec, function)
        for prediction, truncated in zip(answered.predictions, answered.truncated, strict=True)
    ]


def _of_text(
    prediction: Prediction, truncated: bool, spec: FamilySpec, function: ScoreFunction | None
) -> list[Entry]:
    scored = label_scores(prediction.logits, spec, raw=function is not None)
    scores = [one.score for one in scored]
    if function == "softmax":
        scores = _softmax(scores)
    elif function == "sigmoid":
        scores = [_sigmoid(score) for score in scores]
    cut = {"truncated": True} if truncated else {}
    n = prediction.num_instances
    return [
        {"label": one.label, "score": score, "num_instances": n, **cut}
        for one, score in zip(scored, scores, strict=True)
    ]


def _softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def _sigmoid(logit: float) -> float:
    # tanh does not overflow where exp(-logit) would.
    return 0.5 * (1.0 + math.tanh(0.5 * logit))
