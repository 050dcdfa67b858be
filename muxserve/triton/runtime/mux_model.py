"""A multiplexed model in Triton's Python backend: requests with token ids in, logits out.

Triton calls ``execute`` with the waiting requests. A request that cannot be answered gets its own
error, never a neighbour's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from muxserve.triton.runtime.batches import SlotFiller, Text, activate
from muxserve.triton.runtime.facts import Facts, Tuning
from muxserve.triton.runtime.rows import Refused, read_options, read_rows

_INPUT = "input_ids"


class Reply:
    """The response to one request, sent as soon as it is complete.

    Triton before 24.07 only takes all responses together, when the execution ends.

    Attributes:
        texts: the request's texts; ``missing`` of them have no answer yet.
        returned: what the execution returns for the request; None once it has been sent.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        self.texts: list[Text] = []
        self.missing = 0
        self.returned: Any = None
        try:
            self._sender = request.get_response_sender()
        except pb_utils.TritonModelException:
            self._sender = None

    def send(self, response: Any) -> None:
        """Answer the request."""
        if self._sender is None:
            self.returned = response
        else:
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def refuse(self, message: str, code: int) -> None:
        """Answer the request with an error."""
        self.send(_error(message, code))


class TritonPythonModel:
    """The class that Triton loads from ``model.py``, once for each instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph of every N and measure forward times; then the model is ready."""
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        given = {
            name: value["string_value"] for name, value in config.get("parameters", {}).items()
        }
        self._tuning = tuning = Tuning.of_parameters(given)
        self._facts = Facts.read(folder)
        self._sessions = {
            n: _session(folder / graph_file(n), args, tuning.threads) for n in self._facts.widths
        }
        self._filler = SlotFiller(self._facts, tuning, self._forward)
        self._filler.warm_up()
        pb_utils.Logger.log_info(
            f"{args['model_name']}: N of {self._facts.widths}, {len(self._facts.labels)} labels"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, each as soon as its last text is done."""
        replies = [Reply(request) for request in requests]
        owner: dict[int, Reply] = {}
        texts: list[Text] = []
        for reply in replies:
            try:
                reply.texts = self._read(reply.request)
            except Refused as error:
                reply.refuse(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            most = self._tuning.max_waiting_texts
            # The first request always fits: Triton has bounded its size.
            if texts and len(texts) + len(reply.texts) > most:
                reply.refuse(
                    f"the line is full: {most} texts wait; try again later",
                    pb_utils.TritonError.UNAVAILABLE,
                )
                continue
            texts += reply.texts
            reply.missing = len(reply.texts)
            owner.update((id(text), reply) for text in reply.texts)
        for settled in self._filler.answer(texts):
            for text in settled:
                reply = owner[id(text)]
                reply.missing -= 1
                if not reply.missing:
                    reply.send(self._response(reply.texts, reply.request.requested_output_names()))
        return [reply.returned for reply in replies]

    def _read(self, request: Any) -> list[Text]:
        options = read_options(request.parameters(), self._facts.widths[0])
        ids = pb_utils.get_input_tensor_by_name(request, _INPUT).as_numpy()
        return [Text(row, options) for row in read_rows(_INPUT, ids, self._facts)]

    def _forward(self, n: int, ids: np.ndarray) -> np.ndarray:
        (logits,) = self._sessions[n].run(["logits"], {_INPUT: ids})
        return np.asarray(logits)

    def _response(self, texts: list[Text], wanted: list[str]) -> Any:
        for row, text in enumerate(texts):
            if text.failure is not None:
                return _error(f"{_INPUT}[{row}]: {text.failure}", pb_utils.TritonError.INTERNAL)
        logits = self._stack([text.logits for text in texts if text.logits is not None])
        outputs = {
            "logits": logits,
            "num_instances": np.array([[one.num_instances] for one in texts], dtype=np.int32),
        }
        if not self._facts.of_tokens and "scores" in wanted:
            outputs["scores"] = activate(logits, self._facts.problem_type).astype(np.float32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, outputs[name]) for name in wanted if name in outputs]
        )

    def _stack(self, logits: list[np.ndarray]) -> np.ndarray:
        """One array for a request's texts; logits of tokens are padded with zeros at the end."""
        if not self._facts.of_tokens:
            return np.stack(logits)
        longest = max(len(one) for one in logits)
        stacked = np.zeros((len(logits), longest, logits[0].shape[-1]), dtype=np.float32)
        for row, one in enumerate(logits):
            stacked[row, : len(one)] = one
        return stacked


def graph_file(n: int) -> str:
    """The file name of the graph for N=n."""
    return f"n{n}.onnx"


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _session(file: Path, args: dict[str, str], threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Instances share the machine's cores: a thread that waits must not spin on one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if args["model_instance_kind"] == "GPU":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RuntimeError(
                "instance_group is KIND_GPU, but this onnxruntime runs on the CPU only: "
                "pip install onnxruntime-gpu, or set KIND_CPU in config.pbtxt"
            )
        device = {"device_id": int(args["model_instance_device_id"])}
        providers.insert(0, ("CUDAExecutionProvider", device))
    return onnxruntime.InferenceSession(str(file), options, providers=providers)
