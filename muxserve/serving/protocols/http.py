"""HTTP in, JSON out: bytes -> checked request -> texts -> predictions -> bytes.

The routes that answer texts are plain ASGI, because per request Python is what costs; their types
are documented in ``muxserve.serving.protocols.openapi``. Every error is JSON with a stable code,
and no more of a body is held than the limit allows.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from muxserve import __version__
from muxserve.engine.tokens import Truncate
from muxserve.errors import MuxserveError, NotReady, Overloaded
from muxserve.serving.access.callers import CALLER, Caller
from muxserve.serving.access.doors import Door
from muxserve.serving.errors import (
    Internal,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
    shown,
)
from muxserve.serving.metrics import CONTENT_TYPE, exposition
from muxserve.serving.protocols.answers import Entry, entries
from muxserve.serving.protocols.bodies import ClientGone
from muxserve.serving.protocols.cors import Cors
from muxserve.serving.protocols.oip_rest import as_json as oip_error
from muxserve.serving.protocols.oip_rest import routes as oip_routes
from muxserve.serving.protocols.openapi import describe
from muxserve.serving.protocols.schemas import (
    ClassificationParameters,
    ClassificationRequest,
    PredictRequest,
    TokenClassificationParameters,
    TokenClassificationRequest,
    parse,
)
from muxserve.serving.service import Answered, TextService

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that is ready to be sent."""

    status: int
    body: bytes
    headers: Headers


def create_app(
    service: TextService, door: Door | None = None, cors_origins: Sequence[str] = ()
) -> FastAPI:
    """The ASGI app of a service.

    Args:
        service: what answers.
        door: who may ask; by default whoever reaches it.
        cors_origins: web pages of these origins may ask from a browser.
    """
    return _HttpApp(service, door or Door(), Cors(cors_origins))


