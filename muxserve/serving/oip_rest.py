"""The Open Inference Protocol over REST, below ``/v2``: JSON, with arrays as bytes where asked for.

What ``tritonclient.http`` sends and reads, its binary data extension included. Errors are
``{"error": message}`` with our statuses, as its clients read them.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muxserve import __version__
from muxserve.errors import InvalidInput, MuxserveError, NotReady
from muxserve.serving.body import ClientGone, read_body
from muxserve.serving.errors import Internal
from muxserve.serving.oip import (
    VERSION,
    Inference,
    Model,
    Wanted,
    as_bytes,
    datatype,
    read_byte_strings,
    read_texts,
)
from muxserve.serving.schemas import parse
from muxserve.serving.service import TextService

log = logging.getLogger(__name__)

_LENGTH = b"inference-header-content-length"


class _Lenient(BaseModel):
    """The protocol lets servers pass over fields that they do not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class InputTensor(_Lenient):
    """One of ``inputs``."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class OutputTensor(_Lenient):
    """One of ``outputs``."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferBody(_Lenient):
    """Body of ``POST /v2/models/{name}/infer``."""

    id: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InputTensor]
    outputs: list[OutputTensor] = Field(default_factory=list)


def routes(service: TextService) -> list[Route]:
    """Everything below ``/v2``."""
    model = Model(service)
    told: dict[str, Callable[[Request], Awaitable[Any]]] = {}

    async def server(_: Request) -> Any:
        extensions = ["binary_tensor_data", "classification"]
        return {"name": "muxserve", "version": __version__, "extensions": extensions}

    async def live(_: Request) -> Any:
        return {"live": True}

    async def ready(_: Request) -> Any:
        if not await model.ready():
            raise NotReady("no engine has warmed up yet; try again later")
        return {"ready": True}

    async def metadata(request: Request) -> Any:
        model.check(**_named(request))
        return model.metadata()

    async def model_ready(request: Request) -> Any:
        model.check(**_named(request))
        return {"name": model.name, **await ready(request)}

    told["/v2"] = server
    told["/v2/health/live"] = live
    told["/v2/health/ready"] = ready
    infer = _Infer(model, service)
    found = []
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        told[base] = metadata
        told[f"{base}/ready"] = model_ready
        found.append(Route(f"{base}/infer", infer, methods=["POST"]))
    return [*found, *(Route(path, _telling(get), methods=["GET"]) for path, get in told.items())]


def _telling(get: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return Response(orjson.dumps(await get(request)), media_type="application/json")
        except MuxserveError as error:
            return Response(_error(error), error.status, media_type="application/json")

    return answer


def _named(request: Request) -> dict[str, str]:
    return dict(request.path_params)


class _Infer:
    """The ASGI endpoint that answers texts."""

    def __init__(self, model: Model, service: TextService) -> None:
        self._model = model
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        service, limits = self._service, self._service.limits
        headers: list[tuple[bytes, bytes]] = []
        status, content_type = 200, b"application/json"
        try:
            self._model.check(**scope["path_params"])
            service.check_room()
            body = await read_body(
                scope, receive, limits.max_body_bytes, limits.request_timeout_s, service.timers
            )
            content, json_bytes = await self._answer(body, _headers(scope), began_s)
            if json_bytes is not None:
                content_type = b"application/octet-stream"
                headers.append((_LENGTH, str(json_bytes).encode()))
        except ClientGone:
            return
        except MuxserveError as error:
            status, content = error.status, _error(error)
        except Exception:
            log.exception("a request failed unexpectedly")
            status, content = 500, _error(Internal())
        headers += [
            (b"content-type", content_type),
            (b"content-length", str(len(content)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, body: bytes, headers: Mapping[bytes, bytes], began_s: float
    ) -> tuple[bytes, int | None]:
        """The response's body, and the bytes of its JSON where binary data follows them."""
        asked = parse(InferBody, body[: (json_end := _json_end(headers, len(body)))])
        inference = _read(asked, body[json_end:])
        arrays = await self._model.infer(inference, since_s=began_s)
        all_binary = asked.parameters.get("binary_data_output") is True
        binary = {one.name for one in inference.outputs if one.binary}
        described, parts = [], []
        for name, array in arrays.items():
            one: dict[str, Any] = {
                "name": name,
                "datatype": datatype(array),
                "shape": list(array.shape),
            }
            if name in binary or (all_binary and not asked.outputs):
                parts.append(as_bytes(array))
                one["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                one["data"] = _values(array)
            described.append(one)
        head = orjson.dumps(
            {
                "model_name": self._model.name,
                "model_version": VERSION,
                **({"id": asked.id} if asked.id else {}),
                "outputs": described,
            }
        )
        return b"".join([head, *parts]), len(head) if parts else None


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _json_end(headers: Mapping[bytes, bytes], size: int) -> int:
    """Where a body's JSON ends and its binary data begins."""
    stated = headers.get(_LENGTH)
    if stated is None:
        return size
    if not stated.isdigit() or int(stated) > size:
        raise InvalidInput(
            f"the header {_LENGTH.decode()} must be a number up to the body's {size} bytes, "
            f"got {stated.decode('latin-1')!r}",
            field=_LENGTH.decode(),
        )
    return int(stated)


def _read(asked: InferBody, binary: bytes) -> Inference:
    if len(asked.inputs) != 1:
        raise InvalidInput(f"expected one input, got {len(asked.inputs)}", field="inputs")
    (given,) = asked.inputs
    size = given.parameters.get("binary_data_size")
    values: Sequence[Any]
    if size is not None:
        if size != len(binary):
            raise InvalidInput(
                f"binary_data_size is {size}, {len(binary)} bytes follow the JSON", field="inputs"
            )
        values = read_byte_strings(binary)
    elif given.data is None:
        raise InvalidInput("the input has neither data nor binary data", field="inputs")
    else:
        values = _flat(given.data)
    texts = read_texts(given.name, given.datatype, given.shape, values)
    outputs = [
        Wanted(one.name, _classes(one.parameters), one.parameters.get("binary_data") is True)
        for one in asked.outputs
    ]
    return Inference(texts, asked.parameters, outputs)


def _classes(parameters: Mapping[str, Any]) -> int:
    count = parameters.get("classification", 0)
    if not isinstance(count, int) or count < 0:
        raise InvalidInput(f"classification: expected a count, got {count!r}", field="outputs")
    return count


def _flat(data: Sequence[Any]) -> list[Any]:
    """Rows may be nested or not."""
    return [value for one in data for value in (one if isinstance(one, list) else [one])]


def _values(array: np.ndarray) -> list[Any]:
    """Row by row, as JSON has them."""
    values: list[Any] = array.ravel().tolist()
    return [one.decode() if isinstance(one, bytes) else one for one in values]


def _error(error: MuxserveError) -> bytes:
    return orjson.dumps({"error": error.message, "code": error.code})
