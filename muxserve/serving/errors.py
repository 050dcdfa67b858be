"""Errors that only HTTP can cause, each with a code and a status as in ``muxserve.errors``.

The engine raises none of these, and no error says more about the server's insides than its user
needs.
"""

from collections.abc import Iterable

from muxserve.errors import MuxserveError

#: Characters of what a client sent that an error repeats; gRPC's trailers have a limit too.
_SHOWN_CHARACTERS = 100


def shown(value: object, *, quoted: bool = True) -> str:
    """A client's value as an error repeats it: printable, and cut before anything else.

    Args:
        value: of any type and size.
        quoted: whether a text is in quotes.
    """
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of many digits"
    cut = False
    if isinstance(value, str | bytes):
        cut = len(value) > _SHOWN_CHARACTERS
        value = value[:_SHOWN_CHARACTERS]
    told = repr(value)
    if isinstance(value, str) and not quoted:
        told = told[1:-1]
    cut = cut or len(told) > 2 * _SHOWN_CHARACTERS
    return told[: 2 * _SHOWN_CHARACTERS] + ("..." if cut else "")


def dotted(loc: Iterable[int | str]) -> str | None:
    """A place in a body or file: ``("a", 3, "b")`` as ``a[3].b``."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or None


class MalformedJson(MuxserveError):
    """The body is not JSON in UTF-8."""

    code = "malformed_json"
    status = 400


class BodyTooLarge(MuxserveError):
    """The body has more bytes than allowed."""

    code = "body_too_large"
    status = 413


class NotFound(MuxserveError):
    """There is nothing at this path."""

    code = "not_found"
    status = 404


class Unauthenticated(MuxserveError):
    """No API key, or an unknown one."""

    code = "unauthenticated"
    status = 401


class MethodNotAllowed(MuxserveError):
    """The path exists, but not for this method.

    Attributes:
        allowed: the methods that do, as the ``Allow`` header wants them.
    """

    code = "method_not_allowed"
    status = 405

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class Internal(MuxserveError):
    """A bug of muxserve; its traceback is in the log, not in the answer."""

    def __init__(self) -> None:
        super().__init__("an internal error; the server's log says more")


class BadRequest(MuxserveError):
    """The bytes are not a readable HTTP request; the connection is closed."""

    code = "bad_request"
    status = 400


class HeadTimeout(MuxserveError):
    """A request's head did not arrive in time; the connection is closed."""

    code = "request_timeout"
    status = 408


class HeadTooLarge(MuxserveError):
    """A request's head has more bytes than allowed; the connection is closed."""

    code = "head_too_large"
    status = 431


class MalformedEncoding(MuxserveError):
    """The body is not what its Content-Encoding says."""

    code = "malformed_encoding"
    status = 400


class UnsupportedEncoding(MuxserveError):
    """The body has a Content-Encoding that is not supported."""

    code = "unsupported_encoding"
    status = 415
