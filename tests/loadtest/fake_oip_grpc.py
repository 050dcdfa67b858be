"""The fake server's model over gRPC; it says ``positive`` and N=2, and fails every fifth call."""

import argparse
import asyncio

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

DELAY_S = 0.02
ERROR_EVERY = 5


class FakeModel(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self._asked = 0

    async def ModelMetadata(self, request, context):  # noqa: N802 - the protocol's name
        if request.name != "fake":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
        metadata = pb.ModelMetadataResponse(name=request.name)
        metadata.inputs.add(name="text", datatype="BYTES", shape=[-1, 1])
        metadata.outputs.add(name="scores", datatype="FP32", shape=[-1, 2])
        metadata.outputs.add(name="num_instances", datatype="INT32", shape=[-1, 1])
        return metadata

    async def ModelInfer(self, request, context):  # noqa: N802
        self._asked += 1
        number = self._asked
        await asyncio.sleep(DELAY_S)
        if number % ERROR_EVERY == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the line is full")
        answer = pb.ModelInferResponse(model_name=request.model_name)
        (texts,) = [list(one.shape) for one in request.inputs]
        assert [one.name for one in request.outputs] == ["scores", "num_instances"]
        assert request.outputs[0].parameters["classification"].int64_param == 1
        answer.outputs.add(name="scores", datatype="BYTES", shape=[texts[0], 1])
        answer.outputs.add(name="num_instances", datatype="INT32", shape=[texts[0], 1])
        label = b"0.9:1:positive"
        answer.raw_output_contents.append((len(label).to_bytes(4, "little") + label) * texts[0])
        answer.raw_output_contents.append((2).to_bytes(4, "little") * texts[0])
        return answer


async def _serve(port: int) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(FakeModel(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port))
