"""The operations of the HTTP interface in, their OpenAPI description out.

An ``Operation`` is the one description of a route: the app makes its Starlette route from it, and
``describe`` its part of the document.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from muxserve import __version__
from muxserve.errors import DeadlineExceeded, InvalidInput, Overloaded, TextTooLong
from muxserve.serving.errors import Internal, MalformedJson, Unauthenticated, UnsupportedEncoding

_ABOUT = """
Texts in, labels and scores of the texts or of their words out, by a data-multiplexed language
model: N texts share one forward pass, and every answer says which N served it.

Every error has the body `{"error": code, "message": ..., "field": ...}`; codes are stable.
"""

_REFUSED = {
    "description": "`unauthenticated`: no API key, or one that nobody has",
    "headers": {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer."}},
}

Handler = Callable[[Request], Awaitable[Response]]
#: What OpenAPI says of responses by their status; ``model`` is the type of a body.
Responses = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path: what serves it, and what clients are told of it.

    Attributes:
        method: of HTTP.
        path: as Starlette writes it.
        endpoint: serves it.
        handler: its name and its docstring are those of the operation.
        answer: type of the body of a 200; ``str`` is plain text, everything else JSON.
        body: type of the request's body, if it has one.
        responses: what else there is to say of responses.
    """

    method: Literal["GET", "POST"]
    path: str
    endpoint: ASGIApp | Handler
    handler: Callable[..., Any]
    answer: Any
    body: Any = None
    responses: Responses = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In words with underscores."""
        return self.handler.__name__.strip("_")


def get(path: str, handler: Handler, answer: Any, responses: Responses | None = None) -> Operation:
    """An operation without a body, which its handler serves."""
    return Operation("GET", path, handler, handler, answer, responses=responses or {})


def text_errors(model: type[BaseModel]) -> Responses:
    """Why a request for texts gets no answer, with bodies of type ``model``."""
    told: dict[int, dict[str, Any]] = {
        MalformedJson.status: {"description": "`malformed_json`, `malformed_encoding`"},
        TextTooLong.status: {
            "description": "`text_too_long` (with truncate false, or over the limit of "
            "characters), `too_many_texts`, `body_too_large`"
        },
        UnsupportedEncoding.status: {"description": "`unsupported_encoding`"},
        InvalidInput.status: {"description": "`invalid_input`: names the field"},
        Internal.status: {"description": "`forward_failed`, `internal`"},
        Overloaded.status: {
            "description": "`overloaded`, `not_ready`",
            "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
        },
        DeadlineExceeded.status: {"description": "`deadline_exceeded`"},
    }
    return {status: {**one, "model": model} for status, one in told.items()}


def describe(operations: Sequence[Operation], needs_key: Callable[[str], bool]) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        operations: all that there are.
        needs_key: whether a path asks for an API key.
    """
    schemas, definitions = _schemas(operations)
    components: dict[str, Any] = {"schemas": definitions}
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        described = _described(one, schemas)
        if needs_key(one.path):
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            described["security"] = [{"key": []}]
            described["responses"][str(Unauthenticated.status)] = _REFUSED
        paths.setdefault(one.path, {})[one.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "muxserve", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": components,
    }


_Schemas = Mapping[tuple[Any, Literal["validation", "serialization"]], dict[str, Any]]


def _schemas(operations: Iterable[Operation]) -> tuple[_Schemas, dict[str, Any]]:
    """JSON schemas of all types, and of the models within them by name."""
    bodies, answers = [], []
    for one in operations:
        bodies += [] if one.body is None else [one.body]
        answers.append(one.answer)
        answers += [told["model"] for told in one.responses.values() if "model" in told]
    schemas, rest = TypeAdapter.json_schemas(
        [
            *((kind, "validation", TypeAdapter(kind)) for kind in dict.fromkeys(bodies)),
            *((kind, "serialization", TypeAdapter(kind)) for kind in dict.fromkeys(answers)),
        ],
        ref_template="#/components/schemas/{model}",
    )
    return schemas, rest["$defs"]


def _described(one: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": one.name.replace("_", " ").title(),
        "description": inspect.getdoc(one.handler),
        "operationId": re.sub(r"\W", "_", f"{one.name}{one.path}_{one.method.lower()}"),
    }
    if names := re.findall(r"{(\w+)}", one.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if one.body is not None:
        content = {"application/json": {"schema": schemas[one.body, "validation"]}}
        described["requestBody"] = {"required": True, "content": content}

    def told(response: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: value for key, value in response.items() if key != "model"}
        if (kind := response.get("model")) is not None:
            media_type = "text/plain" if kind is str else "application/json"
            found["content"] = {media_type: {"schema": schemas[kind, "serialization"]}}
        return found

    answered = {"description": "Successful Response", "model": one.answer}
    responses = {**one.responses, 200: {**answered, **one.responses.get(200, {})}}
    described["responses"] = {str(status): told(response) for status, response in responses.items()}
    return described
