"""The Open Inference Protocol over REST, below ``/v2``: JSON, with arrays as bytes where asked for.

What ``tritonclient.http`` sends and reads, its binary data extension included. Errors are
``{"error": message}`` with our statuses, as its clients read them.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from muxserve import __version__
from muxserve.errors import InvalidInput, MuxserveError, NotReady
from muxserve.models.files import is_whole
from muxserve.serving.errors import NotFound, shown
from muxserve.serving.protocols import oip
from muxserve.serving.protocols.bodies import Bodies
from muxserve.serving.protocols.endpoint import Reply, TextEndpoint, TextRequest
from muxserve.serving.protocols.openapi import Operation, Responses, get, text_errors
from muxserve.serving.protocols.schemas import OipErrorBody, parse
from muxserve.serving.service import TextService, check_count

_LENGTH = b"inference-header-content-length"
#: Digits of the longest length that can be; Python refuses to read thousands of them.
_LENGTH_DIGITS = 18

_UNKNOWN_MODEL: Responses = {
    NotFound.status: {
        "model": OipErrorBody,
        "description": "`not_found`: another model, or another version",
    }
}
_NOT_READY: Responses = {NotReady.status: {"model": OipErrorBody, "description": "`not_ready`"}}


def _few(entries: Any) -> Any:
    """Tensors and parameters are counted before any is looked at."""
    if isinstance(entries, list | dict) and len(entries) > oip.MOST_TENSORS:
        raise ValueError(f"at most {oip.MOST_TENSORS}, got {len(entries)}")
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


class OipRest:
    """The protocol over one service."""

    def __init__(self, service: TextService) -> None:
        self._service = service
        self._model = oip.Model(service)

    def operations(self, bodies: Bodies) -> list[Operation]:
        """Everything below ``/v2``; ``bodies`` reads what comes."""
        infer = TextEndpoint(self._model_infer, self._service, bodies, write_error, self._check)
        operations = [
            get("/v2", self._server_metadata, dict[str, Any]),
            get("/v2/health/live", self._server_live, dict[str, bool]),
            get("/v2/health/ready", self._server_ready, dict[str, bool], _NOT_READY),
        ]
        not_ready = {**_UNKNOWN_MODEL, **_NOT_READY}
        no_answer = {**text_errors(OipErrorBody), **_UNKNOWN_MODEL}
        for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            operations += [
                get(base, self._model_metadata, dict[str, Any], _UNKNOWN_MODEL),
                get(f"{base}/ready", self._model_ready, dict[str, Any], not_ready),
                Operation(
                    "POST",
                    f"{base}/infer",
                    infer,
                    self._model_infer,
                    dict[str, Any],
                    InferBody,
                    no_answer,
                ),
            ]
        return operations

    async def _server_metadata(self, _: Request) -> Response:
        """Open Inference Protocol: name, version and extensions of the server."""
        extensions = ["binary_tensor_data", "classification"]
        return _json({"name": "muxserve", "version": __version__, "extensions": extensions})

    async def _server_live(self, _: Request) -> Response:
        """Open Inference Protocol: the process is alive."""
        return _json({"live": True})

    async def _server_ready(self, _: Request) -> Response:
        """Open Inference Protocol: an engine has warmed up and answers."""
        await self._check_ready()
        return _json({"ready": True})

    async def _model_metadata(self, request: Request) -> Response:
        """Open Inference Protocol: inputs and outputs of the family's model."""
        self._check(request.scope)
        return _json(self._model.metadata())

    async def _model_ready(self, request: Request) -> Response:
        """Open Inference Protocol: the model would answer now."""
        self._check(request.scope)
        await self._check_ready()
        return _json({"name": self._model.name, "ready": True})

    def _check(self, scope: Scope) -> None:
        """Raise NotFound where the path names another model or version."""
        self._model.check(**scope["path_params"])

    async def _check_ready(self) -> None:
        if not await self._model.ready():
            raise NotReady("no engine has warmed up yet; try again later")

    async def _model_infer(self, asked: TextRequest) -> Reply:
        """Open Inference Protocol: texts in, arrays out; with Triton's binary data extension
        too."""
        json_end = _json_end(dict(asked.headers), len(asked.body))
        most_texts = self._service.limits_of(asked.caller).max_texts_per_request
        body = parse(InferBody, asked.body[:json_end], most_texts)
        inference = _read(body, asked.body[json_end:], most_texts)
        arrays = await self._model.infer(inference, asked.caller, since_s=asked.began_s)
        all_binary = (body.parameters or {}).get("binary_data_output") is True
        binary = {one.name for one in inference.outputs if one.binary}
        described, parts = [], []
        for name, array in arrays.items():
            one: dict[str, Any] = {
                "name": name,
                "datatype": oip.datatype(array),
                "shape": list(array.shape),
            }
            if name in binary or (all_binary and not body.outputs):
                parts.append(oip.as_bytes(array))
                one["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                one["data"] = _values(array)
            described.append(one)
        head = orjson.dumps(
            {
                "model_name": self._model.name,
                "model_version": oip.VERSION,
                **({"id": body.id} if body.id else {}),
                "outputs": described,
            }
        )
        if not parts:
            return Reply(200, head)
        headers = [(_LENGTH, str(len(head)).encode())]
        return Reply(200, b"".join([head, *parts]), headers, b"application/octet-stream")


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


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


def _read(asked: InferBody, binary: bytes, most_texts: int) -> oip.Inference:
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
        values = oip.read_byte_strings(binary, most_texts)
    elif binary:
        raise InvalidInput(
            f"{len(binary)} bytes follow the JSON, and the input has no binary_data_size",
            field="inputs",
        )
    elif given.data is None:
        raise InvalidInput("the input has neither data nor binary data", field="inputs")
    else:
        values = _flat(given.data, most_texts)
    texts = oip.read_texts(given.name, given.datatype, given.shape, values)
    outputs = []
    for one in asked.outputs or ():
        parameters = one.parameters or {}
        count = oip.read_classes(parameters.get("classification", 0))
        outputs.append(oip.Wanted(one.name, count, parameters.get("binary_data") is True))
    return oip.Inference(texts, asked.parameters or {}, outputs)


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


def write_error(error: MuxserveError) -> bytes:
    """The body of an error."""
    return orjson.dumps({"error": error.message, "code": error.code})
