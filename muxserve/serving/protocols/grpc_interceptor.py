"""An interceptor of all calls of a gRPC server: who may call, the message, the errors.

A call without a key ends before its message is read. A message must arrive in time, and slow ones
share a limit, as bodies over HTTP do. An error becomes a gRPC status; gRPC alone would log a
traceback.
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from muxserve.errors import InvalidInput, MuxserveError
from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.access.callers import of_address, peer_address
from muxserve.serving.errors import Internal, Unauthenticated
from muxserve.serving.protocols.bodies import Bodies
from muxserve.serving.service import TextService

log = logging.getLogger(__name__)

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

#: gRPC's classes have no types.
Handler = Any
Details = Any
Context = Any


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through, or ends them."""

    def __init__(
        self,
        service: TextService,
        authenticator: Authenticator,
        methods: Collection[str],
        requests: Collection[str],
    ) -> None:
        """Let calls of some methods through.

        Args:
            service: whose limits hold, and which counts requests.
            authenticator: who may call.
            methods: names of those that exist; for others gRPC would log a traceback.
            requests: the methods that answer texts.
        """
        self._authenticator = authenticator
        self._methods = methods
        self._requests = requests
        self._fates = service.fates
        self._limits = service.limits
        self._bodies = Bodies(service.limits.max_bodies_bytes, service.timers)
        self._readers: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], details: Details
    ) -> Handler:
        """The handler of a call; called by gRPC once its metadata is there."""
        try:
            self._authenticator.check_grpc(details.method, details.invocation_metadata)
        except Unauthenticated as error:
            return _refusing(error)
        reader = self._readers.get(details.method)
        if reader is None:
            name = details.method.rpartition("/")[2]
            if name not in self._methods:
                return None  # UNIMPLEMENTED
            handler = await continuation(details)
            if handler is None or handler.unary_unary is None:
                return handler
            reader = self._readers[details.method] = self._reading(handler, name in self._requests)
        return reader

    def _reading(self, handler: Handler, is_request: bool) -> Handler:
        """A handler that reads the message itself."""

        async def answer(_: Any, context: Context) -> Any:
            failure: MuxserveError
            try:
                with self._fates.call() if is_request else nullcontext():
                    request = await self._message(handler, context)
                    return await handler.unary_unary(request, context)
            except MuxserveError as error:
                failure = error
            except Exception:
                log.exception("a call failed unexpectedly")
                failure = Internal()
            await _end(context, failure)

        # Only messages of a stream are read when they are asked for.
        return grpc.stream_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )

    async def _message(self, handler: Handler, context: Context) -> Any:
        message = await self._bodies.read_message(
            context.read,
            self._limits.max_body_bytes,
            self._limits.request_timeout_s,
            lambda: self._sender(context),
        )
        if message is grpc.aio.EOF:  # the call ended without one
            raise InvalidInput("the call has no message")
        try:
            return handler.request_deserializer(message)
        except DecodeError:
            raise InvalidInput("the message is not one of this method") from None

    def _sender(self, context: Context) -> str:
        """The name of the caller whose share a message takes."""
        try:
            return self._authenticator.grpc_caller(
                context.peer(), context.invocation_metadata()
            ).name
        except Unauthenticated:  # a probe, which needs no key
            return of_address(peer_address(context.peer())).name


def _refusing(error: Unauthenticated) -> Handler:
    async def refuse(_: Any, context: Context) -> None:
        await _end(context, error)

    return grpc.stream_unary_rpc_method_handler(refuse)


async def _end(context: Context, error: MuxserveError) -> None:
    """End a call with an error as a gRPC status with our message."""
    status = _STATUS.get(error.status, grpc.StatusCode.INTERNAL)
    needs_key = isinstance(error, Unauthenticated)
    metadata = (("www-authenticate", "Bearer"),) if needs_key else ()
    await context.abort(status, error.message, metadata)
