"""Requests to a Triton server as its users send them, with the stock clients."""

from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

CLIENTS: dict[str, Any] = {"http": http_client, "grpc": grpc_client}


def ids_array(texts, pad_id: int = 0) -> np.ndarray:
    """Lists of ids as an int64 array [texts, tokens of the longest], padded at the end."""
    ids = np.full((len(texts), max(map(len, texts))), pad_id, dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids


class Asker:
    """A client for one protocol."""

    def __init__(self, server, protocol: str, *, connections: int = 1) -> None:
        self.kind = CLIENTS[protocol]
        if protocol == "http":
            self.client = self.kind.InferenceServerClient(server.http, concurrency=connections)
        else:
            self.client = self.kind.InferenceServerClient(server.grpc)

    def ids(self, model: str, ids: np.ndarray, *, dtype: str = "INT64", outputs=None, **parameters):
        """The outputs by name for an array of ids."""
        array = self.kind.InferInput("input_ids", list(ids.shape), dtype)
        array.set_data_from_numpy(ids)
        return self._infer(model, array, outputs or ("logits", "num_instances"), parameters)

    def texts(self, model: str, texts, outputs, **parameters):
        """The outputs by name for texts; ``scores`` as Triton's classes."""
        raw = [[text if isinstance(text, bytes) else text.encode()] for text in texts]
        array = self.kind.InferInput("text", [len(texts), 1], "BYTES")
        array.set_data_from_numpy(np.array(raw, dtype=object))
        return self._infer(model, array, outputs, parameters, classes=("scores",))

    def _infer(self, model, array, outputs, parameters, classes=()):
        wanted = [
            self.kind.InferRequestedOutput(name, class_count=2 if name in classes else 0)
            for name in outputs
        ]
        result = self.client.infer(model, [array], outputs=wanted, parameters=parameters or None)
        return {name: result.as_numpy(name) for name in outputs}

    def close(self) -> None:
        self.client.close()


def batch_sizes(server, model: str) -> dict[int, int]:
    """Number of a model's executions by batch size, from Triton's own statistics."""
    client = http_client.InferenceServerClient(server.http)
    try:
        (stats,) = client.get_inference_statistics(model)["model_stats"]
    finally:
        client.close()
    return {one["batch_size"]: one["compute_infer"]["count"] for one in stats["batch_stats"]}
