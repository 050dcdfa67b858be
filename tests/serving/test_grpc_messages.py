"""Messages over gRPC that come slowly or not at all, on a real server with real clients."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.serving.backend import LocalBackend
from muxserve.serving.config import LimitsConfig
from muxserve.serving.service import TextService
from tests.listening import listening
from tests.ray_serve import BOUND_S, until

INFER = "/inference.GRPCInferenceService/ModelInfer"
#: Four messages that are still coming fill the room of one caller.
LIMITS = LimitsConfig(
    max_body_bytes=256 * 1024, max_bodies_bytes=1024 * 1024, request_timeout_s=4.0
)


@pytest.fixture(scope="module")
def service(tiny_family) -> Iterator[TextService]:
    config = EngineConfig(warm_up_s=0.3, dtype="float32")
    with Engine.from_family(tiny_family, config) as engine:
        backend = LocalBackend(engine)
        yield TextService(engine.family.spec, engine.encoder, backend, LIMITS, most_texts=64)


@pytest.fixture(scope="module")
def address(service) -> Iterator[str]:
    with listening(service) as (_, port):
        yield f"127.0.0.1:{port}"


class SilentCall:
    """A call whose message does not come."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._may_end = threading.Event()
        call = channel.stream_unary(INFER, lambda message: message, lambda message: message)
        self.answer = call.future(self._messages(), timeout=BOUND_S)

    def _messages(self) -> Iterator[bytes]:
        self._may_end.wait(BOUND_S)
        yield from ()

    def end(self) -> None:
        self._may_end.set()

    def refusal(self) -> tuple[grpc.StatusCode, str]:
        error = self.answer.exception(BOUND_S)
        assert isinstance(error, grpc.RpcError)
        return error.code(), error.details()


def ask(channel: grpc.Channel, name: str) -> Any:
    request = pb.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(b"good")
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, BOUND_S)


def fates_of(service: TextService, work: Callable[[], None]) -> dict[str, int]:
    """How many requests met each fate in ``work``."""
    before = service.fates.stats()["fates"]
    work()
    after = service.fates.stats()["fates"]
    return {fate: after[fate] - before[fate] for fate in after if after[fate] != before[fate]}


def test_messages_that_do_not_come_have_a_limit_and_a_deadline_and_others_are_answered(
    service, address
):
    def check() -> None:
        with grpc.insecure_channel(address) as channel:
            silent = [SilentCall(channel) for _ in range(6)]
            assert ask(channel, service.spec.name).outputs
            found = [one.refusal() for one in silent]
        told = [code for code, _ in found]
        assert told.count(grpc.StatusCode.DEADLINE_EXCEEDED) == 4
        assert told.count(grpc.StatusCode.UNAVAILABLE) == 2
        for code, message in found:
            late = code == grpc.StatusCode.DEADLINE_EXCEEDED
            assert ("did not arrive within 4 s" if late else "are still coming") in message

    assert fates_of(service, check) == {"answered": 1, "expired": 4, "refused": 2}
    # Their room is free again.
    with grpc.insecure_channel(address) as channel:
        again = [SilentCall(channel) for _ in range(4)]
        codes = {one.refusal()[0] for one in again}
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}


def test_a_call_that_ends_without_a_message_is_told_so(service, address):
    def check() -> None:
        with grpc.insecure_channel(address) as channel:
            call = SilentCall(channel)
            call.end()
            assert call.refusal() == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "the call has no message",
            )

    assert fates_of(service, check) == {"refused": 1}


def test_a_client_that_goes_before_its_message_is_counted(service, address):
    def check() -> None:
        with grpc.insecure_channel(address) as channel:
            call = SilentCall(channel)
            # What is answered afterwards shows that the call has come.
            assert ask(channel, service.spec.name).outputs
            call.answer.cancel()
            until(lambda: service.fates.stats()["fates"]["cancelled"] > 0, "cancelled")
            call.end()

    assert fates_of(service, check) == {"answered": 1, "cancelled": 1}
