"""The Open Inference Protocol over gRPC, on a port of its own beside HTTP's.

``GRPCInferenceService`` as Triton serves it, with the messages of ``tritonclient``, whose clients
talk to both.
"""

import asyncio
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from muxserve import __version__
from muxserve.errors import InvalidInput
from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.errors import BodyTooLarge, NotFound
from muxserve.serving.listening.connections import ConnectionsConfig, grpc_connections_allowed
from muxserve.serving.protocols import oip
from muxserve.serving.protocols.grpc_interceptor import CallInterceptor
from muxserve.serving.service import TextService, check_count

#: Seconds that calls under way get to end when the server stops.
_GRACE_S = 20.0

#: ``grpc.aio.ServicerContext``; the package has no types.
Context = Any


class GrpcListener:
    """Serves one service on ``host:port``, on the running event loop."""

    def __init__(
        self,
        service: TextService,
        host: str,
        port: int,
        connections: ConnectionsConfig | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        """Bind at once. Without an authenticator, anyone who reaches the port may ask.

        Raises:
            InvalidInput: nothing can listen there.
        """
        most = service.limits.max_body_bytes
        options = _options(connections or ConnectionsConfig(), most)
        authenticator = authenticator or Authenticator()
        interceptor = CallInterceptor(service, authenticator, _METHODS, _REQUESTS)
        self._server = grpc.aio.server(options=options, interceptors=[interceptor])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            _Servicer(service, authenticator), self._server
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if not bound:
            raise InvalidInput(
                f"cannot listen on {address}: is the port taken?", field="ingress.grpc_port"
            )
        self._starting = asyncio.get_running_loop().create_task(self._server.start())

    async def stop(self) -> None:
        """Take no more calls, finish what is under way."""
        await self._starting
        await self._server.stop(_GRACE_S)


def _options(config: ConnectionsConfig, max_body_bytes: int) -> list[tuple[str, int]]:
    """gRPC's own names for the limits of a connection."""
    idle_ms = round(config.idle_timeout_s * 1000)
    return [
        ("grpc.max_receive_message_length", max_body_bytes),
        (
            "grpc.max_allowed_incoming_connections",
            config.max_connections or grpc_connections_allowed(),
        ),
        ("grpc.max_concurrent_streams", config.max_grpc_streams),
        # From this size on gRPC refuses some, and from the second on all.
        ("grpc.max_metadata_size", config.max_head_bytes),
        ("grpc.absolute_max_metadata_size", config.max_head_bytes),
        # Until the client has spoken HTTP/2.
        ("grpc.server_handshake_timeout_ms", round(config.first_byte_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", idle_ms),
        # A client that no longer answers or reads is let go.
        ("grpc.keepalive_time_ms", idle_ms),
        ("grpc.keepalive_timeout_ms", round(config.write_timeout_s * 1000)),
    ]


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Methods that are not here are UNIMPLEMENTED; the interceptor tells errors."""

    def __init__(self, service: TextService, authenticator: Authenticator) -> None:
        self._service = service
        self._model = oip.Model(service)
        self._authenticator = authenticator

    async def ServerLive(self, _: Any, __: Context) -> Any:  # noqa: N802 - gRPC's names
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _: Any, __: Context) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=await self._model.ready())

    async def ModelReady(self, request: Any, _: Context) -> Any:  # noqa: N802
        try:
            self._model.check(request.name, request.version)
        except NotFound:
            # A question, not a mistake: Triton answers it in this way.
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=await self._model.ready())

    async def ServerMetadata(self, _: Any, __: Context) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(
            name="muxserve", version=__version__, extensions=["classification"]
        )

    async def ModelMetadata(self, request: Any, _: Context) -> Any:  # noqa: N802
        self._model.check(request.name, request.version)
        return pb.ModelMetadataResponse(**self._model.metadata())

    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802
        # Looked up again: the key may have been taken away while the message came.
        caller = self._authenticator.grpc_caller(context.peer(), context.invocation_metadata())
        self._model.check(request.model_name, request.model_version)
        limits = self._service.limits_of(caller)
        if request.ByteSize() > limits.max_body_bytes:
            raise BodyTooLarge(
                f"the message is over {limits.max_body_bytes} bytes; send the texts in several"
            )
        arrays = await self._model.infer(
            _read(request, limits.max_texts_per_request), caller, context.time_remaining()
        )
        return _write(request, self._model.name, arrays)


_METHODS = {name for name in vars(_Servicer) if not name.startswith("_")}
_REQUESTS = {"ModelInfer"}


def _read(request: Any, most_texts: int) -> oip.Inference:
    for name in ("outputs", "parameters"):
        if len(getattr(request, name)) > oip.MOST_TENSORS:
            raise InvalidInput(f"{name}: at most {oip.MOST_TENSORS}", field=name)
    if len(request.inputs) != 1:
        raise InvalidInput(f"expected one input, got {len(request.inputs)}", field="inputs")
    (given,) = request.inputs
    texts = oip.read_texts(
        given.name, given.datatype, given.shape, _elements(request, given, most_texts)
    )
    outputs = []
    for one in request.outputs:
        asked = "classification" in one.parameters
        count = oip.read_classes(_value(one.parameters["classification"])) if asked else 0
        outputs.append(oip.Wanted(one.name, count))
    parameters = {name: _value(one) for name, one in request.parameters.items()}
    return oip.Inference(texts, parameters, outputs)


def _elements(request: Any, given: Any, most_texts: int) -> list[bytes]:
    """The input's elements, from the one place where they are."""
    raw = request.raw_input_contents
    if not raw:
        check_count(given.contents.bytes_contents, most_texts)
        return list(given.contents.bytes_contents)
    if len(raw) > 1:
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} entries for one input", field="inputs"
        )
    if given.contents.ByteSize():
        raise InvalidInput("the input has both contents and raw_input_contents", field="inputs")
    return oip.read_byte_strings(raw[0], most_texts)


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _write(request: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    response = pb.ModelInferResponse(model_name=name, model_version=oip.VERSION, id=request.id)
    for output, array in arrays.items():
        response.outputs.add(name=output, datatype=oip.datatype(array), shape=array.shape)
        response.raw_output_contents.append(oip.as_bytes(array))
    return response
