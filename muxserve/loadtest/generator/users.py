"""Locust users. Each is a source of requests, not a person: it never waits for an answer.

A user draws Poisson arrivals and sends each request when it is due, however many are under way, and
a request's latency counts from then. So a slow server cannot slow its own test, and no wait is
hidden (coordinated omission). In a job the users share the job's load; in a plain run of Locust
each sends ``--rate-per-user`` requests per second, or the whole load of ``--scenario``.
"""

import contextlib
import math
import random
import time
from typing import Any, ClassVar, Literal

import gevent
from gevent.pool import Pool
from locust import User, constant, task
from locust.exception import StopUser

from muxserve.errors import MuxserveError
from muxserve.loadtest.generator.http_client import BadAnswer
from muxserve.loadtest.generator.load_spec import Job
from muxserve.loadtest.generator.recording import Recorder
from muxserve.loadtest.generator.requests import (
    Answer,
    PredictSpeaker,
    ReadySpeaker,
    Request,
    Speaker,
    requests_of,
)
from muxserve.loadtest.generator.tally import OK
from muxserve.loadtest.scenario.shapes import OpenShape, Saturate, Search, arrivals_s
from muxserve.loadtest.scenario.texts import Text


class LoadFailed(Exception):
    """A request was not answered as it should be; Locust's tables show its message."""


class MuxUser(User):
    """A source of requests; its subclasses say which."""

    abstract = True
    wait_time = constant(0)
    kind: ClassVar[str]
    #: Set by the locustfile before any user starts.
    job: ClassVar[Job]
    texts: ClassVar[list[Text]]
    recorder: ClassVar[Recorder]
    _count: ClassVar[int] = 0

    def speaker(self, job: Job) -> Speaker:
        """What speaks the protocol."""
        raise NotImplementedError

    def on_start(self) -> None:
        """Prepare every request, so that sending costs little."""
        self._under_way = Pool()
        job = type(self).job.model_copy(update={"url": self.host or self.job.url})
        MuxUser._count += 1
        worker = getattr(self.environment.runner, "worker_index", 0)
        self._seed = hash((job.seed, worker, MuxUser._count))
        try:
            self._speaker = self.speaker(job)
        except (MuxserveError, OSError) as error:
            self._fail(str(error))
            raise StopUser() from None
        self._requests = requests_of(
            self._speaker, self.kind, self.texts, job.texts_per_request, self._seed
        )

    def on_stop(self) -> None:
        """Let what is under way end, for as long as Locust gives it; then end connections."""
        self._under_way.join(timeout=self.environment.stop_timeout)
        if hasattr(self, "_speaker"):
            self._speaker.close()

    @task
    def load(self) -> None:
        """The whole load of this user, until the last answer."""
        start_s = max(self.recorder.start_s, time.monotonic())
        gevent.sleep(start_s - time.monotonic())
        shape = self.job.shape
        if isinstance(shape, Saturate):
            self._closed(shape, start_s)
        elif not isinstance(shape, Search):
            self._open(shape, start_s)
        self.recorder.user_is_through()
        raise StopUser()

    def _open(self, shape: OpenShape, start_s: float) -> None:
        # A user of a plain run may start long after the run did.
        after_s = start_s - self.recorder.start_s
        rng = random.Random(self._seed)
        for number, at_s in enumerate(arrivals_s(shape, self.job.scale, rng)):
            # A generator that is late still lets answers in.
            gevent.sleep(max(0.0, start_s + at_s - time.monotonic()))
            request = self._requests[number % len(self._requests)]
            self._under_way.spawn(self._send, request, after_s + at_s)
        # Each ends by itself at its own time limit.
        self._under_way.join()

    def _closed(self, shape: Saturate, start_s: float) -> None:
        clients = max(1, round(shape.clients * self.job.scale))
        end_s = start_s + shape.seconds

        def client(index: int) -> None:
            turn = index
            while (now := time.monotonic()) < end_s:
                ok = self._send(
                    self._requests[turn % len(self._requests)], now - self.recorder.start_s
                )
                turn += clients
                if not ok:
                    gevent.sleep(0.05)  # a server that refuses at once is not to be asked for ever

        for index in range(clients):
            self._under_way.spawn(client, index)
        self._under_way.join()

    def _send(self, request: Request, due_s: float) -> bool:
        recorder = self.recorder
        recorder.due(due_s, time.monotonic() - recorder.start_s)
        left_s = self.job.timeout_s - (time.monotonic() - recorder.start_s - due_s)
        try:
            with gevent.Timeout(max(0.001, left_s)):
                answer = self._speaker.ask(request)
        except (gevent.Timeout, TimeoutError):
            answer = Answer("timeout", message=f"no answer within {self.job.timeout_s:g} s")
        except OSError as error:
            answer = Answer("connection", message=str(error) or type(error).__name__)
        except (BadAnswer, ValueError) as error:
            answer = Answer("bad_answer", message=str(error))
        now_s = time.monotonic() - recorder.start_s
        recorder.answered(request, answer, due_s, now_s)
        ok = answer.status == OK
        self.environment.events.request.fire(
            request_type=self.kind,
            name=self._speaker.name,
            response_time=1000 * (now_s - due_s),
            response_length=answer.length,
            exception=None if ok else LoadFailed(f"{answer.status}: {answer.message[:200]}"),
            context={},
        )
        return ok

    def _fail(self, message: str) -> None:
        counted_s = float(math.ceil(self.job.shape.warm_up_s))
        answer = Answer("not_started", message=message)
        self.recorder.due(counted_s, counted_s)
        self.recorder.answered(Request([], None), answer, counted_s, counted_s)
        self.environment.events.request.fire(
            request_type=self.kind, name="start", response_time=0, response_length=0,
            exception=LoadFailed(message), context={},
        )  # fmt: skip
        self.recorder.user_is_through()


