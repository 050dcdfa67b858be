"""Every error a user can meet: a stable code, an HTTP status, a sentence that says what to do."""


class MuxserveError(Exception):
    """Base of all errors that muxserve raises on purpose.

    Attributes:
        code: stable, for programs.
        status: the HTTP status that serving answers with.
        field: the field of the request or file at fault, if there is one.
    """

    code = "internal"
    status = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders; the default pickling drops keyword arguments.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    kind: type[MuxserveError], args: tuple[object, ...], state: dict[str, object]
) -> MuxserveError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInput(MuxserveError):
    """A field of a request has a wrong type or value."""

    code = "invalid_input"
    status = 422


class TextTooLong(MuxserveError):
    """A text has more tokens than the family takes, and truncation was not allowed."""

    code = "text_too_long"
    status = 413


class TooManyTexts(MuxserveError):
    """One request carries more texts than allowed."""

    code = "too_many_texts"
    status = 413


class Overloaded(MuxserveError):
    """The line is full.

    Attributes:
        retry_after_s: seconds after which the line is predicted to have room.
    """

    code = "overloaded"
    status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(Overloaded):
    """The engine is not running: still warming up, or closed."""

    code = "not_ready"


class DeadlineExceeded(MuxserveError):
    """A request's deadline passed before its answer was there."""

    code = "deadline_exceeded"
    status = 504


class ForwardFailed(MuxserveError):
    """The forward pass failed for this text, even alone."""

    code = "forward_failed"
    status = 500


class FamilyError(MuxserveError, ValueError):
    """A family or checkpoint cannot be read or served; the message names the file and the field."""

    code = "bad_family"


def one_line(error: Exception) -> str:
    """An error in one line for the user: the file or field at fault, and why."""
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    elif hasattr(error, "errors") and callable(error.errors):  # pydantic's ValidationError
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}"
    return " ".join(message.split())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
