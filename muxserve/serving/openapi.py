"""No data in, the OpenAPI description of the HTTP interface out.

The functions here have the types of the interface and no bodies: FastAPI derives the description
from them, and they never serve a request (``muxserve.serving.http`` does, without FastAPI's cost).
"""

from typing import Any

from fastapi import FastAPI

from muxserve import __version__
from muxserve.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded, TextTooLong
from muxserve.serving.errors import Internal, MalformedJson
from muxserve.serving.schemas import (
    ClassificationRequest,
    EntityEntry,
    ErrorBody,
    Health,
    LabelEntry,
    PredictRequest,
    TokenClassificationRequest,
    WordEntry,
)

_ABOUT = """
Texts in, labels and scores of the texts or of their words out, by a data-multiplexed language
model: N texts share one forward pass, and every answer says which N served it.

Every error has the body `{"error": code, "message": ..., "field": ...}`; codes are stable.
"""

_TEXT_ERRORS: dict[int | str, dict[str, Any]] = {
    MalformedJson.status: {"model": ErrorBody, "description": "`malformed_json`"},
    TextTooLong.status: {
        "model": ErrorBody,
        "description": "`text_too_long` (with truncate false), `too_many_texts`, `body_too_large`",
    },
    InvalidInput.status: {"model": ErrorBody, "description": "`invalid_input`: names the field"},
    Internal.status: {"model": ErrorBody, "description": "`forward_failed`, `internal`"},
    Overloaded.status: {
        "model": ErrorBody,
        "description": "`overloaded`, `not_ready`",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
    DeadlineExceeded.status: {"model": ErrorBody, "description": "`deadline_exceeded`"},
}
_ANSWER: dict[int | str, dict[str, Any]] = {
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
    }
}

_described = FastAPI(title="muxserve", version=__version__, description=_ABOUT)


@_described.post(
    "/predict", responses={**_ANSWER, **_TEXT_ERRORS}, response_model_exclude_none=True
)
def predict(
    body: PredictRequest,
) -> list[LabelEntry] | list[list[LabelEntry]] | list[WordEntry] | list[list[WordEntry]]:
    """Classify, in the shape of text-embeddings-inference: one list for a text, a list of lists for
    a list of texts. A family that labels words answers with an entry for each word."""
    raise NotImplementedError


@_described.post("/", responses={**_ANSWER, **_TEXT_ERRORS}, response_model_exclude_none=True)
def classify(
    body: ClassificationRequest | TokenClassificationRequest,
) -> list[list[LabelEntry]] | list[EntityEntry] | list[list[EntityEntry]]:
    """Classify, in the shape of `huggingface_hub.InferenceClient(...).text_classification`, or of
    `.token_classification` where the family labels words."""
    raise NotImplementedError


@_described.get("/health")
def health() -> Health:
    """The process is alive."""
    raise NotImplementedError


@_described.get(
    "/ready", responses={NotReady.status: {"model": ErrorBody, "description": "`not_ready`"}}
)
def ready() -> Health:
    """An engine has warmed up and answers."""
    raise NotImplementedError


@_described.get("/stats")
def stats() -> dict[str, Any]:
    """Counters of every engine since it started, and of this ingress."""
    raise NotImplementedError


def describe() -> dict[str, Any]:
    """The OpenAPI document."""
    return _described.openapi()
