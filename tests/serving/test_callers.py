"""Callers are told apart by their address, and learn nothing of each other's texts."""

import asyncio

import httpx
import pytest
import uvloop

from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.access.callers import Caller, of_address, peer_address
from muxserve.serving.backend import LocalBackend
from muxserve.serving.config import LimitsConfig
from muxserve.serving.listening.listener import Listener
from muxserve.serving.protocols.http import create_app
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


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:6", "10.0.0.1"),
        ("ipv6:%5B::1%5D:6", "::1"),
        ("ipv6:[2001:db8::1]:6", "2001:db8::1"),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_a_peer_of_grpc_has_the_address_that_http_has(peer, address):
    assert peer_address(peer) == address


def test_an_isolation_key_reaches_no_group_of_another_key():
    """Whatever a request asks for: the engine's key begins with the name of the API key."""
    isolated = Caller("key:a", key="a", isolated=True)
    shared = Caller("key:b", key="b")
    nobody = of_address("10.0.0.1")
    assert shared.isolation_key(None) is nobody.isolation_key(None) is None
    asked = [None, "x", "a", ":", "a:", "a:x", ":x", "b:"]
    given = {
        (caller.name, one): caller.isolation_key(one)
        for caller in (isolated, shared, nobody)
        for one in asked
    }
    keys = [key for key in given.values() if key is not None]
    assert len(set(keys)) == len(keys)


def test_a_cap_is_the_narrower_one():
    capped = Caller("key:a", max_num_instances=2)
    assert [capped.cap(asked) for asked in (None, 1, 2, 5)] == [2, 1, 2, 2]
    assert [of_address("10.0.0.1").cap(asked) for asked in (None, 5)] == [None, 5]


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
