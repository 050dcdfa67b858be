"""Load over the Open Inference Protocol's gRPC, on muxserve (``ingress.grpc_port``) or a Triton.

locust -f loadtests/grpc_locustfile.py --host 127.0.0.1:8001 --headless -u 20 -t 30s
"""

import sys
import time
from pathlib import Path

import grpc
import grpc.experimental.gevent
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
from locustfile import texts_of
from open_loop import WIDTHS, OpenLoopUser

# Otherwise a call would block every user of this process.
grpc.experimental.gevent.init_gevent()

_TIMEOUT_S = 30.0


class OpenInferenceGrpc(OpenLoopUser):
    """One text per call of ``ModelInfer``; the model is sentiment's text front."""

    def on_start(self) -> None:
        super().on_start()
        self._channel = grpc.insecure_channel(self.host or "127.0.0.1:8001")
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def on_stop(self) -> None:
        super().on_stop()
        self._channel.close()

    def send(self, due_s: float) -> None:
        options = self.environment.parsed_options
        text = self._random.choice(texts_of(options.texts)).encode()
        request = pb.ModelInferRequest(model_name="sentiment_text")
        request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
        request.outputs.add(name="num_instances")
        if options.max_num_instances:
            request.parameters["max_num_instances"].int64_param = options.max_num_instances
        failure = None
        try:
            answer = self._stub.ModelInfer(request, timeout=_TIMEOUT_S)
            WIDTHS[int.from_bytes(answer.raw_output_contents[0], "little")] += 1
        except grpc.RpcError as error:
            failure = RuntimeError(error.code().name)
        self.environment.events.request.fire(
            request_type="gRPC",
            name="ModelInfer",
            response_time=1000 * (time.perf_counter() - due_s),
            response_length=0,
            exception=failure,
            context={},
        )
