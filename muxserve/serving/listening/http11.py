"""Bytes of one connection in, calls of the app out: uvicorn's HTTP/1.1 with limits of our own.

A head has a size and a deadline. What cannot be read is answered in JSON, after the answers that
are due before it. A request to upgrade to another protocol is ignored. Nothing that a client does
is logged.
"""

import asyncio
import time
from typing import Any

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from muxserve.errors import MuxserveError, Overloaded
from muxserve.serving.errors import BadRequest, HeadTimeout, HeadTooLarge
from muxserve.serving.listening.connections import Connections, Phase

#: Requests of one connection that wait for the one before; no real client sends so many.
_MOST_PIPELINED = 256
#: A body in chunks may take so many bytes for each of its own: one of a byte takes 6.
_FRAMING = 16
#: Headers that ask to upgrade to HTTP/2.
_OF_UPGRADES = (b"upgrade", b"http2-settings", b"connection")


class MuxProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        all_connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = all_connections
        self._max_head_bytes = all_connections.config.max_head_bytes
        self.phase = Phase.SILENT
        self.since_s = time.monotonic()
        self.stuck_since_s: float | None = None
        self._in_head = False
        self._whole = True  # the message that came last has all of its body
        self._came_bytes = 0  # with the packet that is being read
        self._head_bytes = 0  # of the head that is being read, or more
        self._framing_bytes = 0  # of the body that is being read, beside what its bytes may take
        self._refusal: MuxserveError | None = None
        # None before the first request; uvicorn's types do not say so.
        self.cycle: RequestResponseCycle | None  # type: ignore[assignment]
        self._last_words: bytes | None = None

    # The transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport))
        if self._all.admit(self):
            return
        if self._all.crowded:
            self.abort()
        else:
            self._refuse(Overloaded("this server has no room for more connections; try again"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.forget(self)
        super().connection_lost(exc)

    def eof_received(self) -> None:
        # A client that closes its side is not answered; what is still written has its deadline.
        self.phase, self.since_s = Phase.CLOSING, time.monotonic()

    def pause_writing(self) -> None:
        self.stuck_since_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stuck_since_s = None
        super().resume_writing()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.phase, self.since_s = Phase.CLOSING, time.monotonic()

    def late(self) -> None:
        """Called by the sweep: the phase took too long."""
        if self.phase == Phase.HEAD and not self.transport.get_write_buffer_size():
            self._refuse(HeadTimeout("the request's head did not arrive in time"))
        else:
            self.abort()

    def abort(self) -> None:
        """End it now."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._last_words is not None or self.transport.is_closing():
            return
        self._came_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        elif not self._whole:
            self._framing_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or BadRequest(_why(error)))
            return
        if self._in_head and self._head_bytes > self._max_head_bytes:
            self._refuse(self._head_too_large())
        elif not self._whole and self._framing_bytes > self._max_head_bytes:
            self._refuse(BadRequest("the body's chunks are all framing, or its trailers too long"))

    def _feed(self, data: bytes | memoryview) -> None:
        """Parse.

        At a request to upgrade, the parser stops behind the head. So the head is read again
        without that request, and the rest after it.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = memoryview(data)[upgrade.args[0] :]
            if self.parser.get_method() == b"CONNECT":
                self._refusal = BadRequest("CONNECT asks for a proxy, and this is none")
                raise httptools.HttpParserError
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._came_bytes = len(head)
            self.parser.feed_data(head)
            self._came_bytes = len(rest)
            data = rest

    def _head_without_upgrade(self) -> bytes:
        kept = [value for name, value in self.headers if name == b"connection"]
        tokens = [token.strip() for value in kept for token in value.split(b",")]
        stay = [one for one in tokens if one.lower() in (b"close", b"keep-alive")]
        headers = [one for one in self.headers if one[0] not in _OF_UPGRADES]
        if stay:
            headers.append((b"connection", b", ".join(stay)))
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in headers]
        return b"\r\n".join([*lines, b"", b""])

    # The parser's side

    def _should_upgrade(self) -> bool:
        return True  # so that uvicorn leaves such a head to _feed

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._came_bytes
        if self.cycle is None or self.cycle.response_complete:
            self.phase, self.since_s = Phase.HEAD, time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is not believed
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._max_head_bytes:
            # That counts all bytes that came with it; its own size takes longer to find.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._max_head_bytes:
                self._stop(self._head_too_large())
        if self.parser.should_upgrade():
            return
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(BadRequest(f"HTTP/{version} is not spoken here; use HTTP/1.1"))
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._stop(BadRequest("too many requests before the answer to the first"))
        super().on_headers_complete()
        self._in_head = self._whole = False
        self._framing_bytes = 0
        if not self.pipeline:
            self.phase = Phase.BODY

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= _FRAMING * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # read again, without the request to upgrade
        super().on_message_complete()
        self._whole = True
        if not self.pipeline:
            answered = self.cycle is not None and self.cycle.response_complete
            self.phase = Phase.IDLE if answered else Phase.ANSWER

    def on_response_complete(self) -> None:
        # As uvicorn's, but the sweep looks after the deadlines instead of a timer per answer.
        self.server_state.total_requests += 1
        self.since_s = time.monotonic()
        if self.transport.is_closing():
            self.phase = Phase.CLOSING
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self.phase = Phase.BODY if cycle.more_body else Phase.ANSWER
            self._start_asgi_task(cycle, app)
        elif self._last_words is not None:
            self._say_last()
        elif self._in_head:
            self.phase = Phase.HEAD
        else:
            self.phase = Phase.IDLE if self._whole else Phase.DRAINING

    # Refusals

    def _stop(self, error: MuxserveError) -> None:
        """Leave the parser, from one of its calls."""
        self._refusal = error
        raise httptools.HttpParserError

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(f"the request's head is over {self._max_head_bytes} bytes")

    def _refuse(self, error: MuxserveError) -> None:
        """Answer with ``error`` once what came before is answered, and close."""
        if self._last_words is not None:
            return
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if cycle is not None and not self._in_head and not self._whole:  # its body is at fault
            if self.pipeline:
                self.pipeline.popleft()
            elif cycle.response_started:
                # It has its answer, or a part of it.
                self.abort()
                return
            else:
                cycle.disconnected, busy = True, False
                cycle.message_event.set()
        self._last_words = _as_bytes(error)
        if not busy:
            self._say_last()

    def _say_last(self) -> None:
        assert self._last_words is not None
        # Closed with bytes unread, the kernel would reset the connection, and the answer be lost.
        self.flow.resume_reading()
        self.transport.write(self._last_words)
        self.transport.write_eof()
        self.phase, self.since_s = Phase.LINGERING, time.monotonic()


class OneWrite(asyncio.Transport):
    """A transport that hands the kernel at once what one turn of the loop wrote.

    uvicorn writes the head of an answer and its body apart: here they leave as one.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def _flush(self) -> None:
        held, self._held = self._held, []
        # Aborted meanwhile: nobody reads it, and a closed transport refuses it.
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))

    def write_eof(self) -> None:
        self._flush()
        if not self._transport.is_closing():
            self._transport.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)


def _why(error: httptools.HttpParserError) -> str:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return "this is no HTTP request: its method is unknown"
    if isinstance(error, httptools.HttpParserCallbackError):
        return "the request's target cannot be read"  # what uvicorn's own callbacks refuse
    if "PRI" in str(error):
        return "HTTP/2 is not spoken here; use HTTP/1.1"
    return f"the request cannot be read: {error}"


def _as_bytes(error: MuxserveError) -> bytes:
    """A whole response that closes its connection."""
    body = orjson.dumps({"error": error.code, "message": error.message})
    headers = [
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
    ]
    if isinstance(error, Overloaded):
        headers.append(b"retry-after: 1")
    return STATUS_LINE[error.status] + b"\r\n".join([*headers, b"", body])
