"""An ingress that listens by itself: real sockets, clients that go away, ports that are taken."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvloop

from muxserve.errors import InvalidInput
from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.listening import http11 as protocol_module
from muxserve.serving.listening.listener import Listener

BOUND_S = 20


@asynccontextmanager
async def listening(app, port: int) -> AsyncIterator[str]:
    listener = Listener("127.0.0.1", port)
    listener.start(app)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await asyncio.wait_for(listener.stop(), BOUND_S)


async def echo(scope, receive, send) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def test_it_answers_what_the_app_answers():
    async def ask() -> None:
        async with listening(echo, free_port()) as url, httpx.AsyncClient() as client:
            for body in (b"one", b"two"):
                answer = await client.post(url, content=body)
                assert (answer.status_code, answer.content) == (200, body)

    asyncio.run(ask())


def test_a_client_that_goes_away_cancels_its_request_and_no_other():
    cancelled: list[bytes] = []
    release = asyncio.Event()

    async def slow(scope, receive, send) -> None:
        body = (await receive())["body"]
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancelled.append(body)
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def ask() -> None:
        async with listening(slow, free_port()) as url, httpx.AsyncClient() as client:
            stays = asyncio.create_task(client.post(url, content=b"stays", timeout=BOUND_S))
            with pytest.raises(httpx.ReadTimeout):
                await client.post(url, content=b"goes", timeout=0.5)
            async with asyncio.timeout(BOUND_S):
                while not cancelled:
                    await asyncio.sleep(0.01)
            release.set()
            assert (await stays).content == b"stays"
        assert cancelled == [b"goes"]

    asyncio.run(ask())


def test_stopping_lets_a_request_that_is_under_way_end():
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow(scope, receive, send) -> None:
        await receive()
        entered.set()
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def ask() -> None:
        port = free_port()
        listener = Listener("127.0.0.1", port)
        listener.start(slow)
        async with httpx.AsyncClient(timeout=BOUND_S) as client:
            under_way = asyncio.create_task(client.post(f"http://127.0.0.1:{port}", content=b"x"))
            await entered.wait()
            stopping = asyncio.create_task(listener.stop())
            await asyncio.sleep(0.2)
            release.set()
            assert (await under_way).content == b"done"
            await asyncio.wait_for(stopping, BOUND_S)

    asyncio.run(ask())


def test_ingresses_of_one_machine_share_a_port():
    port = free_port()

    async def ask() -> None:
        async with listening(echo, port) as url, listening(echo, port):
            for _ in range(20):
                async with httpx.AsyncClient() as client:
                    assert (await client.post(url, content=b"x")).content == b"x"

    asyncio.run(ask())


def test_a_port_of_another_program_is_refused_at_once():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1:{port}") as refused:
            Listener("127.0.0.1", port)
    assert refused.value.field == "ingress.direct_port"


def test_an_address_that_is_not_here_is_refused_at_once():
    with pytest.raises(InvalidInput, match=r"no\.such\.host\.invalid") as refused:
        Listener("no.such.host.invalid", free_port())
    assert refused.value.field == "ingress.direct_host"


def test_the_head_and_the_body_of_an_answer_leave_as_one(monkeypatch):
    written: list[bytes] = []

    class Recording(protocol_module.OneWrite):
        def _flush(self) -> None:
            if self._held:
                written.append(b"".join(self._held))
            super()._flush()

    monkeypatch.setattr(protocol_module, "OneWrite", Recording)

    async def ask() -> None:
        async with listening(echo, free_port()) as url, httpx.AsyncClient() as client:
            for headers in ({}, {"connection": "close"}):
                assert (await client.post(url, content=b"body", headers=headers)).content == b"body"

    asyncio.run(ask())
    assert len(written) == 2
    assert all(
        one.startswith(b"HTTP/1.1 200") and one.endswith(b"body\r\n0\r\n\r\n") for one in written
    )


def test_a_large_answer_to_a_slow_reader_arrives_whole():
    body = bytes(range(256)) * 40_000

    async def large(scope, receive, send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for start in range(0, len(body), 100_000):
            part = body[start : start + 100_000]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> bytes:
        async with (
            listening(large, free_port()) as url,
            httpx.AsyncClient() as client,
            client.stream("POST", url) as answer,
        ):
            await asyncio.sleep(0.3)
            return b"".join([part async for part in answer.aiter_raw()])

    assert asyncio.run(ask()) == body


def test_a_crowd_of_new_clients_is_taken_in_a_few_turns_of_the_loop():
    clients, most_turns = 200, 14  # with 16 sockets it takes about 20
    came = 0

    async def count(scope, receive, send) -> None:
        nonlocal came
        came += 1
        await echo(scope, receive, send)

    async def crowd() -> int:
        port = free_port()
        async with listening(count, port), contextlib.AsyncExitStack() as stack:
            await asyncio.sleep(0.1)  # it listens
            for _ in range(clients):  # the kernel connects them, while this loop stands still
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), BOUND_S))
                client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            turns = 0
            while came < clients:
                turns += 1
                await asyncio.sleep(0)
            return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(crowd()) <= most_turns
