"""A request for texts in, its reply out: what every endpoint does around its protocol's answer.

It looks for room before it reads the body, counts what became of the request, and turns every
error into a reply in the protocol's shape. No more of a body is held than the limit allows.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muxserve.errors import MuxserveError, Overloaded
from muxserve.serving.access.callers import CALLER, Caller
from muxserve.serving.errors import Internal, MethodNotAllowed, Unauthenticated
from muxserve.serving.protocols.bodies import Bodies, ClientGone
from muxserve.serving.service import TextService

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
#: Gives the body of an error, as a protocol has it.
WriteError = Callable[[MuxserveError], bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that is ready to be sent."""

    status: int
    body: bytes
    headers: Headers = field(default_factory=list)
    content_type: bytes = b"application/json"

    async def send(self, send: Send) -> None:
        """Send it as ASGI's messages."""
        headers = self.headers
        if self.status != 204:  # which has no body
            headers = [
                (b"content-type", self.content_type),
                (b"content-length", str(len(self.body)).encode()),
                *headers,
            ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def as_response(self) -> Response:
        """It as Starlette's handlers return it."""
        headers = {name.decode(): value.decode() for name, value in self.headers}
        return Response(self.body, self.status, headers, media_type=self.content_type.decode())


def refusal(error: MuxserveError, write_error: WriteError) -> Reply:
    """An error as a reply, with the headers that HTTP has for it."""
    headers: Headers = []
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    return Reply(error.status, write_error(error), headers)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request for texts, with its whole body.

    Attributes:
        body: without its Content-Encoding.
        headers: of the request.
        began_s: when its head was there, on ``time.monotonic()``'s clock.
        caller: who asks.
    """

    body: bytes
    headers: Headers
    began_s: float
    caller: Caller


Answer = Callable[[TextRequest], Awaitable[Reply]]


class TextEndpoint:
    """An ASGI endpoint around ``answer``.

    Plain ASGI, because Python is what a request costs. Cancellation passes through: Ray cancels
    the call of a client that has gone.
    """

    def __init__(
        self,
        answer: Answer,
        service: TextService,
        bodies: Bodies,
        write_error: WriteError,
        check: Callable[[Scope], None] | None = None,
    ) -> None:
        """Serve requests of one protocol.

        Args:
            answer: of the protocol.
            service: has the limits, and counts.
            bodies: reads them.
            write_error: gives an error's body in the protocol's shape.
            check: raises where a request's path is at fault, before anything is read.
        """
        self._answer = answer
        self._service = service
        self._bodies = bodies
        self._write_error = write_error
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service.fates.through(self._serve, scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        service, caller = self._service, scope[CALLER]
        limits = service.limits_of(caller)
        try:
            if self._check is not None:
                self._check(scope)
            await service.check_room(caller)
            body = await self._bodies.read(
                scope, receive, limits.max_body_bytes, limits.request_timeout_s, caller.name
            )
            reply = await self._answer(TextRequest(body, scope["headers"], began_s, caller))
        except ClientGone:
            return
        except MuxserveError as error:
            reply = refusal(error, self._write_error)
        except Exception:
            log.exception("a request failed unexpectedly")
            reply = refusal(Internal(), self._write_error)
        await reply.send(send)
        if reply.status == 200:
            service.stages.total_s += time.monotonic() - began_s
