"""Connections to Triton follow its pods: real gRPC servers behind a Service with one address.

The Service forwards TCP connections, as kube-proxy does: a new connection goes to the current pod,
an existing one stays where it is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from muxserve.triton.channel import Channels
from muxserve.triton.config import TritonConfig

BOUND_S = 30
SLOW = "slow"


class Pod(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Counts its requests; the model ``slow`` is ready when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.slow_began = asyncio.Event()
        self.slow_may_end = asyncio.Event()
        self.peers: set[str] = set()

    async def ServerLive(self, request, context):  # noqa: N802 - the protocol's name
        return pb.ServerLiveResponse(live=True)

    async def ModelReady(self, request, context):  # noqa: N802
        self.asked += 1
        self.peers.add(context.peer())
        if request.name == SLOW:
            self.slow_began.set()
            await self.slow_may_end.wait()
        return pb.ModelReadyResponse(ready=True)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Pod, int]]:
    server, pod = grpc.aio.server(), Pod()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(pod, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield pod, port
    finally:
        await server.stop(None)


class Service:
    """One address; each new connection goes to the current pod."""

    def __init__(self, pod_port: int) -> None:
        self.pod_port = pod_port
        self.connections = 0
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Service":
        self.server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_pod = await asyncio.open_connection("127.0.0.1", self.pod_port)
        self.connections += 1
        ways = [(reader, to_pod[1]), (to_pod[0], writer)]
        self._pumps |= {asyncio.ensure_future(self._pump(*way)) for way in ways}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


def talk(
    url: str | None,
    conversation: Callable[..., Awaitable[None]],
    renew_s: float = 0.2,
) -> None:
    """Two pods, a Service in front of the first, and channels to it or to ``url``."""

    async def run() -> None:
        async with (
            asyncio.timeout(BOUND_S),
            running() as (one, port),
            running() as (two, other),
            Service(port) as service,
        ):
            where = (url or service.url).format(port=port, other=other)
            channels = Channels(TritonConfig(url=where), renew_s)
            try:
                await conversation(channels, service, one, two, other)
            finally:
                await channels.close()

    asyncio.run(run())


async def ask(channels: Channels, model: str = "quick") -> bool:
    with channels.client() as client:
        return await client.is_model_ready(model)


async def ask_until(channels: Channels, done: Callable[[], bool]) -> None:
    while not done():
        await ask(channels)
        await asyncio.sleep(0.01)


def test_a_pod_that_is_added_gets_calls_and_those_under_way_end():
    async def conversation(channels, service, one, two, other):
        slow = asyncio.create_task(ask(channels, SLOW))
        await one.slow_began.wait()
        service.pod_port = other
        await ask_until(channels, lambda: two.asked > 3)
        asked = one.asked
        for _ in range(20):
            await ask(channels)
        assert one.asked == asked, "every call goes over the new channel"
        assert not slow.done()
        assert len(channels._open) >= 2
        one.slow_may_end.set()
        assert await slow
        await ask_until(channels, lambda: len(channels._open) == 1)

    talk(None, conversation)


def test_a_channel_stays_while_it_is_young():
    async def conversation(channels, service, one, two, other):
        for _ in range(50):
            await ask(channels)
        assert service.connections == len(one.peers) == 1

    talk(None, conversation, renew_s=BOUND_S)


def test_the_old_channel_is_kept_where_a_new_one_reaches_nobody():
    async def conversation(channels, service, one, two, other):
        await ask(channels)
        service.server.close()
        first, until_s = channels._now, asyncio.get_running_loop().time() + 1
        await ask_until(channels, lambda: asyncio.get_running_loop().time() > until_s)
        assert channels._now is first
        assert len(one.peers) == 1

    talk(None, conversation)


def test_every_address_of_a_name_gets_calls():
    async def conversation(channels, service, one, two, other):
        await ask_until(channels, lambda: one.asked > 5 and two.asked > 5)

    talk("ipv4:127.0.0.1:{port},127.0.0.1:{other}", conversation, renew_s=BOUND_S)


def test_closing_ends_the_calls_that_are_under_way():
    async def conversation(channels, service, one, two, other):
        slow = asyncio.create_task(ask(channels, SLOW))
        await one.slow_began.wait()
        await channels.close()
        (error,) = await asyncio.gather(slow, return_exceptions=True)
        assert isinstance(error, InferenceServerException | asyncio.CancelledError)

    talk(None, conversation)
