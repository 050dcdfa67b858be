"""Bodies that are still coming: together they have a limit, and one caller does not fill it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from muxserve.errors import Overloaded
from muxserve.serving.listening.timers import Timers
from muxserve.serving.protocols.bodies import Bodies, ClientGone

MEGABYTE = 1 << 20
BOUND_S = 20.0
Message = dict[str, object]


class Client:
    """Sends a body part by part."""

    def __init__(self, bodies: Bodies, caller: str) -> None:
        self._parts: asyncio.Queue[Message] = asyncio.Queue()
        self.body = asyncio.create_task(
            bodies.read({"headers": []}, self._parts.get, 4 * MEGABYTE, BOUND_S, caller)
        )

    async def send(self, count: int, *, last: bool = False) -> None:
        part = {"type": "http.request", "body": b"x" * count, "more_body": not last}
        self._parts.put_nowait(part)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def go(self) -> None:
        self._parts.put_nowait({"type": "http.disconnect"})
        with pytest.raises(ClientGone):
            await self.body


def run(check: Callable[[Bodies], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(BOUND_S):
            await check(Bodies(8 * MEGABYTE, Timers()))

    asyncio.run(bounded())


def test_many_slow_bodies_of_one_caller_leave_room_for_others():
    async def check(bodies: Bodies) -> None:
        slow = [Client(bodies, "slow") for _ in range(20)]
        for one in slow:
            await one.send(MEGABYTE)
        refused = [one for one in slow if one.body.done()]
        assert len(refused) == 12
        for one in refused:
            with pytest.raises(Overloaded, match="bodies with 8388608 bytes are still coming"):
                one.body.result()
        quick = Client(bodies, "quick")
        await quick.send(MEGABYTE)
        await quick.send(10, last=True)
        assert len(await quick.body) == MEGABYTE + 10
        for one in slow[:8]:
            await one.go()

    run(check)


def test_what_is_read_refused_or_gone_gives_its_room_back():
    async def check(bodies: Bodies) -> None:
        for _ in range(30):
            ends, goes, large = (Client(bodies, "one") for _ in range(3))
            for one in (ends, goes, large):
                await one.send(2 * MEGABYTE)
            await ends.send(1, last=True)
            await goes.go()
            await large.send(3 * MEGABYTE)
            assert len(await ends.body) == 2 * MEGABYTE + 1
            with pytest.raises(Exception, match="the body is over"):
                await large.body

    run(check)


def test_a_small_or_whole_body_needs_no_room():
    async def check(bodies: Bodies) -> None:
        slow = [Client(bodies, "slow") for _ in range(8)]
        for one in slow:
            await one.send(MEGABYTE)
        small, whole = Client(bodies, "slow"), Client(bodies, "slow")
        await small.send(10_000)
        await small.send(1, last=True)
        await whole.send(3 * MEGABYTE, last=True)
        assert len(await small.body) == 10_001
        assert len(await whole.body) == 3 * MEGABYTE
        for one in slow:
            await one.go()

    run(check)
