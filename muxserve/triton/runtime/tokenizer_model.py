"""The tokenizer in Triton's Python backend: texts in, the engine's token ids out.

All waiting texts are tokenized in one call. A text that is empty or not UTF-8 fails only its own
request. A text that is too long is cut, and the output ``truncated`` says so.
"""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from muxserve.triton.runtime.facts import Facts
from muxserve.triton.runtime.rows import Refused
from muxserve.triton.runtime.texts import TextRows, read_texts


class TritonPythonModel:
    """The class that Triton loads from ``model.py``, once for each instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer."""
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._rows = TextRows(tokenizer, Facts.read(folder))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Tokenize the texts of every request, in Triton's order."""
        texts: list[str] = []
        parts: list[tuple[int, bool, Refused | None]] = []
        for request in requests:
            try:
                parameters = json.loads(request.parameters() or "{}")
                raw = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
                own = read_texts("text", raw)
            except Refused as error:
                parts.append((0, True, error))
                continue
            texts += own
            parts.append((len(own), parameters.get("truncate", True) is not False, None))
        encoded = iter(self._rows.encode(texts))
        responses = []
        for count, truncate, refused in parts:
            own_texts = [next(encoded) for _ in range(count)]
            try:
                if refused is not None:
                    raise refused
                outputs = self._rows.arrays("text", own_texts, truncate=truncate)
            except Refused as error:
                failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=failure))
                continue
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, array) for name, array in outputs.items()]
                )
            )
        return responses
