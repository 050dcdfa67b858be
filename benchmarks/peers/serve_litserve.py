"""The plain model on LitServe: ``POST /predict``, ``{"text": ...}`` to ``{"scores": [...]}``.

One worker with a batch, as LitServe's guide to faster serving advises, and its ZeroMQ queue.
"""

import argparse
from typing import Any

import litserve
from plain_classifier import PlainClassifier, options


class Classify(litserve.LitAPI):
    """One classifier in each worker process."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(max_batch_size=given.batch_size, batch_timeout=given.batch_wait_ms / 1000)
        self.given = given

    def setup(self, device: str) -> None:
        self.classifier = PlainClassifier(
            self.given.model,
            threads=max(1, self.given.threads // self.given.workers),
            dtype=self.given.dtype,
        )
        self.classifier.warm_up(self.given.batch_size)

    def decode_request(self, request: dict[str, Any]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> list[list[float]]:
        return self.classifier(texts)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, scores: list[float]) -> dict[str, list[float]]:
        return {"scores": scores}


if __name__ == "__main__":
    given = options(batch_size=32, batch_wait_ms=5)
    server = litserve.LitServer(
        Classify(given), accelerator="cpu", workers_per_device=given.workers, fast_queue=True
    )
    server.run(host=given.host, port=given.port, log_level="warning", generate_client_file=False)
