"""Every call of a gRPC server comes through here: who may pass, its message, its errors.

A call without a key ends before its message is read. A message must arrive in time, and those that
do not arrive soon share a limit, as bodies over HTTP do. An error becomes a gRPC status; gRPC alone
would write a traceback.
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from muxserve.errors import InvalidInput, MuxserveError
from muxserve.serving.access.callers import of_address, peer_address
from muxserve.serving.access.doors import Door
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
Response = TypeVar("Response")


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """An interceptor of all calls."""

    def __init__(
        self, service: TextService, door: Door, methods: Collection[str], requests: Collection[str]
    ) -> None:
        """Guard a service.

        Args:
            service: whose limits hold, and which counts requests.
            door: who may pass.
            methods: names of those that there are; of others gRPC would write a traceback.
            requests: those of them that are requests for texts.
        """
        self._door = door
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
            self._door.check_grpc(details.method, details.invocation_metadata)
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
            async def read_and_answer() -> Any:
                message = await self._bodies.read_message(
                    context.read,
                    self._limits.max_body_bytes,
                    self._limits.request_timeout_s,
                    self._sender(context),
                )
                if message is grpc.aio.EOF:  # the call ended without one
                    raise InvalidInput("the call has no message")
                try:
                    request = handler.request_deserializer(message)
                except DecodeError:
                    raise InvalidInput("the message is not one of this method") from None
                return await handler.unary_unary(request, context)

            counted = self._fates.counted(read_and_answer) if is_request else read_and_answer
            return await _or_status(context, counted)

        # Only messages of a stream are read when they are asked for.
        return grpc.stream_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )

    def _sender(self, context: Context) -> str:
        """The name of the caller whose share a message takes."""
        try:
            return self._door.grpc_caller(context.peer(), context.invocation_metadata()).name
        except Unauthenticated:  # a probe, which needs no key
            return of_address(peer_address(context.peer())).name


async def _or_status(context: Context, answer: Callable[[], Awaitable[Response]]) -> Response:
    """The answer, or an error as a gRPC status with our message."""
    try:
        return await answer()
    except MuxserveError as error:
        failure = error
    except Exception:
        log.exception("a call failed unexpectedly")
        failure = Internal()
    await _abort(context, failure)
    raise AssertionError("abort raises")


def _refusing(error: Unauthenticated) -> Handler:
    async def refuse(_: Any, context: Context) -> None:
        await _abort(context, error)

    return grpc.stream_unary_rpc_method_handler(refuse)


async def _abort(context: Context, error: MuxserveError) -> None:
    """End a call with an error."""
    status = _STATUS.get(error.status, grpc.StatusCode.INTERNAL)
    is_unknown = isinstance(error, Unauthenticated)
    metadata = (("www-authenticate", "Bearer"),) if is_unknown else ()
    await context.abort(status, error.message, metadata)
