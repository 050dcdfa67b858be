"""The plain model on mosec: ``POST /inference``, ``{"text": ...}`` to ``{"scores": [...]}``.

One worker that tokenizes and classifies a batch.
"""

import os
from typing import Any

from mosec import Server, Worker
from plain_classifier import PlainClassifier, options

# Read here too, because mosec starts each worker as a new process of this file.
given = options(batch_size=32, batch_wait_ms=1)


class Classify(Worker):
    """One classifier in each worker process."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = PlainClassifier(
            given.model, threads=max(1, given.threads // given.workers), dtype=given.dtype
        )
        self.classifier.warm_up(given.batch_size)

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
        return [{"scores": scores} for scores in self.classifier([one["text"] for one in data])]


if __name__ == "__main__":
    os.environ |= {
        "MOSEC_ADDRESS": given.host,
        "MOSEC_LOG_LEVEL": "warning",
        # The default of 3 s would answer 408 to the first requests of a slow model.
        "MOSEC_TIMEOUT": "60000",
    }
    server = Server()
    server.append_worker(
        Classify,
        num=given.workers,
        max_batch_size=given.batch_size,
        max_wait_time=max(1, round(given.batch_wait_ms)),
    )
    server.run()
