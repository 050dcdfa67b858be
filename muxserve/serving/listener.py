"""An ASGI app and a port in, an HTTP server of this process out: no proxy before it.

Ray Serve's proxies cost more per request than a small model's forward does. An ingress that listens
by itself answers with uvicorn alone. Several ingresses of a machine may share the port: the kernel
spreads connections over them.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muxserve.errors import InvalidInput

#: A request that takes longer is watched for a client that has gone; most are answered before.
_WATCH_AFTER_S = 0.1
#: Listening sockets that share the port. uvloop takes one connection of each per turn of the loop.
#: Under load turns are long, and with one socket new clients wait until the kernel drops them.
_SOCKETS = 16


class Listener:
    """Serves an app on ``host:port`` from the running event loop."""

    def __init__(self, host: str, port: int) -> None:
        """Bind at once, so that a port that is taken is told before anything is loaded.

        Raises:
            InvalidInput: nothing can listen there.
        """
        self._sockets = [bound_socket(host, port) for _ in range(_SOCKETS)]
        self._task: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None

    def start(self, app: ASGIApp) -> None:
        """Answer from now on."""
        config = uvicorn.Config(
            _watching_clients(app),
            http="httptools",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            # Nobody here reads the client's address.
            proxy_headers=False,
            # Longer than clients and load balancers keep an idle connection.
            timeout_keep_alive=75,
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(
            self._server.serve(sockets=self._sockets)
        )

    async def stop(self) -> None:
        """Take no more connections, finish what is under way."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task


class _Server(uvicorn.Server):
    """Leaves signals to Ray, whose process this is."""

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

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        answering = asyncio.current_task()
        gone = asyncio.Event()
        body_is_read = False

        async def receive_body() -> Message:
            nonlocal body_is_read
            message = await receive()
            body_is_read = message["type"] == "http.disconnect" or not message.get("more_body")
            return message

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            assert answering is not None
            answering.cancel()

        watch: asyncio.Task[None] | asyncio.TimerHandle

        def start_watch() -> None:
            nonlocal watch
            if body_is_read:
                watch = loop.create_task(until_gone())
            else:
                watch = loop.call_later(_WATCH_AFTER_S, start_watch)

        watch = loop.call_later(_WATCH_AFTER_S, start_watch)
        try:
            await app(scope, receive_body, send)
        except asyncio.CancelledError:
            if not gone.is_set():
                raise
        finally:
            watch.cancel()

    return watched
