"""Errors that only HTTP can cause, each with a code and a status as in ``muxserve.errors``.

Nothing here is raised by the engine, and no error says more of the server's insides than its user
needs.
"""

from muxserve.errors import MuxserveError


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
    """A mistake of ours; the log has its traceback, the answer has not."""

    def __init__(self) -> None:
        super().__init__("an internal error; the server's log says more")
