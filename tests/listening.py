"""A service's HTTP and gRPC in this process, for tests that look behind them too."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.listening.listener import Listener
from muxserve.serving.protocols.http import create_app
from muxserve.serving.protocols.oip_grpc import GrpcListener
from muxserve.serving.service import TextService

_BOUND_S = 30


@contextmanager
def listening(
    service: TextService,
    authenticator: Authenticator | None = None,
    cors_origins: Sequence[str] = (),
) -> Iterator[tuple[int, int]]:
    """Listen on a loop of its own; gives the ports of HTTP and gRPC."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    http_port, grpc_port = free_port(), free_port()

    async def start() -> tuple[Listener, GrpcListener]:
        listener = Listener("127.0.0.1", http_port)
        listener.start(create_app(service, authenticator, cors_origins))
        rpc = GrpcListener(service, "127.0.0.1", grpc_port, authenticator=authenticator)
        await rpc._starting
        return listener, rpc

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(_BOUND_S)

    listener, rpc = wait(start())
    try:
        yield http_port, grpc_port
    finally:
        wait(rpc.stop())
        wait(listener.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_BOUND_S)
        loop.close()
