"""The plain model on Ray Serve: ``POST /``, ``{"text": ...}`` to ``{"scores": [...]}``.

``@serve.batch`` as its guide shows it: the batch method calls the model itself. Handing the forward
to a thread would be worse: batches are cut by their timer while the one before still runs.
"""

import argparse
import os
import signal
from threading import Event

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from plain_classifier import PlainClassifier, options
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment
class Classify:
    """One classifier in each replica."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.classifier = PlainClassifier(
            given.model, threads=max(1, given.threads // given.workers), dtype=given.dtype
        )
        self.classifier.warm_up(given.batch_size)
        self.classify.set_max_batch_size(given.batch_size)
        self.classify.set_batch_wait_timeout_s(given.batch_wait_ms / 1000)

    @serve.batch
    async def classify(self, texts: list[str]) -> list[list[float]]:
        return self.classifier(texts)

    async def __call__(self, request: Request) -> JSONResponse:
        text = (await request.json())["text"]
        return JSONResponse({"scores": await self.classify(text)})


def main() -> None:
    given = options(batch_size=32, batch_wait_ms=10)
    stop = Event()
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            num_cpus=given.threads,
            _node_ip_address=given.host,
        )
        # After ray.init, which sets handlers of its own.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        serve.start(http_options={"host": given.host, "port": given.port})
        deployment = Classify.options(
            num_replicas=given.workers,
            # The default of 5 would never let a batch fill.
            max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": given.threads / given.workers},
            logging_config={"enable_access_log": False},
        )
        serve.run(deployment.bind(given), name="default", route_prefix="/")
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
