"""No data in, the OpenAPI description of the HTTP interface out.

The functions here have the types of the interface and no bodies: FastAPI derives the description
from them. They never serve a request: ``muxserve.serving.protocols.http`` does, without FastAPI's
cost.
"""

import copy
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from muxserve import __version__
from muxserve.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded, TextTooLong
from muxserve.serving.errors import (
    Internal,
    MalformedJson,
    NotFound,
    Unauthenticated,
    UnsupportedEncoding,
)
from muxserve.serving.protocols.oip_rest import InferBody
from muxserve.serving.protocols.schemas import (
    ClassificationRequest,
    EntityEntry,
    ErrorBody,
    Health,
    LabelEntry,
    OipErrorBody,
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
    MalformedJson.status: {
        "model": ErrorBody,
        "description": "`malformed_json`, `malformed_encoding`",
    },
    TextTooLong.status: {
        "model": ErrorBody,
        "description": "`text_too_long` (with truncate false, or over the limit of characters), "
        "`too_many_texts`, `body_too_large`",
    },
    UnsupportedEncoding.status: {"model": ErrorBody, "description": "`unsupported_encoding`"},
    InvalidInput.status: {"model": ErrorBody, "description": "`invalid_input`: names the field"},
    Internal.status: {"model": ErrorBody, "description": "`forward_failed`, `internal`"},
    Overloaded.status: {
        "model": ErrorBody,
        "description": "`overloaded`, `not_ready`",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
    DeadlineExceeded.status: {"model": ErrorBody, "description": "`deadline_exceeded`"},
}
_UNKNOWN_MODEL: dict[int | str, dict[str, Any]] = {
    NotFound.status: {
        "model": OipErrorBody,
        "description": "`not_found`: another model, or another version",
    }
}
_OIP_NOT_READY: dict[int | str, dict[str, Any]] = {
    NotReady.status: {"model": OipErrorBody, "description": "`not_ready`"}
}
_OIP_ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {**error, "model": OipErrorBody} for status, error in _TEXT_ERRORS.items()},
    **_UNKNOWN_MODEL,
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

_REFUSED = {
    "description": "`unauthenticated`: no API key, or one that nobody has",
    "headers": {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer."}},
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


@_described.get("/metrics", response_class=PlainTextResponse)
def metrics() -> str:
    """The same counters in the text format of Prometheus."""
    raise NotImplementedError


@_described.get("/v2")
def server_metadata() -> dict[str, Any]:
    """Open Inference Protocol: name, version and extensions of the server."""
    raise NotImplementedError


@_described.get("/v2/health/live")
def server_live() -> dict[str, bool]:
    """Open Inference Protocol: the process is alive."""
    raise NotImplementedError


@_described.get("/v2/health/ready", responses=_OIP_NOT_READY)
def server_ready() -> dict[str, bool]:
    """Open Inference Protocol: an engine has warmed up and answers."""
    raise NotImplementedError


@_described.get("/v2/models/{name}", responses=_UNKNOWN_MODEL)
@_described.get("/v2/models/{name}/versions/{version}", responses=_UNKNOWN_MODEL)
def model_metadata(name: str, version: str = "1") -> dict[str, Any]:
    """Open Inference Protocol: inputs and outputs of the family's model."""
    raise NotImplementedError


@_described.get("/v2/models/{name}/ready", responses={**_UNKNOWN_MODEL, **_OIP_NOT_READY})
@_described.get(
    "/v2/models/{name}/versions/{version}/ready", responses={**_UNKNOWN_MODEL, **_OIP_NOT_READY}
)
def model_ready(name: str, version: str = "1") -> dict[str, Any]:
    """Open Inference Protocol: the model would answer now."""
    raise NotImplementedError


@_described.post("/v2/models/{name}/infer", responses=_OIP_ERRORS)
@_described.post("/v2/models/{name}/versions/{version}/infer", responses=_OIP_ERRORS)
def model_infer(name: str, body: InferBody, version: str = "1") -> dict[str, Any]:
    """Open Inference Protocol: texts in, arrays out; with Triton's binary data extension too."""
    raise NotImplementedError


def describe(needs_key: Callable[[str], bool] = lambda _: False) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        needs_key: whether a path asks for an API key.
    """
    document = copy.deepcopy(_described.openapi())
    closed = [path for path in document["paths"] if needs_key(path)]
    if closed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path in closed:
        for operation in document["paths"][path].values():
            operation["security"] = [{"key": []}]
            operation["responses"][str(Unauthenticated.status)] = _REFUSED
    return document