class _HttpApp(FastAPI):
    def __init__(self, service: TextService, door: Door, cors: Cors) -> None:
        super().__init__(title="muxserve", version=__version__, redoc_url=None)
        self._service = service
        self._door = door
        self._cors = cors
        self._described: dict[str, Any] | None = None
        # A path with a slash too many is unknown, not elsewhere.
        self.router.redirect_slashes = False
        hugging_face = self._tag if service.spec.of_tokens else self._classify
        self._answering: dict[str, ASGIApp] = {}
        for path, answer in (("/predict", self._predict), ("/", hugging_face)):
            endpoint = service.fates.counted_app(_JsonEndpoint(answer, service))
            self.router.routes.append(Route(path, endpoint, methods=["POST"], name=path))
            self._answering[path] = endpoint
        for path, get in (
            ("/health", self._health),
            ("/ready", self._ready),
            ("/stats", self._stats),
            ("/metrics", self._metrics),
        ):
            self.router.routes.append(Route(path, get, methods=["GET"]))
        self.router.routes.extend(oip_routes(service))
        self.add_exception_handler(HTTPException, self._unroutable)
        self.add_exception_handler(Exception, _unexpected)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Below a route prefix, the prefix without a slash is the root too: clients such as
        # InferenceClient take the slash off the URL they are given.
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["path"] == scope.get("root_path"):
            scope["path"] += "/"
        if self._cors:
            preflight = self._cors.preflight(scope)
            if preflight is not None:
                await _send(Reply(204, b"", preflight), send)
                return
            send = self._cors.telling(scope, send)
        own = _own_path(scope)
        try:
            scope[CALLER] = self._door.http_caller(scope, own)
        except MuxserveError as error:
            await _send(_in_shape(own, error), send)
            return
        if scope["method"] == "POST" and not scope.get("root_path"):
            # They turn errors into JSON themselves; Starlette's layers would cost as much again.
            endpoint = self._answering.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self._described is None:
            self._described = describe(self._door.needs_key)
        return self._described

    async def _predict(self, body: bytes, began_s: float, caller: Caller) -> Reply:
        request = parse(PredictRequest, body, self._most_texts(caller))
        timeout_ms = request.timeout_ms
        answered = await self._service.classify(
            _as_list(request.inputs),
            truncate=_truncate(request),
            max_num_instances=request.max_num_instances,
            isolation_key=request.isolation_key,
            timeout_s=None if timeout_ms is None else timeout_ms / 1000,
            since_s=began_s,
            caller=caller,
        )
        answers = entries(answered, self._service.spec, "none" if request.raw_scores else None)
        return _answer(answers[0] if isinstance(request.inputs, str) else answers, answered)

    async def _classify(self, body: bytes, began_s: float, caller: Caller) -> Reply:
        request = parse(ClassificationRequest, body, self._most_texts(caller))
        parameters = request.parameters or ClassificationParameters()
        answered = await self._service.classify(
            _as_list(request.inputs), since_s=began_s, caller=caller
        )
        answers = entries(answered, self._service.spec, parameters.function_to_apply)
        return _answer([one[: parameters.top_k] for one in answers], answered)

    async def _tag(self, body: bytes, began_s: float, caller: Caller) -> Reply:
        request = parse(TokenClassificationRequest, body, self._most_texts(caller))
        parameters = request.parameters or TokenClassificationParameters()
        ignored = set(parameters.ignore_labels or ())
        answered = await self._service.classify(
            _as_list(request.inputs), since_s=began_s, caller=caller
        )
        answers = [
            [_as_entity(entry) for entry in one if entry["label"] not in ignored]
            for one in entries(answered, self._service.spec)
        ]
        return _answer(answers[0] if isinstance(request.inputs, str) else answers, answered)

    def _most_texts(self, caller: Caller) -> int:
        return self._service.limits_of(caller).max_texts_per_request

    async def _health(self, _: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _ready(self, _: Request) -> Response:
        if await self._service.backend.ready():
            return Response(b'{"status":"ready"}', media_type="application/json")
        return _as_response(_error(NotReady("no engine has warmed up yet; try again later")))

    async def _stats(self, _: Request) -> Response:
        return Response(orjson.dumps(await self._service.stats()), media_type="application/json")

    async def _metrics(self, _: Request) -> Response:
        ready = await self._service.backend.ready()
        content = exposition(await self._service.stats(), ready=ready)
        return Response(content, headers={"content-type": CONTENT_TYPE})

    async def _unroutable(self, request: Request, error: Exception) -> Response:
        """What Starlette's router raises: an unknown path, or a known one with another method."""
        path = shown(request.scope["path"], quoted=False)
        own = _own_path(request.scope)
        if isinstance(error, HTTPException) and error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            method = shown(request.method, quoted=False)
            refusal = MethodNotAllowed(f"{path} takes {allowed}, not {method}", allowed=allowed)
            return _as_response(_in_shape(own, refusal))
        more = "; GET /docs lists all paths" if self._door.tells_paths else ""
        return _as_response(_in_shape(own, NotFound(f"there is nothing at {path}{more}")))


class _JsonEndpoint:
    """An ASGI endpoint around ``answer``: reads the body, sends the reply, turns errors into JSON.

    ``answer`` is given the body, when its request began (the body's time counts too), and who asks.
    Cancellation passes through: Ray cancels the call of a client that has gone.
    """

    def __init__(
        self,
        answer: Callable[[bytes, float, Caller], Awaitable[Reply]],
        service: TextService,
    ) -> None:
        self._answer = answer
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        service, caller = self._service, scope[CALLER]
        limits = service.limits_of(caller)
        try:
            await service.check_room(caller)
            body = await service.bodies.read(
                scope, receive, limits.max_body_bytes, limits.request_timeout_s, caller.name
            )
            reply = await self._answer(body, began_s, caller)
        except ClientGone:
            return
        except MuxserveError as error:
            reply = _error(error)
        except Exception:
            log.exception("a request failed unexpectedly")
            reply = _error(Internal())
        await _send(reply, send)
        if reply.status == 200:
            service.stages.total_s += time.monotonic() - began_s


async def _send(reply: Reply, send: Send) -> None:
    headers: Headers = list(reply.headers)
    if reply.status != 204:  # which has no body
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(reply.body)).encode()),
            *headers,
        ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _own_path(scope: Scope) -> str:
    """The path below the route prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _in_shape(own_path: str, error: MuxserveError) -> Reply:
    """An error as the protocol of a path writes it."""
    of_oip = own_path == "/v2" or own_path.startswith("/v2/")
    return _oip_error(error) if of_oip else _error(error)


def _truncate(request: PredictRequest) -> Truncate:
    if request.truncate is False:
        return False
    if request.truncation_direction is None:
        return True
    return "left" if request.truncation_direction == "Left" else "right"


def _as_list(inputs: str | list[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else inputs


def _as_entity(entry: Entry) -> Entry:
    """A word's entry as ``InferenceClient.token_classification`` reads it."""
    return {("entity_group" if key == "label" else key): value for key, value in entry.items()}


def _answer(content: list[Entry] | list[list[Entry]], answered: Answered) -> Reply:
    widest = max(prediction.num_instances for prediction in answered.predictions)
    headers = [
        (b"x-muxserve-num-instances", str(widest).encode()),
        (b"x-muxserve-truncated", str(answered.truncated).encode()),
    ]
    return Reply(200, orjson.dumps(content), headers)


def _error(error: MuxserveError) -> Reply:
    content = {"error": error.code, "message": error.message}
    if error.field is not None:
        content["field"] = error.field
    return Reply(error.status, orjson.dumps(content), _error_headers(error))


def _oip_error(error: MuxserveError) -> Reply:
    """As every error below ``/v2``."""
    return Reply(error.status, oip_error(error), _error_headers(error))


def _error_headers(error: MuxserveError) -> Headers:
    headers: Headers = []
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    return headers


def _as_response(reply: Reply) -> Response:
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers, media_type="application/json")


async def _unexpected(_: Request, __: Exception) -> Response:
    return _as_response(_error(Internal()))
