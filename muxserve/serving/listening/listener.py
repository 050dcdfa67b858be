"""An ASGI app and a port in, an HTTP server in this process out, with no proxy before it.

Ray Serve's proxies cost more per request than a small model's forward does. An ingress that listens
by itself answers with uvicorn alone. Several ingresses of a machine may share the port: the kernel
spreads connections over them.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muxserve.errors import InvalidInput
from muxserve.serving.listening.connections import (
    Connections,
    ConnectionsConfig,
    raise_descriptor_limit,
)
from muxserve.serving.listening.http11 import MuxProtocol
from muxserve.serving.listening.timers import Timer, Timers

#: Only a request that takes longer is watched for a client that disconnects; most do not.
_WATCH_AFTER_S = 0.1
#: Listening sockets that share the port. uvloop takes one connection of each per turn of the loop,
#: and under load a turn takes tens of milliseconds. A burst brings thousands of new clients: with
#: few sockets they wait for seconds behind those that are connected; with one, the kernel drops
#: them.
_SOCKETS = 128


class Listener:
    """Serves an app on ``host:port`` from the running event loop."""

    def __init__(self, host: str, port: int, connections: ConnectionsConfig | None = None) -> None:
        """Bind at once, so that a taken port shows before anything is loaded.

        Raises:
            InvalidInput: nothing can listen there.
        """
        # With few descriptors, fewer are for listening.
        sockets = min(_SOCKETS, max(1, raise_descriptor_limit() // 8))
        self._sockets = [bound_socket(host, port) for _ in range(sockets)]
        self._connections = Connections(connections or ConnectionsConfig())
        self._task: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None

    def start(self, app: ASGIApp) -> None:
        """Answer from now on."""
        config = uvicorn.Config(
            _watching_clients(app),
            http=cast(type[asyncio.Protocol], partial(MuxProtocol, self._connections)),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            # security.trusted_proxies says whom to believe, not an environment variable.
            proxy_headers=False,
        )
        self._connections.start()
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(
            self._server.serve(sockets=self._sockets)
        )

    async def stop(self) -> None:
        """Take no more connections, finish what is under way."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
            self._connections.stop()


class _Server(uvicorn.Server):
    """Leaves signals to Ray, which owns the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to ``host:port``, shared with other ingresses of this user.

    Raises:
        InvalidInput: nothing can listen there.
    """
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidInput(f"{host}: {error.strerror}", field="ingress.direct_host") from None
    bound = socket.socket(kind, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise InvalidInput(
            f"cannot listen on {host}:{port}: {error.strerror}", field="ingress.direct_port"
        ) from None
    bound.set_inheritable(True)
    return bound


def _watching_clients(app: ASGIApp) -> ASGIApp:
    """``app``, its call cancelled when the client disconnects before the answer is there."""
    timers = Timers()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        watch = _Watch(receive, timers)
        try:
            await app(scope, watch.receive_body, send)
        except asyncio.CancelledError:
            if not watch.client_is_gone:
                raise
        finally:
            watch.end()

    return watched


class _Watch:
    """Looks whether the client of the current task's request has disconnected."""

    __slots__ = ("_answering", "_body_is_read", "_next", "_receive", "_timers", "client_is_gone")

    def __init__(self, receive: Receive, timers: Timers) -> None:
        self._receive = receive
        self._timers = timers
        self._answering = asyncio.current_task()
        self._body_is_read = self.client_is_gone = False
        self._next: Timer | asyncio.Task[None] | None = timers.call_later(_WATCH_AFTER_S, self._go)

    async def receive_body(self) -> Message:
        message = await self._receive()
        self._body_is_read = message["type"] == "http.disconnect" or not message.get("more_body")
        return message

    def end(self) -> None:
        if self._next is not None:
            self._next.cancel()
            # It refers to this object: a cycle less for the collector, for every request.
            self._next = None

    def _go(self) -> None:
        if self._body_is_read:
            self._next = asyncio.get_running_loop().create_task(self._until_gone())
        else:
            self._next = self._timers.call_later(_WATCH_AFTER_S, self._go)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_is_gone = True
        if self._answering is not None:
            self._answering.cancel()
