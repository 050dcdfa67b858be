"""An interceptor of all calls of a gRPC server: who may call, and whether the message can be read.

A call without a key ends before its message is read. A message that cannot be parsed is the
caller's mistake; gRPC alone would log a traceback for it.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.errors import Unauthenticated

#: gRPC's classes have no types.
Handler = Any
Details = Any
Context = Any


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through, or ends them."""

    def __init__(self, authenticator: Authenticator, methods: Collection[str]) -> None:
        """Let calls of some methods through.

        Args:
            authenticator: who may call.
            methods: names of those that exist; for others gRPC would log a traceback.
        """
        self._authenticator = authenticator
        self._methods = methods
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
            if details.method.rpartition("/")[2] not in self._methods:
                return None  # UNIMPLEMENTED
            handler = await continuation(details)
            if handler is None or handler.unary_unary is None:
                return handler
            reader = self._readers[details.method] = _reading(handler)
        return reader


def _reading(handler: Handler) -> Handler:
    """A handler that reads the message itself, and says so where it cannot."""

    async def answer(message: bytes, context: Context) -> Any:
        try:
            request = handler.request_deserializer(message)
        except DecodeError:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the message is not one of this method"
            )
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )


def _refusing(error: Unauthenticated) -> Handler:
    async def refuse(_: Any, context: Context) -> None:
        await refuse_call(context, error)

    # Messages of a stream are read when they are asked for, and here they are not.
    return grpc.stream_unary_rpc_method_handler(refuse)


async def refuse_call(context: Context, error: Unauthenticated) -> None:
    """End a call that has no key."""
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, error.message, (("www-authenticate", "Bearer"),)
    )
