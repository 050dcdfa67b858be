"""What became of each request for texts, counted at the entrance of every protocol.

received = answered + refused + expired + cancelled + failed, as soon as nothing is under way: a
request that is lost shows as a gap. A request counts from the moment its head, call or arguments
are there, before its body is read.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muxserve.errors import MuxserveError

#: answered: with 200. refused: the request's own fault, or no room: 4xx and 503. expired: 504.
#: cancelled: its client went before an answer. failed: our fault, 500.
Fate = Literal["answered", "refused", "expired", "cancelled", "failed"]
FATES: tuple[Fate, ...] = ("answered", "refused", "expired", "cancelled", "failed")


class Fates:
    """Counters of one ingress; all of it belongs to its event loop."""

    def __init__(self) -> None:
        self._received = 0
        self._by_fate: dict[str, int] = dict.fromkeys(FATES, 0)

    def stats(self) -> dict[str, Any]:
        """As ``/stats`` has them, from any thread."""
        return {"received": self._received, "fates": dict(self._by_fate)}

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count the block as one request, by the error that it raises."""
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
        """Call an ASGI endpoint as one request, counted by the status of its response."""
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


def _of_status(status: int) -> Fate:
    if status < 400:
        return "answered"
    if status == 504:
        return "expired"
    return "refused" if status < 500 or status == 503 else "failed"
