"""Whether a remote engine is alive: one task probes it, callers wait for a bounded time."""

import asyncio
from collections.abc import Awaitable, Callable

from muxserve.engine.liveness import Liveness

BOUND_S = 20


class Remote:
    """Answers probes once it is ``up``."""

    def __init__(self) -> None:
        self.up = False
        self.probes = 0

    async def probe(self) -> bool:
        self.probes += 1
        return self.up


def run(test: Callable[[Remote, Liveness], Awaitable[None]], wait_s: float) -> None:
    async def bounded() -> None:
        remote = Remote()
        liveness = Liveness(remote.probe, wait_s)
        async with asyncio.timeout(BOUND_S):
            await test(remote, liveness)
        liveness.close()

    asyncio.run(bounded())


def test_those_who_wait_share_one_probe():
    async def test(remote: Remote, liveness: Liveness) -> None:
        remote.up = True
        assert all(await asyncio.gather(*(liveness.wait() for _ in range(5))))
        assert liveness.alive
        assert await liveness.wait()
        assert remote.probes == 1

    run(test, wait_s=BOUND_S)


def test_once_the_time_has_passed_callers_are_refused_at_once():
    async def test(remote: Remote, liveness: Liveness) -> None:
        assert not await liveness.wait()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(100):
            assert not await liveness.wait()
        assert loop.time() - began_s < 100 * 0.05

    run(test, wait_s=0.05)


def test_what_was_lost_is_found_again():
    async def test(remote: Remote, liveness: Liveness) -> None:
        liveness.found()
        assert await liveness.wait()
        assert remote.probes == 0
        liveness.lost()
        assert not liveness.alive
        remote.up = True
        assert await liveness.wait()
        assert remote.probes == 1

    run(test, wait_s=BOUND_S)
