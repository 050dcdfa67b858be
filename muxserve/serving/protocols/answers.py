"""Predictions in, the entries of an answer out: a label, its score, the N that served the text.

An entry is a plain dict, because it becomes JSON at once. It says when the text was cut.
"""

from typing import Any

from muxserve.engine.request import Prediction, Tokens
from muxserve.engine.scores import label_scores, sigmoid, softmax, word_labels
from muxserve.models.family import FamilySpec
from muxserve.serving.protocols.schemas import ScoreFunction
from muxserve.serving.service import Answered

AnswerEntry = dict[str, Any]


def entries(
    answered: Answered, spec: FamilySpec, function: ScoreFunction | None = None
) -> list[list[AnswerEntry]]:
    """Entries of every text: of its labels, best first, or of its words, in order.

    Args:
        answered: the predictions of a request.
        spec: the family they came from.
        function: how logits become scores; None does as the family was trained.
    """
    of_one = _of_words if spec.of_tokens else _of_text
    return [
        of_one(prediction, tokens, spec, function)
        for prediction, tokens in zip(answered.predictions, answered.tokens, strict=True)
    ]


def _of_text(
    prediction: Prediction, tokens: Tokens, spec: FamilySpec, function: ScoreFunction | None
) -> list[AnswerEntry]:
    scored = label_scores(prediction.logits, spec, raw=function is not None)
    scores = [one.score for one in scored]
    if function == "softmax":
        scores = softmax(scores)
    elif function == "sigmoid":
        scores = [sigmoid(score) for score in scores]
    served = _served(prediction, tokens)
    return [
        {"label": one.label, "score": score, **served}
        for one, score in zip(scored, scores, strict=True)
    ]


def _of_words(
    prediction: Prediction, tokens: Tokens, spec: FamilySpec, function: ScoreFunction | None
) -> list[AnswerEntry]:
    served = _served(prediction, tokens)
    return [
        {
            "label": one.label,
            "score": one.score,
            "word": one.word.text,
            "start": one.word.start,
            "end": one.word.end,
            **served,
        }
        for one in word_labels(prediction.logits, tokens.words, spec, raw=function == "none")
    ]


def _served(prediction: Prediction, tokens: Tokens) -> AnswerEntry:
    served: AnswerEntry = {"num_instances": prediction.num_instances}
    if tokens.truncated:
        served["truncated"] = True
    return served
