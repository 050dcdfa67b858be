"""An ASGI request's messages in, its body out, within a limit of bytes and of time.

A body that says it is too large is refused before a byte of it is read; one that does not say so is
refused at the message that makes it too large. One that came packed is unpacked within the same
limits.
"""

from starlette.types import Receive, Scope

from muxserve.errors import DeadlineExceeded
from muxserve.serving.errors import BodyTooLarge
from muxserve.serving.timers import Timers
from muxserve.serving.unpacking import unpacked


class ClientGone(Exception):
    """The client disconnected before its body was complete; there is nobody to answer."""


async def read_body(
    scope: Scope, receive: Receive, max_bytes: int, timeout_s: float, timers: Timers
) -> bytes:
    """The whole body, without its Content-Encoding.

    Raises:
        BodyTooLarge: more than ``max_bytes``, as it came or unpacked.
        DeadlineExceeded: it did not arrive within ``timeout_s``, however steadily it came.
        MalformedEncoding: it is not what its Content-Encoding says.
        UnsupportedEncoding: its Content-Encoding is none that is read here.
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
        with timers.timeout(timeout_s):
            body = await _read(receive, max_bytes)
            return await unpacked(body, b", ".join(encodings), max_bytes) if encodings else body
    except TimeoutError:
        raise DeadlineExceeded(f"the body did not arrive within {timeout_s:g} s") from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    total = 0
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


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {max_bytes} bytes; send the texts in several requests")
