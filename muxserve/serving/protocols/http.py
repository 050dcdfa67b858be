"""HTTP in, JSON out: the ASGI app of a service, its probes, counters and errors.

What answers texts is in ``hugging_face`` and ``oip_rest``; here is who may ask, and which route
serves. Every error is JSON with a stable code.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muxserve import __version__
from muxserve.errors import MuxserveError, NotReady
from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.access.callers import CALLER
from muxserve.serving.errors import Internal, MethodNotAllowed, NotFound, shown
from muxserve.serving.metrics import CONTENT_TYPE, exposition
from muxserve.serving.protocols import hugging_face, oip_rest
from muxserve.serving.protocols.bodies import Bodies
from muxserve.serving.protocols.cors import Cors
from muxserve.serving.protocols.endpoint import Reply, TextEndpoint, refusal
from muxserve.serving.protocols.openapi import Operation, describe, get
from muxserve.serving.protocols.schemas import ErrorBody, Health
from muxserve.serving.service import TextService


def create_app(
    service: TextService,
    authenticator: Authenticator | None = None,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The ASGI app of a service.

    Args:
        service: what answers.
        authenticator: who may ask; by default anyone.
        cors_origins: web pages of these origins may ask from a browser.
    """
    return _HttpApp(service, authenticator or Authenticator(), Cors(cors_origins))


class _HttpApp(FastAPI):
    def __init__(self, service: TextService, authenticator: Authenticator, cors: Cors) -> None:
        super().__init__(title="muxserve", version=__version__, redoc_url=None)
        self._service = service
        self._authenticator = authenticator
        self._cors = cors
        self._described: dict[str, Any] | None = None
        # A path with a slash too many is unknown, not elsewhere.
        self.router.redirect_slashes = False
        bodies = Bodies(service.limits.max_bodies_bytes, service.timers)
        texts = hugging_face.HuggingFace(service).operations(bodies)
        self._direct = {
            one.path: one.endpoint for one in texts if isinstance(one.endpoint, TextEndpoint)
        }
        self._operations = [
            *texts,
            *self._own_operations(),
            *oip_rest.OipRest(service).operations(bodies),
        ]
        for one in self._operations:
            self.router.routes.append(Route(one.path, one.endpoint, methods=[one.method]))
        self.add_exception_handler(MuxserveError, _refuse)
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
                await Reply(204, b"", preflight).send(send)
                return
            send = self._cors.telling(scope, send)
        own = _own_path(scope)
        try:
            scope[CALLER] = self._authenticator.http_caller(scope, own)
        except MuxserveError as error:
            await _in_shape(own, error).send(send)
            return
        if scope["method"] == "POST" and not scope.get("root_path"):
            # They turn errors into JSON themselves; Starlette's layers would cost as much again.
            endpoint = self._direct.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self._described is None:
            self._described = describe(self._operations, self._authenticator.needs_key)
        return self._described

    def _own_operations(self) -> list[Operation]:
        """What is not a protocol's: probes and counters."""
        not_ready = {NotReady.status: {"model": ErrorBody, "description": "`not_ready`"}}
        return [
            get("/health", self._health, Health),
            get("/ready", self._ready, Health, not_ready),
            get("/stats", self._stats, dict[str, Any]),
            get("/metrics", self._metrics, str),
        ]

    async def _health(self, _: Request) -> Response:
        """The process is alive."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _ready(self, _: Request) -> Response:
        """An engine has warmed up and answers."""
        if not await self._service.backend.ready():
            raise NotReady("no engine has warmed up yet; try again later")
        return Response(b'{"status":"ready"}', media_type="application/json")

    async def _stats(self, _: Request) -> Response:
        """Counters of every engine since it started, and of this ingress."""
        return Response(orjson.dumps(await self._service.stats()), media_type="application/json")

    async def _metrics(self, _: Request) -> Response:
        """The same counters in the text format of Prometheus."""
        ready = await self._service.backend.ready()
        content = exposition(await self._service.stats(), ready=ready)
        return Response(content, headers={"content-type": CONTENT_TYPE})

    async def _unroutable(self, request: Request, error: Exception) -> Response:
        """What Starlette's router raises: an unknown path, or a known one with another method."""
        path = shown(request.scope["path"], quoted=False)
        if isinstance(error, HTTPException) and error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            method = shown(request.method, quoted=False)
            return await _refuse(
                request,
                MethodNotAllowed(f"{path} takes {allowed}, not {method}", allowed=allowed),
            )
        more = "; GET /docs lists all paths" if self._authenticator.tells_paths else ""
        return await _refuse(request, NotFound(f"there is nothing at {path}{more}"))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, MuxserveError)
    return _in_shape(_own_path(request.scope), error).as_response()


async def _unexpected(_: Request, __: Exception) -> Response:
    return refusal(Internal(), hugging_face.write_error).as_response()


def _own_path(scope: Scope) -> str:
    """The path below the route prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _in_shape(own_path: str, error: MuxserveError) -> Reply:
    """An error as the protocol of a path writes it."""
    of_oip = own_path == "/v2" or own_path.startswith("/v2/")
    return refusal(error, oip_rest.write_error if of_oip else hugging_face.write_error)
