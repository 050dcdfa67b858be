"""The Open Inference Protocol v2 over REST and gRPC, as ``tritonclient`` and Triton speak it.

What the model is called, and which of its inputs and outputs hold texts, labels and N, is read from
its metadata, so that muxserve and an exported model in Triton are asked alike.
"""

from typing import Any

import orjson

from muxserve.errors import InvalidInput
from muxserve.loadtest.generator.http_client import BadAnswer, HttpClient
from muxserve.loadtest.generator.requests import Answer, Request, failure
from muxserve.loadtest.generator.tally import OK
from muxserve.loadtest.scenario.texts import Labels, Text


class _Arrays:
    """Names of a model's arrays, from its metadata."""

    def __init__(self, model: str, inputs: list[Any], outputs: list[Any]) -> None:
        texts = [one for one in inputs if one["datatype"] == "BYTES"]
        if len(texts) != 1:
            raise InvalidInput(
                f"the model {model} takes {[one['name'] for one in inputs]}; "
                "expected one input of BYTES, for texts"
            )
        self.text: str = texts[0]["name"]
        #: [batch, 1] or [batch].
        self.nested = len(texts[0]["shape"]) > 1
        names = {one["name"].lower(): one["name"] for one in outputs}
        found = [names[one] for one in ("labels", "label", "scores") if one in names]
        self.label: str | None = found[0] if found else None
        #: Triton's classification extension: the best label of the scores, as score:index:label.
        self.classes = self.label == names.get("scores")
        self.width: str | None = names.get("num_instances")
        self.wanted = [one for one in (self.label, self.width) if one is not None]
        if not self.wanted:
            self.wanted = [outputs[0]["name"]]

    def shape(self, texts: int) -> list[int]:
        """Of the input."""
        return [texts, 1] if self.nested else [texts]

    def asked(self, name: str) -> dict[str, Any]:
        """An output, as JSON asks for it."""
        best = {"parameters": {"classification": 1}}
        return {"name": name, **(best if self.classes and name == self.label else {})}

    def read(self, label: Labels) -> Labels:
        """What an answer says, as a label."""
        return label.split(":", 2)[-1] if self.classes and isinstance(label, str) else label


class OipHttpSpeaker:
    """``POST /v2/models/MODEL/infer`` with JSON."""

    def __init__(self, url: str, model: str, headers: dict[str, str], timeout_s: float) -> None:
        self._client = HttpClient(url, headers, timeout_s)
        self.name = f"/v2/models/{model}/infer"
        response = self._client.get(f"/v2/models/{model}")
        if response.status != 200:
            raise InvalidInput(
                f"{url}/v2/models/{model} answers {response.status}: "
                f"{response.body[:200].decode(errors='replace')}"
            )
        content = orjson.loads(response.body)
        self._arrays = _Arrays(model, content["inputs"], content["outputs"])

    def prepare(self, texts: list[Text]) -> Request:
        arrays = self._arrays
        body = {
            "inputs": [
                {
                    "name": arrays.text,
                    "shape": arrays.shape(len(texts)),
                    "datatype": "BYTES",
                    "data": [one.text for one in texts],
                }
            ],
            "outputs": [arrays.asked(name) for name in arrays.wanted],
        }
        return Request(texts, self._client.prepare("POST", self.name, orjson.dumps(body)))

    def ask(self, request: Request) -> Answer:
        response = self._client.send(request.content)
        if response.status != 200:
            return failure(str(response.status), response.body)
        try:
            outputs = {one["name"]: one for one in orjson.loads(response.body)["outputs"]}
            answers = _per_text(outputs.get(self._arrays.label), len(request.texts))
            labels = [self._arrays.read(one) for one in answers]
            widths = _per_text(outputs.get(self._arrays.width), len(request.texts))
        except (LookupError, TypeError, ValueError):
            raise BadAnswer(f"no outputs in {response.body[:80]!r}") from None
        return Answer(OK, labels, [_first(one) for one in widths], length=len(response.body))

    def close(self) -> None:
        self._client.close()


class OipGrpcSpeaker:
    """``GRPCInferenceService.ModelInfer``, through tritonclient; gevent must be in gRPC's loop."""

    def __init__(self, url: str, model: str, headers: dict[str, str], timeout_s: float) -> None:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        self.name = f"ModelInfer {model}"
        # gRPC's metadata has small letters.
        headers = {name.lower(): value for name, value in headers.items()}
        self._model, self._headers, self._timeout_s = model, headers, timeout_s
        self._failure = InferenceServerException
        self._client = InferenceServerClient(url.removeprefix("http://").rstrip("/"))
        try:
            metadata = self._client.get_model_metadata(
                model, headers=headers or None, as_json=True, client_timeout=timeout_s
            )
        except InferenceServerException as error:
            raise InvalidInput(f"gRPC at {url}, model {model}: {error.message()}") from None
        self._arrays = _Arrays(model, metadata["inputs"], metadata["outputs"])

    def prepare(self, texts: list[Text]) -> Request:
        import numpy as np
        from tritonclient.grpc import InferInput, InferRequestedOutput

        array = InferInput(self._arrays.text, self._arrays.shape(len(texts)), "BYTES")
        given = np.array([one.text.encode() for one in texts], dtype=object)
        array.set_data_from_numpy(given.reshape(self._arrays.shape(len(texts))))
        labels, arrays = self._arrays.label, self._arrays
        outputs = [
            InferRequestedOutput(name, class_count=int(arrays.classes and name == labels))
            for name in arrays.wanted
        ]
        return Request(texts, ([array], outputs))

    def ask(self, request: Request) -> Answer:
        arrays, outputs = request.content
        try:
            result = self._client.infer(
                self._model,
                arrays,
                outputs=outputs,
                headers=self._headers or None,
                client_timeout=self._timeout_s,
            )
        except self._failure as error:
            status = str(error.status()).removeprefix("StatusCode.")
            if status == "UNAVAILABLE":
                raise ConnectionError(error.message()) from None
            return Answer(
                "timeout" if status == "DEADLINE_EXCEEDED" else status, (), (), error.message()
            )
        labels: list[Labels] = []
        if self._arrays.label is not None:
            rows = result.as_numpy(self._arrays.label).tolist()
            labels = [self._arrays.read(_decoded(row)) for row in rows]
        widths: list[int] = []
        if self._arrays.width is not None:
            widths = [int(one) for one in result.as_numpy(self._arrays.width).reshape(-1)]
        return Answer(OK, labels, widths)

    def close(self) -> None:
        self._client.close()


def _per_text(output: Any, texts: int) -> list[Any]:
    """An output's flat data, as one entry for each text."""
    if output is None:
        return []
    data, each = output["data"], max(1, len(output["data"]) // texts)
    rows = [data[at : at + each] for at in range(0, len(data), each)]
    return [row[0] if len(row) == 1 else row for row in rows]


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _decoded(row: Any) -> Labels:
    if isinstance(row, list):
        words = [one.decode() if isinstance(one, bytes) else str(one) for one in row]
        return words[0] if len(words) == 1 else words
    return row.decode() if isinstance(row, bytes) else str(row)
