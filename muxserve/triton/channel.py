"""The connections to a Triton server of one or many pods, renewed so that new pods get calls.

gRPC looks a name up again only when a connection is lost: pods that an autoscaler adds would get
nothing from an ingress that already runs. So the channel is replaced from time to time, balances
over every address of the name, and the old one is closed after its last call.
"""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from muxserve.triton.config import TritonConfig

#: Pods of Triton that are to go wait for longer (preStop in k8s/overlays/triton/triton.yaml).
RENEW_S = 30.0
_TRY_S = 2.0
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own waits two minutes at last before it looks for a server that was away.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A name with many addresses (a headless Service) is many pods: each gets its share.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # Else a new channel would share the old one's connections, and a Service with one address
    # would never choose another pod.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(slots=True, eq=False)
class _Channel:
    """A client, and the calls that it has under way."""

    client: InferenceServerClient
    made_s: float = field(default_factory=time.monotonic)
    calls: int = 0


class Channels:
    """The client to call with now. Belongs to one event loop."""

    def __init__(self, config: TritonConfig, renew_s: float = RENEW_S) -> None:
        """Connect at the first call.

        Args:
            config: where the server is.
            renew_s: seconds after which a channel is replaced.
        """
        self._config = config
        self._renew_s = renew_s
        self._now: _Channel | None = None
        self._open: set[_Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewal: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def client(self) -> Iterator[InferenceServerClient]:
        """The client for one call; it stays open until the call is over."""
        if self._now is None:
            self._now = self._made()
        elif self._now.made_s + self._renew_s <= time.monotonic() and self._renewal is None:
            self._renewal = self._start(self._renew(self._now))
        channel = self._now
        channel.calls += 1
        try:
            yield channel.client
        finally:
            channel.calls -= 1
            self._end_if_over(channel)

    async def close(self) -> None:
        """End every connection, with the calls on it."""
        if self._renewal is not None:
            self._renewal.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._now = None
        await asyncio.gather(*(channel.client.close() for channel in self._open))
        self._open.clear()

    async def _renew(self, old: _Channel) -> None:
        """Replace a channel, once the new one has reached a server."""
        new = self._made()
        try:
            await new.client.is_server_live(client_timeout=_TRY_S)
        except InferenceServerException:
            # The old one may have connections that work; it looks for the server by itself too.
            old.made_s = time.monotonic()
            self._end_if_over(new)
        else:
            self._now = new
            self._end_if_over(old)
        finally:
            self._renewal = None

    def _made(self) -> _Channel:
        ca_file = self._config.tls_ca_file
        channel = _Channel(
            InferenceServerClient(
                self._config.url,
                ssl=self._config.tls,
                root_certificates=None if ca_file is None else str(ca_file),
                channel_args=_CHANNEL,
            )
        )
        self._open.add(channel)
        return channel

    def _end_if_over(self, channel: _Channel) -> None:
        if channel is not self._now and channel.calls == 0 and channel in self._open:
            self._open.discard(channel)
            self._start(channel.client.close())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In no request's context, because it outlives the request; see BundlingBackend.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
