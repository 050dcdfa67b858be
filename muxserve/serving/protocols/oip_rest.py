"""The Open Inference Protocol over REST, below ``/v2``: JSON, with arrays as bytes where asked for.

What ``tritonclient.http`` sends and reads, its binary data extension included. Errors are
``{"error": message}`` with our statuses, as its clients read them.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muxserve import __version__
from muxserve.errors import InvalidInput, MuxserveError, NotReady
from muxserve.models.files import is_whole
from muxserve.serving.access.callers import CALLER, Caller
from muxserve.serving.errors import Internal, shown
from muxserve.serving.protocols.bodies import ClientGone
from muxserve.serving.protocols.oip import (
    MOST_TENSORS,
    VERSION,
    Inference,
    Model,
    Wanted,
    as_bytes,
    datatype,
    read_byte_strings,
    read_classes,
    read_texts,
)
from muxserve.serving.protocols.schemas import check_count, parse
from muxserve.serving.service import TextService

log = logging.getLogger(__name__)

_LENGTH = b"inference-header-content-length"
#: Digits of the longest length that can be; Python refuses to read thousands of them.
_LENGTH_DIGITS = 18


def _few(entries: Any) -> Any:
    """Tensors and parameters are counted before any is looked at."""
    if isinstance(entries, list | dict) and len(entries) > MOST_TENSORS:
        raise ValueError(f"at most {MOST_TENSORS}, got {len(entries)}")
    return entries


Parameters = Annotated[dict[str, Any], BeforeValidator(_few)]


class _Lenient(BaseModel):
    """The protocol lets servers pass over fields that they do not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class InputTensor(_Lenient):
    """One of ``inputs``."""

    name: str
    shape: Annotated[list[int], Field(max_length=8, fail_fast=True)]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class OutputTensor(_Lenient):
    """One of ``outputs``."""

    name: str
    parameters: Parameters | None = None


class InferBody(_Lenient):
    """Body of ``POST /v2/models/{name}/infer``."""

    id: str | None = None
    parameters: Parameters | None = None
    inputs: Annotated[list[InputTensor], Field(fail_fast=True), BeforeValidator(_few)]
    outputs: Annotated[list[OutputTensor], Field(fail_fast=True), BeforeValidator(_few)] | None = (
        None
    )


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
    infer = service.fates.counted_app(_Infer(model, service))
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
            return Response(as_json(error), error.status, media_type="application/json")

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
        service, caller = self._service, scope[CALLER]
        limits = service.limits_of(caller)
        headers: list[tuple[bytes, bytes]] = []
        status, content_type = 200, b"application/json"
        try:
            self._model.check(**scope["path_params"])
            await service.check_room(caller)
            body = await service.bodies.read(
                scope, receive, limits.max_body_bytes, limits.request_timeout_s, caller.name
            )
            content, json_bytes = await self._answer(body, _headers(scope), began_s, caller)
            if json_bytes is not None:
                content_type = b"application/octet-stream"
                headers.append((_LENGTH, str(json_bytes).encode()))
        except ClientGone:
            return
        except MuxserveError as error:
            status, content = error.status, as_json(error)
        except Exception:
            log.exception("a request failed unexpectedly")
            status, content = 500, as_json(Internal())
        headers += [
            (b"content-type", content_type),
            (b"content-length", str(len(content)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, body: bytes, headers: Mapping[bytes, bytes], began_s: float, caller: Caller
    ) -> tuple[bytes, int | None]:
        """The response's body, and the bytes of its JSON where binary data follows them."""
        json_end = _json_end(headers, len(body))
        most_texts = self._service.limits_of(caller).max_texts_per_request
        asked = parse(InferBody, body[:json_end], most_texts)
        inference = _read(asked, body[json_end:], most_texts)
        arrays = await self._model.infer(inference, caller, since_s=began_s)
        all_binary = (asked.parameters or {}).get("binary_data_output") is True
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
    if not stated.isdigit() or len(stated) > _LENGTH_DIGITS or int(stated) > size:
        raise InvalidInput(
            f"the header {_LENGTH.decode()} must be a number up to the body's {size} bytes, "
            f"got {shown(stated.decode('latin-1'))}",
            field=_LENGTH.decode(),
        )
    return int(stated)


def _read(asked: InferBody, binary: bytes, most_texts: int) -> Inference:
    if len(asked.inputs) != 1:
        raise InvalidInput(f"expected one input, got {len(asked.inputs)}", field="inputs")
    (given,) = asked.inputs
    size = (given.parameters or {}).get("binary_data_size")
    values: Sequence[Any]
    if size is not None:
        if not is_whole(size) or size != len(binary):
            raise InvalidInput(
                f"binary_data_size is {shown(size)}, {len(binary)} bytes follow the JSON",
                field="inputs",
            )
        if given.data is not None:
            raise InvalidInput("the input has both data and binary data", field="inputs")
        values = read_byte_strings(binary, most_texts)
    elif binary:
        raise InvalidInput(
            f"{len(binary)} bytes follow the JSON, and the input has no binary_data_size",
            field="inputs",
        )
    elif given.data is None:
        raise InvalidInput("the input has neither data nor binary data", field="inputs")
    else:
        values = _flat(given.data, most_texts)
    texts = read_texts(given.name, given.datatype, given.shape, values)
    outputs = []
    for one in asked.outputs or ():
        parameters = one.parameters or {}
        count = read_classes(parameters.get("classification", 0))
        outputs.append(Wanted(one.name, count, parameters.get("binary_data") is True))
    return Inference(texts, asked.parameters or {}, outputs)


def _flat(data: Sequence[Any], most_texts: int) -> list[Any]:
    """Rows may be nested or not."""
    check_count(data, most_texts)
    values: list[Any] = []
    for one in data:
        if isinstance(one, list):
            values += one
        else:
            values.append(one)
        check_count(values, most_texts)
    return values


def _values(array: np.ndarray) -> list[Any]:
    """Row by row, as JSON has them."""
    values: list[Any] = array.ravel().tolist()
    return [one.decode() if isinstance(one, bytes) else one for one in values]


def as_json(error: MuxserveError) -> bytes:
    """The body of an error."""
    return orjson.dumps({"error": error.message, "code": error.code})
