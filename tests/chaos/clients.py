"""Clients for every protocol: a text in, one answer out, over raw sockets or gRPC."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

HOST = "127.0.0.1"
#: Every address in 127.0.0.0/8 is this machine, but to the server this one is another caller.
ELSEWHERE = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client received.

    Attributes:
        status: HTTP status; 0 if the connection ended without an answer, 1 for a gRPC error.
        code: stable code of the error, or gRPC's name for it; "" for an answer.
        label: label of the answer.
    """

    status: int
    code: str = ""
    label: str = ""


CONNECTION_ENDED = Reply(0, "connection_ended")


class HttpPool:
    """Connections to one port, kept and reused."""

    def __init__(self, port: int, source: str = HOST) -> None:
        self._port = port
        self._source = source
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body.

        Raises:
            OSError, asyncio.IncompleteReadError: the connection ended before the answer.
        """
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(
                HOST, self._port, local_addr=(self._source, 0), limit=2**22
            )
        try:
            writer.write(post(path, body))
            await writer.drain()
            status, headers, answer = await read_response(reader)
        except BaseException:
            writer.transport.abort()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status, answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """The bytes of a whole request."""
    head = f"POST {path} HTTP/1.1\r\nhost: chaos\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body


class PredictDoor:
    """``POST /predict``."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    async def ask(self, text: str, timeout_s: float, num_instances: int | None) -> Reply:
        asked: dict[str, Any] = {"inputs": text, "timeout_ms": round(timeout_s * 1000)}
        if num_instances is not None:
            asked["max_num_instances"] = num_instances
        try:
            status, body = await self._pool.post("/predict", json.dumps(asked).encode())
        except (OSError, asyncio.IncompleteReadError):
            return CONNECTION_ENDED
        told = _json(body)
        if status == 200:
            return Reply(200, label=told[0]["label"])
        return Reply(status, str(told.get("error")) if isinstance(told, dict) else "not_json")


class InferDoor:
    """``POST /v2/models/sentiment/infer``."""

    def __init__(self, pool: HttpPool, labels: Sequence[str]) -> None:
        self._pool = pool
        self._labels = labels

    async def ask(self, text: str, timeout_s: float, num_instances: int | None) -> Reply:
        parameters: dict[str, Any] = {"timeout": round(timeout_s * 1e6)}
        if num_instances is not None:
            parameters["max_num_instances"] = num_instances
        given = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        asked = {"inputs": [given], "parameters": parameters, "outputs": [{"name": "scores"}]}
        try:
            status, body = await self._pool.post(
                "/v2/models/sentiment/infer", json.dumps(asked).encode()
            )
        except (OSError, asyncio.IncompleteReadError):
            return CONNECTION_ENDED
        told = _json(body)
        if status == 200:
            scores = told["outputs"][0]["data"]
            return Reply(200, label=self._labels[scores.index(max(scores))])
        return Reply(status, str(told.get("code")) if isinstance(told, dict) else "not_json")


class GrpcDoor:
    """``ModelInfer``."""

    def __init__(self, port: int, labels: Sequence[str]) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"{HOST}:{port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._labels = labels

    async def ask(self, text: str, timeout_s: float, num_instances: int | None) -> Reply:
        request = pb.ModelInferRequest(model_name="sentiment")
        given = request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        given.contents.bytes_contents.append(text.encode())
        request.outputs.add(name="scores").parameters["classification"].int64_param = 1
        request.parameters["timeout"].int64_param = round(timeout_s * 1e6)
        if num_instances is not None:
            request.parameters["max_num_instances"].int64_param = num_instances
        try:
            response = await self._stub.ModelInfer(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and _is_of_transport(error):
                return CONNECTION_ENDED
            return Reply(1, error.code().name)
        raw = response.raw_output_contents[0]
        return Reply(200, label=raw[4:].decode().split(":")[2])

    async def close(self) -> None:
        await self._channel.close()


def _is_of_transport(error: "grpc.aio.AioRpcError") -> bool:
    """Whether gRPC itself reports that the server is gone; our messages use none of these words."""
    told = (error.details() or "").lower()
    return any(
        one in told
        for one in ("connect", "socket", "goaway", "transport", "recvmsg", "stream", "shutdown")
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
