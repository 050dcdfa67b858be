"""Callers are told apart by their address, and learn nothing of each other's texts."""

import asyncio

import httpx
import pytest
import uvloop

from muxserve.bench.server import free_port
from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.serving.backend import LocalBackend
from muxserve.serving.callers import of_address, of_client, of_grpc_peer
from muxserve.serving.config import LimitsConfig
from muxserve.serving.http import create_app
from muxserve.serving.listener import Listener
from muxserve.serving.service import TextService


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a-socket-of-this-machine", ""),
        ("", ""),
    ],
)
def test_a_caller_is_an_address_or_a_network(address, name):
    assert of_address(address).name == name


def test_every_protocol_gives_the_same_caller():
    assert of_client(("10.0.0.1", 5)) == of_grpc_peer("ipv4:10.0.0.1:6") == of_address("10.0.0.1")
    assert of_client(("::1", 5)) == of_grpc_peer("ipv6:%5B::1%5D:6") == of_address("::1")
    assert of_client(None) == of_grpc_peer("unix:") == of_address("")


def test_counters_do_not_tell_that_another_sent_the_same_text(tiny_family):
    """Two clients of different addresses send one text each, while the engine is busy."""
    text = {"inputs": "a good film"}

    async def computed(addresses: list[str]) -> int:
        with Engine.from_family(tiny_family, EngineConfig(warm_up_s=0.5)) as engine:
            backend = LocalBackend(engine)
            service = TextService(
                engine.family.spec, engine.encoder, backend, LimitsConfig(), 10_000
            )
            port = free_port()
            listener = Listener("127.0.0.1", port)
            listener.start(create_app(service))
            before = engine.stats().filled_slots
            url = f"http://127.0.0.1:{port}/predict"
            transports = [httpx.AsyncHTTPTransport(local_address=one) for one in addresses]
            clients = [httpx.AsyncClient(transport=one, timeout=30) for one in transports]
            for _ in range(20):
                answers = await asyncio.gather(
                    *(client.post(url, json=text) for client in clients for _ in range(5))
                )
                assert {answer.status_code for answer in answers} == {200}
            for client in clients:
                await client.aclose()
            await listener.stop()
            return engine.stats().filled_slots - before

    of_two = uvloop.run(computed(["127.0.0.2", "127.0.0.3"]))
    # Each text of five at once may be computed once; those of the other caller never count.
    assert of_two >= 2 * 20
