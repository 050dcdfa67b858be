"""A bundle in, its answer out, through a Ray handle; and what to do when replicas die.

A bundle whose replica died is sent once more, to another one: classifying has no effects, so that
is safe. While no replica answers, requests are refused with 503 instead of waiting without end,
which is what Ray's router would do.
"""

import asyncio
import contextvars
import logging
import time
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from muxserve.errors import MuxserveError, NotReady, Overloaded
from muxserve.serving.bundles import Bundle, BundleAnswer

log = logging.getLogger(__name__)

_PROBE_PAUSE_S = 0.2
#: A replica tells its counters from its event loop, which a forward never holds.
_STATS_TIMEOUT_S = 1.0


class ReplicaCalls:
    """The replicas of one deployment."""

    def __init__(self, handle: "DeploymentHandle[Any]", wait_s: float) -> None:
        """Args:
        handle: of the replicas' deployment.
        wait_s: how long a bundle waits for some replica to be alive.
        """
        self._handle = handle
        self._classify = handle.options(method_name="classify_bundle")
        self._probe = handle.options(method_name="check_health")
        self._wait_s = wait_s
        self._alive = asyncio.Event()
        self._looking_since_s = 0.0
        self._watch: asyncio.Task[None] | None = None

    async def classify_bundle(self, bundle: Bundle) -> BundleAnswer:
        """Answer a bundle on some replica, and on another one if that dies.

        Raises:
            NotReady: no replica is alive.
            Overloaded: two replicas died over this bundle, or Ray refuses more calls.
        """
        for _ in range(2):
            await self._some_replica()
            try:
                return await self._answer(bundle)
            except RayActorError:
                # Until one answers, it is not known whether any is alive.
                self._alive.clear()
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
            _cancelling(self._classify.remote(bundle))
        )
        try:
            while not (await asyncio.wait({call}, timeout=self._wait_s))[0]:
                # A bundle that Ray's router could not deliver waits there for the next replica,
                # and nothing tells it from one that is being computed; so look.
                if await self._all_are_dead():
                    self._alive.clear()
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
                await _cancelling(self._probe.remote())
        except Exception as error:
            log.debug("no replica is ready: %r", error)
            self._alive.clear()
            return False
        self._alive.set()
        return True

    async def stats(self) -> list[dict[str, Any]]:
        """Counters of every replica that tells them in time; of one that does not, that it is
        missing: one that hangs takes nobody else's from sight."""
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

    async def _some_replica(self) -> None:
        if self._alive.is_set():
            return
        self._look()
        # Who comes when that time has passed is refused at once.
        left_s = self._looking_since_s + self._wait_s - time.monotonic()
        try:
            await asyncio.wait_for(self._alive.wait(), max(0.0, left_s))
        except TimeoutError:
            raise NotReady("no replica is running yet; try again later") from None

    def _look(self) -> None:
        if not self._alive.is_set() and (self._watch is None or self._watch.done()):
            self._looking_since_s = time.monotonic()
            # In no request's context, because it outlives the request; see BundlingBackend.
            self._watch = asyncio.get_running_loop().create_task(
                self._until_alive(), context=contextvars.Context()
            )

    async def _until_alive(self) -> None:
        while not self._alive.is_set():
            try:
                await self._probe.remote()
            except Exception as error:
                log.debug("no replica yet: %r", error)
                await asyncio.sleep(_PROBE_PAUSE_S)
            else:
                self._alive.set()


def _outcome(call: "asyncio.Future[Any]") -> Any:
    if not call.done() or call.cancelled():
        return TimeoutError()
    return call.exception() or call.result()


async def _cancelling(response: Any) -> Any:
    """Await a Ray Serve response; where nobody wants it any more, tell the replica."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
