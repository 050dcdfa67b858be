"""Origins of web pages in, the headers out that let a browser show them our answers.

Off unless origins are configured. A preflight has no key by its nature, and is answered without.
"""

from collections.abc import Sequence

from starlette.types import Message, Scope, Send

from muxserve.serving.protocols.endpoint import Headers

_METHODS = b"GET, POST"
_ASKED = b"authorization, content-type, content-encoding, inference-header-content-length"
_TOLD = (
    b"x-muxserve-num-instances, x-muxserve-truncated, inference-header-content-length, "
    b"retry-after, www-authenticate"
)
#: Seconds for which a browser may remember a preflight's answer.
_REMEMBERED_S = b"600"


class Cors:
    """What browsers are told about other origins."""

    def __init__(self, origins: Sequence[str]) -> None:
        """Let pages of some origins ask.

        Args:
            origins: as browsers send them, or ``*`` alone.
        """
        self._every = list(origins) == ["*"]
        self._origins = {origin.encode() for origin in origins}

    def __bool__(self) -> bool:
        return bool(self._origins)

    def _headers(self, origin: bytes | None) -> Headers:
        """Of every answer."""
        if self._every:
            return [(b"access-control-allow-origin", b"*")]
        # A cache must not give one origin's answer to another.
        headers: Headers = [(b"vary", b"Origin")]
        if origin in self._origins:
            assert origin is not None, "None is no configured origin"
            headers.append((b"access-control-allow-origin", origin))
        return headers

    def preflight(self, scope: Scope) -> Headers | None:
        """Headers of the answer where a request is a preflight of an origin that may ask."""
        if scope["method"] != "OPTIONS":
            return None
        origin = _header(scope, b"origin")
        wanted = _header(scope, b"access-control-request-method")
        if origin is None or wanted is None or not (self._every or origin in self._origins):
            return None
        return [
            *self._headers(origin),
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _ASKED),
            (b"access-control-max-age", _REMEMBERED_S),
        ]

    def telling(self, scope: Scope, send: Send) -> Send:
        """``send``, with our headers on the answer."""
        headers = self._headers(_header(scope, b"origin"))
        if len(headers) > 1 or self._every:
            headers.append((b"access-control-expose-headers", _TOLD))

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        return tell


def _header(scope: Scope, name: bytes) -> bytes | None:
    """The one value of a header; None where it is absent, or there several times."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None
