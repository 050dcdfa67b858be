"""What became of each request for texts, counted at the door of every protocol.

received = answered + refused + expired + cancelled + failed, as soon as nothing is under way: a
request that is lost shows as a gap. A door is where a request's head, call or arguments are there
and its body is still to be read.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muxserve.errors import MuxserveError

#: answered: with 200. refused: the request's own fault, or no room: 4xx and 503. expired: 504.
#: cancelled: its client went before an answer. failed: our fault, 500.
Fate = Literal["answered", "refused", "expired", "cancelled", "failed"]
FATES: tuple[Fate, ...] = ("answered", "refused", "expired", "cancelled", "failed")

Response = TypeVar("Response")


class Fates:
    """Counters of one ingress; all of it belongs to its event loop."""

    def __init__(self) -> None:
        self._received = 0
        self._by_fate: dict[str, int] = dict.fromkeys(FATES, 0)

    def stats(self) -> dict[str, Any]:
        """As ``/stats`` has them, from any thread."""
        return {"received": self._received, "fates": dict(self._by_fate)}

    def counted_app(self, endpoint: ASGIApp) -> ASGIApp:
        """``endpoint``, its requests counted by the status that they are answered with."""
        return _Counted(self, endpoint)

    def counted(self, answer: Callable[[], Awaitable[Response]]) -> Callable[[], Any]:
        """``answer``, counted by the error that it raises."""

        async def noted() -> Response:
            with self.call():
                return await answer()

        return noted

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count what is inside of the block as one request."""
        self._received += 1
        fate: Fate = "cancelled"  # unless something else is seen
        try:
            yield
            fate = "answered"
        except MuxserveError as error:
            fate = _of_status(error.status)
            raise
        except Exception:
            fate = "failed"
            raise
        finally:
            self._by_fate[fate] += 1

    async def through(self, endpoint: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Call an ASGI endpoint as one request."""
        self._received += 1
        fate: Fate = "cancelled"

        async def noting(message: Message) -> None:
            nonlocal fate
            if message["type"] == "http.response.start":
                fate = _of_status(message["status"])
            await send(message)

        try:
            await endpoint(scope, receive, noting)
        except Exception:
            fate = "failed"
            raise
        finally:
            self._by_fate[fate] += 1


class _Counted:
    """An ASGI app; a class, because Starlette takes a function for one that wants a request."""

    def __init__(self, fates: Fates, endpoint: ASGIApp) -> None:
        self._fates = fates
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._fates.through(self._endpoint, scope, receive, send)


def _of_status(status: int) -> Fate:
    if status < 400:
        return "answered"
    if status == 504:
        return "expired"
    return "refused" if status < 500 or status == 503 else "failed"
