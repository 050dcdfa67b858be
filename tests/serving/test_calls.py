"""Calls of replicas: one more try when a replica dies, and 503 while none is alive."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from muxserve.errors import NotReady, Overloaded
from muxserve.serving.bundles import Bundle, BundleAnswer
from muxserve.serving.bundling import BundlingBackend
from muxserve.serving.config import IngressConfig
from muxserve.serving.metrics import exposition
from muxserve.serving.ray.calls import ReplicaCalls

BUNDLE = Bundle(np.array([1], np.int32), np.array([1], np.int32), ())
ANSWER = BundleAnswer(np.zeros((1, 2), np.float32), None, np.ones(1, np.int32), {})
BOUND_S = 20
HANGS = object()


class Response:
    """What a handle's call gives: awaitable, with ``cancel``."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self.work = work
        self.cancelled = False

    def __await__(self):
        return self.work.__await__()

    def cancel(self) -> None:
        self.cancelled = True


class Result:
    """What a broadcast gives of one replica."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    async def get_async(self) -> Any:
        if self.outcome is HANGS:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        pass


class Handle:
    """A handle of a deployment that is alive or not, and whose calls end as ``script`` says."""

    def __init__(self, *script: Any) -> None:
        self.alive = asyncio.Event()
        self.script = list(script)
        self.responses: list[Response] = []
        self.broadcasted: list[Any] = [None]

    def options(self, *, method_name: str) -> Any:
        work = {"predict_bundle": self._predict, "check_health": self._probe}[method_name]

        class Method:
            def remote(_, *args: Any) -> Response:  # noqa: N805
                response = Response(work(*args))
                if work == self._predict:
                    self.responses.append(response)
                return response

        return Method()

    def broadcast(self, method_name: str) -> Any:
        handle = self

        class Responses:
            async def _fetch_replica_results_async(_) -> list[Result]:  # noqa: N805
                if not handle.alive.is_set():
                    raise DeploymentUnavailableError(DeploymentID("MuxReplica"))
                return [Result(one) for one in handle.broadcasted]

        return Responses()

    async def _probe(self) -> None:
        await self.alive.wait()

    async def _predict(self, bundle: Bundle) -> BundleAnswer:
        await self.alive.wait()
        what = self.script.pop(0)
        if isinstance(what, Exception):
            raise what
        return await what() if callable(what) else what


def run(test: Callable[..., Awaitable[None]], *script: Any, alive: bool = True) -> None:
    async def bounded() -> None:
        handle = Handle(*script)
        if alive:
            handle.alive.set()
        async with asyncio.timeout(BOUND_S):
            await test(ReplicaCalls(handle, wait_s=0.02), handle)

    asyncio.run(bounded())


async def until_cancelled(response: Response) -> None:
    while not response.cancelled:
        await asyncio.sleep(0)


def test_a_bundle_whose_replica_died_is_sent_once_more():
    async def test(calls, handle):
        assert await calls.predict_bundle(BUNDLE) is ANSWER
        assert len(handle.responses) == 2

    run(test, ActorDiedError(), ANSWER)


def test_a_bundle_that_two_replicas_died_of_is_given_up():
    async def test(calls, handle):
        with pytest.raises(Overloaded):
            await calls.predict_bundle(BUNDLE)
        assert len(handle.responses) == 2

    run(test, ActorDiedError(), ActorDiedError(), ANSWER)


def test_without_a_replica_bundles_are_refused_until_there_is_one():
    async def test(calls, handle):
        assert not await calls.ready()
        for _ in range(3):
            with pytest.raises(NotReady):
                await calls.predict_bundle(BUNDLE)
        assert handle.responses == []
        handle.alive.set()
        assert await calls.ready()
        assert await calls.predict_bundle(BUNDLE) is ANSWER

    run(test, ANSWER, alive=False)


def test_a_bundle_that_waits_for_a_replica_which_has_gone_is_refused():
    async def test(calls, handle):
        assert await calls.predict_bundle(BUNDLE) is ANSWER
        handle.alive.clear()  # and nobody was told
        with pytest.raises(NotReady):
            await calls.predict_bundle(BUNDLE)
        await until_cancelled(handle.responses[1])

    run(test, ANSWER)


def test_the_death_of_a_replica_may_show_only_when_it_is_asked():
    async def test(calls, handle):
        handle.broadcasted = [ActorDiedError()]
        with pytest.raises(NotReady):
            await calls.predict_bundle(BUNDLE)

    run(test, asyncio.Event().wait)


@pytest.mark.parametrize("slow", [False, True])
def test_a_slow_answer_is_waited_for(slow):
    async def test(calls, handle):
        handle.broadcasted = [HANGS if slow else None]
        assert await calls.predict_bundle(BUNDLE) is ANSWER

    async def later() -> BundleAnswer:
        await asyncio.sleep(0.1)
        return ANSWER

    run(test, later)


def test_a_bundle_that_nobody_waits_for_is_cancelled_at_its_replica():
    async def test(calls, handle):
        assert await calls.ready()
        handle.alive.clear()
        asked = asyncio.create_task(calls.predict_bundle(BUNDLE))
        while not handle.responses:
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until_cancelled(handle.responses[0])

    run(test)


def test_a_replica_that_hangs_takes_no_others_counters_from_sight():
    async def test(calls, handle):
        handle.broadcasted = [{"pid": 1}, HANGS, ActorDiedError(), {"pid": 2}]
        assert await calls.stats() == [{"pid": 1}, {"missing": True}, {"pid": 2}]
        backend = BundlingBackend(calls, IngressConfig())
        stats = await backend.stats()
        assert stats["engines"] == [{"pid": 1}, {"pid": 2}]
        assert stats["ingress"]["missing_engines"] == 1
        assert b"muxserve_missing_engines 1.0" in exposition(stats, ready=True)

    run(test)
