"""The last step of a text front that labels words: token logits in, a label for each word out."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from muxserve.triton.runtime.batches import activate
from muxserve.triton.runtime.facts import Facts


class TritonPythonModel:
    """The class that Triton loads from ``model.py``, once for each instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the labels."""
        self._facts = Facts.read(Path(args["model_repository"]) / args["model_version"])
        self._names = np.array([label.encode() for label in self._facts.labels], dtype=object)

    def execute(self, requests: list[Any]) -> list[Any]:
        """The best label of every word and its score; empty and 0 past a text's last word."""
        responses = []
        for request in requests:
            logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
            places = pb_utils.get_input_tensor_by_name(request, "word_tokens").as_numpy()
            labels, scores = read_words(logits, places, self._names, self._facts.problem_type)
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor("labels", labels), pb_utils.Tensor("word_scores", scores)]
                )
            )
        return responses


def read_words(
    logits: np.ndarray, places: np.ndarray, names: np.ndarray, problem_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores [texts, words], read from logits [texts, tokens, labels] at ``places``."""
    rows = np.arange(len(places))[:, None]
    scores = activate(logits[rows, np.maximum(places, 0)], problem_type)
    is_word = places >= 0
    labels = np.where(is_word, names[scores.argmax(-1)], b"")
    return labels.astype(object), np.where(is_word, scores.max(-1), 0).astype(np.float32)
