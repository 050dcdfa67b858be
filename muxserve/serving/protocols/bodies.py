"""An ASGI request's messages in, its body out, within a limit of bytes and of time.

A body that says it is too large is refused before a byte of it is read, any other at the message
that makes it too large. A compressed body is unpacked within the same limits. Bodies that are still
coming share a limit too; otherwise a client that sends slowly on many connections would fill the
memory.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive, Scope

from muxserve.engine.room import Room
from muxserve.errors import DeadlineExceeded, Overloaded
from muxserve.serving.errors import BodyTooLarge
from muxserve.serving.listening.timers import Timers
from muxserve.serving.protocols.unpacking import unpacked

#: Bytes of an unfinished body that need no room: there are no more bodies than connections.
_FREE_BYTES = 16_384
#: A message is whole within this time, unless its sender is slow.
_AT_ONCE_S = 1.0
#: A caller who holds less is too small to take others' room.
_BULK_BYTES = 1024 * 1024


class ClientGone(Exception):
    """The client disconnected before its body was complete; there is nobody to answer."""


class Bodies:
    """Reads bodies; those that are still coming take no more memory together than they may."""

    def __init__(self, most_bytes: int, timers: Timers) -> None:
        """Limit what all bodies take together.

        Args:
            most_bytes: of what came of one caller's unfinished bodies; all callers together may
                have a quarter more.
            timers: of the event loop.
        """
        self._room = Room(most_bytes, _BULK_BYTES)
        self._timers = timers

    async def read(
        self, scope: Scope, receive: Receive, max_bytes: int, timeout_s: float, caller: str
    ) -> bytes:
        """The whole body, without its Content-Encoding.

        Raises:
            BodyTooLarge: more than ``max_bytes``, as it came or unpacked.
            DeadlineExceeded: it did not arrive within ``timeout_s``, however steadily it came.
            MalformedEncoding: it is not what its Content-Encoding says.
            Overloaded: too many bodies are coming.
            UnsupportedEncoding: its Content-Encoding is not supported.
            ClientGone: the client went away.
        """
        encodings = []
        for name, value in scope["headers"]:
            if name == b"content-encoding":
                encodings.append(value)
            # A length that is no number is the HTTP server's to refuse.
            if (
                name == b"content-length"
                and value.isdigit()
                # Python reads no number of thousands of digits.
                and (len(value.lstrip(b"0")) > 18 or int(value) > max_bytes)
            ):
                raise _too_large(max_bytes)
        try:
            with self._timers.timeout(timeout_s):
                body = await self._read(receive, max_bytes, caller)
                return await unpacked(body, b", ".join(encodings), max_bytes) if encodings else body
        except TimeoutError:
            raise DeadlineExceeded(f"the body did not arrive within {timeout_s:g} s") from None

    async def read_message(
        self,
        read: Callable[[], Coroutine[Any, Any, bytes]],
        max_bytes: int,
        timeout_s: float,
        sender: Callable[[], str],
    ) -> bytes:
        """The message of a gRPC call, which nobody sees before it is whole.

        One that does not arrive at once counts as ``max_bytes`` until it does.

        Args:
            read: reads it; cancelled where it does not arrive.
            max_bytes: that gRPC lets it have.
            timeout_s: until it must be there.
            sender: names the caller; only asked about a slow message.

        Raises:
            DeadlineExceeded: it did not arrive within ``timeout_s``.
            Overloaded: too many messages are coming.
        """
        reading = asyncio.ensure_future(read())
        held, caller = 0, ""
        try:
            await asyncio.wait([reading], timeout=min(_AT_ONCE_S, timeout_s))
            if not reading.done():
                await asyncio.sleep(0)  # where this loop was late, and not the message
            if not reading.done():
                caller = sender()
                self._hold(caller, max_bytes)
                held = max_bytes
                await asyncio.wait([reading], timeout=timeout_s - _AT_ONCE_S)
            if not reading.done():
                raise DeadlineExceeded(f"the message did not arrive within {timeout_s:g} s")
            return reading.result()
        finally:
            reading.cancel()
            if held:
                self._room.remove(caller, held)

    async def _read(self, receive: Receive, max_bytes: int, caller: str) -> bytes:
        chunks: list[bytes] = []
        total = held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                total += len(chunk)
                if total > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                if total > _FREE_BYTES:
                    self._hold(caller, total - held)
                    held = total
        finally:
            if held:
                self._room.remove(caller, held)

    def _hold(self, caller: str, more: int) -> None:
        if not self._room.admits(caller, more):
            raise Overloaded(
                f"bodies with {self._room.total} bytes are still coming, {self._room.held(caller)} "
                "of them this caller's: finish some, or try again later"
            )
        self._room.add(caller, more)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {max_bytes} bytes; send the texts in several requests")
