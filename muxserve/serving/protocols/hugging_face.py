"""Texts in, labels and scores out, in the JSON that Hugging Face's clients send and read.

``POST /predict`` is text-embeddings-inference's, ``POST /`` that of ``huggingface_hub``'s
``InferenceClient``. Errors are ``{"error": code, "message": ..., "field": ...}``.
"""

import orjson

from muxserve.engine.tokens import Truncate
from muxserve.errors import MuxserveError
from muxserve.serving.access.callers import Caller
from muxserve.serving.protocols.answers import AnswerEntry, entries
from muxserve.serving.protocols.bodies import Bodies
from muxserve.serving.protocols.endpoint import Answer, Reply, TextEndpoint, TextRequest
from muxserve.serving.protocols.openapi import Operation, Responses, text_errors
from muxserve.serving.protocols.schemas import (
    ClassificationParameters,
    ClassificationRequest,
    EntityEntry,
    ErrorBody,
    LabelEntry,
    PredictRequest,
    TokenClassificationParameters,
    TokenClassificationRequest,
    WordEntry,
    parse,
)
from muxserve.serving.service import Answered, TextService

_RESPONSES: Responses = {
    200: {
        "description": "Labels and scores, best first.",
        "headers": {
            "x-muxserve-num-instances": {
                "schema": {"type": "integer"},
                "description": "The widest N that served a text of this request.",
            },
            "x-muxserve-truncated": {
                "schema": {"type": "integer"},
                "description": "How many texts were cut to the length limit.",
            },
        },
    },
    **text_errors(ErrorBody),
}


class HuggingFace:
    """The protocol over one service."""

    def __init__(self, service: TextService) -> None:
        self._service = service

    def operations(self, bodies: Bodies) -> list[Operation]:
        """``POST /predict`` and ``POST /``; ``bodies`` reads what comes."""

        def served(answer: Answer) -> TextEndpoint:
            return TextEndpoint(answer, self._service, bodies, write_error)

        root = served(self._tag if self._service.spec.of_tokens else self._classify)
        return [
            Operation(
                "POST",
                "/predict",
                served(self._predict),
                self._predict,
                list[LabelEntry] | list[list[LabelEntry]] | list[WordEntry] | list[list[WordEntry]],
                PredictRequest,
                _RESPONSES,
            ),
            Operation(
                "POST",
                "/",
                root,
                self._classify,
                list[list[LabelEntry]] | list[EntityEntry] | list[list[EntityEntry]],
                ClassificationRequest | TokenClassificationRequest,
                _RESPONSES,
            ),
        ]

    async def _predict(self, asked: TextRequest) -> Reply:
        """Classify, in the shape of text-embeddings-inference: one list for a text, a list of lists
        for a list of texts. A family that labels words answers with an entry for each word."""
        request = parse(PredictRequest, asked.body, self._most_texts(asked.caller))
        timeout_ms = request.timeout_ms
        answered = await self._service.classify(
            _as_list(request.inputs),
            truncate=_truncate(request),
            max_num_instances=request.max_num_instances,
            isolation_key=request.isolation_key,
            timeout_s=None if timeout_ms is None else timeout_ms / 1000,
            since_s=asked.began_s,
            caller=asked.caller,
        )
        answers = entries(answered, self._service.spec, "none" if request.raw_scores else None)
        return _reply(answers[0] if isinstance(request.inputs, str) else answers, answered)

    async def _classify(self, asked: TextRequest) -> Reply:
        """Classify, in the shape of `huggingface_hub.InferenceClient(...).text_classification`, or
        of `.token_classification` where the family labels words."""
        request = parse(ClassificationRequest, asked.body, self._most_texts(asked.caller))
        parameters = request.parameters or ClassificationParameters()
        answered = await self._service.classify(
            _as_list(request.inputs), since_s=asked.began_s, caller=asked.caller
        )
        answers = entries(answered, self._service.spec, parameters.function_to_apply)
        return _reply([one[: parameters.top_k] for one in answers], answered)

    async def _tag(self, asked: TextRequest) -> Reply:
        request = parse(TokenClassificationRequest, asked.body, self._most_texts(asked.caller))
        parameters = request.parameters or TokenClassificationParameters()
        ignored = set(parameters.ignore_labels or ())
        answered = await self._service.classify(
            _as_list(request.inputs), since_s=asked.began_s, caller=asked.caller
        )
        answers = [
            [_as_entity(entry) for entry in one if entry["label"] not in ignored]
            for one in entries(answered, self._service.spec)
        ]
        return _reply(answers[0] if isinstance(request.inputs, str) else answers, answered)

    def _most_texts(self, caller: Caller) -> int:
        return self._service.limits_of(caller).max_texts_per_request


def write_error(error: MuxserveError) -> bytes:
    """The body of an error."""
    content = {"error": error.code, "message": error.message}
    if error.field is not None:
        content["field"] = error.field
    return orjson.dumps(content)


def _truncate(request: PredictRequest) -> Truncate:
    if request.truncate is False:
        return False
    if request.truncation_direction is None:
        return True
    return "left" if request.truncation_direction == "Left" else "right"


def _as_list(inputs: str | list[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else inputs


def _as_entity(entry: AnswerEntry) -> AnswerEntry:
    """A word's entry as ``InferenceClient.token_classification`` reads it."""
    return {("entity_group" if key == "label" else key): value for key, value in entry.items()}


def _reply(content: list[AnswerEntry] | list[list[AnswerEntry]], answered: Answered) -> Reply:
    widest = max(prediction.num_instances for prediction in answered.predictions)
    headers = [
        (b"x-muxserve-num-instances", str(widest).encode()),
        (b"x-muxserve-truncated", str(answered.truncated).encode()),
    ]
    return Reply(200, orjson.dumps(content), headers)
