"""A bundle in, its answer out, through a Ray handle; and what to do when replicas die.

A bundle whose replica died is sent once more, to another one. That is safe, because a prediction
has no effects. While no replica answers, requests are refused with 503; Ray's router alone would
let them wait without end.
"""

import asyncio
import logging
import time
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from muxserve.engine.liveness import Liveness
from muxserve.errors import MuxserveError, NotReady, Overloaded
from muxserve.serving.bundles import Bundle, BundleAnswer

log = logging.getLogger(__name__)

#: A replica tells its counters from its event loop, which a forward never holds.
_STATS_TIMEOUT_S = 1.0


class ReplicaCalls:
    """The replicas of one deployment."""

    def __init__(self, handle: "DeploymentHandle[Any]", wait_s: float) -> None:
        """Call replicas through a handle.

        Args:
            handle: of the replicas' deployment.
            wait_s: how long a bundle waits for some replica to be alive.
        """
        self._handle = handle
        self._predict = handle.options(method_name="predict_bundle")
        self._probe = handle.options(method_name="check_health")
        self._wait_s = wait_s
        self._liveness = Liveness(self._some_replica_answers, wait_s)

    async def predict_bundle(self, bundle: Bundle) -> BundleAnswer:
        """Answer a bundle on some replica, and on another one if that dies.

        Raises:
            NotReady: no replica is alive.
            Overloaded: two replicas died over this bundle, or Ray refuses more calls.
        """
        for _ in range(2):
            if not await self._liveness.wait():
                raise NotReady("no replica is running yet; try again later")
            try:
                return await self._answer(bundle)
            except RayActorError:
                # Until one answers, it is not known whether any is alive.
                self._liveness.lost()
                log.warning("a replica died with a bundle of %d requests", len(bundle.requests))
            except TaskCancelledError as error:
                raise NotReady("the replica is shutting down; try again") from error
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise Overloaded(f"{error}; try again later") from error
            except RayTaskError as error:
                # Ray wraps what a replica raises in a class that is both.
                cause = error.cause
                raise cause if isinstance(cause, MuxserveError) else error from None
        raise Overloaded("the replicas that took this request died; try again later")

    async def _answer(self, bundle: Bundle) -> BundleAnswer:
        call: asyncio.Future[BundleAnswer] = asyncio.ensure_future(
            _cancelling(self._predict.remote(bundle))
        )
        try:
            while not (await asyncio.wait({call}, timeout=self._wait_s))[0]:
                # A bundle that Ray's router could not deliver waits there for the next replica,
                # and nothing tells it from one that is being computed; so look.
                if await self._all_are_dead():
                    self._liveness.lost()
                    raise NotReady("no replica is running any more; try again later")
            return call.result()
        finally:
            call.cancel()

    async def _all_are_dead(self) -> bool:
        """Whether it is certain that no replica is alive; a slow one is not dead."""
        try:
            answers = await self._ask_all("check_health", self._wait_s)
        except DeploymentUnavailableError:
            return True
        except TimeoutError:
            return False
        return all(isinstance(answer, RayActorError) for answer in answers)

    async def ready(self) -> bool:
        """Whether some replica answers; asks one, so that an idle ingress knows too."""
        try:
            async with asyncio.timeout(self._wait_s):
                answers = await self._some_replica_answers()
        except TimeoutError:
            answers = False
        if answers:
            self._liveness.found()
        else:
            self._liveness.lost()
        return answers

    async def _some_replica_answers(self) -> bool:
        """Ask one; Ray's router waits for it where there is none."""
        try:
            await _cancelling(self._probe.remote())
        except Exception as error:
            log.debug("no replica is ready: %r", error)
            return False
        return True

    async def stats(self) -> list[dict[str, Any]]:
        """Counters of every replica, or that it is missing where it does not tell them in time.

        So one that hangs hides no other.
        """
        try:
            answers = await self._ask_all("stats", _STATS_TIMEOUT_S)
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [
            {"missing": True} if isinstance(answer, TimeoutError) else answer
            for answer in answers
            if isinstance(answer, dict | TimeoutError)
        ]

    async def _ask_all(self, method: str, timeout_s: float) -> list[Any]:
        """What every replica answers, or its exception: TimeoutError of one that is late.

        Raises:
            DeploymentUnavailableError: there is none.
            TimeoutError: Ray itself does not say in time which there are.
        """
        began_s = time.monotonic()
        # results_async() gives nothing where one is late, so each is awaited by itself.
        sent = self._handle.broadcast(method)._fetch_replica_results_async()
        async with asyncio.timeout(timeout_s):
            results = await sent
        calls = [asyncio.ensure_future(one.get_async()) for one in results]
        if not calls:
            return []
        left_s = max(0.0, began_s + timeout_s - time.monotonic())
        try:
            await asyncio.wait(calls, timeout=left_s)
            return [_outcome(call) for call in calls]
        finally:
            for call, result in zip(calls, results, strict=True):
                if not call.done():
                    call.cancel()
                    # Or calls of a replica that hangs would gather there.
                    result.cancel()


def _outcome(call: "asyncio.Future[Any]") -> Any:
    if not call.done() or call.cancelled():
        return TimeoutError()
    return call.exception() or call.result()


async def _cancelling(response: Any) -> Any:
    """Await a Ray Serve response; when the await is cancelled, cancel it at the replica too."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