class _PredictUser(MuxUser):
    abstract = True
    single: ClassVar[bool] = True

    def speaker(self, job: Job) -> Speaker:
        return PredictSpeaker(
            job.url,
            job.path or "/predict",
            job.headers,
            job.timeout_s,
            single=self.single,
            source=job.source,
        )


class OneText(_PredictUser):
    """``POST /predict`` with one text."""

    kind: ClassVar[Literal["text"]] = "text"


class ManyTexts(_PredictUser):
    """``POST /predict`` with several texts in each request."""

    kind = "texts"
    single = False


class MixedLengths(_PredictUser):
    """``POST /predict`` with one text, short and long ones in turn."""

    kind = "mixed"


class Words(_PredictUser):
    """``POST /predict`` of a family that labels words."""

    kind = "tokens"


class Ready(MuxUser):
    """``GET /ready``: requests that ask for nothing."""

    kind = "ready"

    def speaker(self, job: Job) -> Speaker:
        return ReadySpeaker(job.url, job.headers, job.timeout_s)


class OipHttp(MuxUser):
    """The Open Inference Protocol v2 over REST."""

    kind = "oip-http"

    def speaker(self, job: Job) -> Speaker:
        from muxserve.loadtest.generator.oip_clients import OipHttpSpeaker

        return OipHttpSpeaker(job.url, job.model, job.headers, job.timeout_s)


class OipGrpc(MuxUser):
    """The Open Inference Protocol v2 over gRPC."""

    kind = "oip-grpc"

    def speaker(self, job: Job) -> Speaker:
        import grpc.experimental.gevent as grpc_gevent

        from muxserve.loadtest.generator.oip_clients import OipGrpcSpeaker

        grpc_gevent.init_gevent()
        return OipGrpcSpeaker(job.url, job.model, job.headers, job.timeout_s)


class Handle(MuxUser):
    """A Ray Serve ``DeploymentHandle``, through ``muxserve.loadtest.generator.handle_bridge``."""

    kind = "handle"

    def speaker(self, job: Job) -> Speaker:
        from muxserve.loadtest.generator.handle_client import HandleSpeaker

        return HandleSpeaker(job.url)

    def on_stop(self) -> None:
        with contextlib.suppress(OSError):
            super().on_stop()


def set_up(job: Job, texts: list[Text], recorder: Recorder) -> None:
    """Give every class of users what they share."""
    shared: dict[str, Any] = {"job": job, "texts": texts, "recorder": recorder}
    for name, value in shared.items():
        setattr(MuxUser, name, value)
