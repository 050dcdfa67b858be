"""The Open Inference Protocol over REST and gRPC, asked by the stock clients on real sockets."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as http_client
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.errors import InvalidInput
from muxserve.serving.backend import LocalBackend
from muxserve.serving.config import LimitsConfig
from muxserve.serving.protocols.oip import as_bytes, read_byte_strings
from muxserve.serving.protocols.oip_grpc import GrpcListener
from muxserve.serving.service import TextService
from tests.listening import listening
from tests.triton.asking import Asker

BOUND_S = 30
TEXTS = ["a good film", "bad", "not very good at all"]
LIMITS = LimitsConfig(max_texts_per_request=8, max_body_bytes=20_000)


@contextmanager
def serving(engine: Engine, name: str | None = None) -> Iterator[SimpleNamespace]:
    """REST and gRPC in front of an engine; ``name`` renames its family."""
    spec = engine.family.spec
    if name is not None:
        spec = spec.model_copy(update={"name": name})
    service = TextService(spec, engine.encoder, LocalBackend(engine), LIMITS, most_texts=64)
    with listening(service) as (http_port, grpc_port):
        yield SimpleNamespace(
            http=f"127.0.0.1:{http_port}", grpc=f"127.0.0.1:{grpc_port}", engine=engine
        )


@pytest.fixture(scope="module")
def server(tiny_family) -> Iterator[SimpleNamespace]:
    with (
        Engine.from_family(tiny_family, EngineConfig(warm_up_s=0.3, dtype="float32")) as engine,
        serving(engine) as running,
    ):
        running.name = engine.family.spec.name
        yield running


@pytest.fixture(params=["http", "grpc"])
def asker(server, request) -> Iterator[Asker]:
    one = Asker(server, request.param)
    yield one
    one.close()


def test_scores_are_those_of_the_engine_and_come_with_what_served_them(server, asker):
    got = asker._infer(
        server.name,
        texts_of(asker, TEXTS),
        ["logits", "scores", "num_instances", "truncated"],
        {},
    )
    expected = server.engine.classify(TEXTS)
    labels = server.engine.family.spec.labels
    for row, one in enumerate(expected):
        by_label = {entry.label: entry.score for entry in one.labels}
        np.testing.assert_allclose(
            got["scores"][row], [by_label[label] for label in labels], atol=1e-4
        )
    assert got["num_instances"].shape == (3, 1)
    assert set(got["num_instances"].ravel().tolist()) <= {1, 2, 5}
    assert got["truncated"].ravel().tolist() == [False] * 3
    powers = np.exp(got["logits"])
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), got["scores"], atol=1e-4)


def texts_of(asker: Asker, texts: list[str]) -> Any:
    array = asker.kind.InferInput("text", [len(texts), 1], "BYTES")
    array.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return array


def test_every_request_has_one_fate_over_every_protocol(server, asker):
    def requests() -> dict[str, Any]:
        found = httpx.get(f"http://{server.http}/stats", timeout=BOUND_S).json()["requests"]
        assert found["received"] == sum(found["fates"].values())
        return found

    before = requests()
    asker.texts(server.name, TEXTS, ("scores",))
    with pytest.raises(InferenceServerException):
        asker.texts("another", TEXTS, ("scores",))
    text = {"inputs": "a good film"}
    for body in (text, {}, {**text, "timeout_ms": 1e-9}):
        httpx.post(f"http://{server.http}/predict", json=body, timeout=BOUND_S)
    after = requests()
    grown = {fate: count - before["fates"][fate] for fate, count in after["fates"].items()}
    assert grown == {"answered": 2, "refused": 2, "expired": 1, "cancelled": 0, "failed": 0}
    metrics = httpx.get(f"http://{server.http}/metrics", timeout=BOUND_S).text
    assert f"muxserve_received_requests_total {float(after['received'])}" in metrics
    answered = float(after["fates"]["answered"])
    assert f'muxserve_request_fates_total{{fate="answered"}} {answered}' in metrics


def test_the_name_of_the_text_front_in_triton_is_understood_with_its_classes(server, asker):
    outputs = ("scores", "num_instances", "truncated")
    got = asker.texts(f"{server.name}_text", TEXTS, outputs, max_num_instances=1)
    labels = server.engine.family.spec.labels
    for row, expected in zip(got["scores"], server.engine.classify(TEXTS), strict=True):
        best = [one.decode().split(":") for one in row]
        assert [labels[int(index)] for _, index, _ in best] == [label for *_, label in best]
        assert best[0][2] == expected.labels[0].label
        assert float(best[0][0]) == pytest.approx(expected.labels[0].score, abs=1e-3)
    assert got["num_instances"].tolist() == [[1]] * 3


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_a_packed_request_is_answered_as_a_plain_one(server, packing):
    asker = Asker(server, "http")
    given = [texts_of(asker, TEXTS)]
    plain = asker.client.infer(server.name, given)
    packed = asker.client.infer(server.name, given, request_compression_algorithm=packing)
    asker.close()
    np.testing.assert_allclose(packed.as_numpy("scores"), plain.as_numpy("scores"), atol=1e-3)


def test_a_grpc_call_with_large_metadata_is_refused(server):
    asker = Asker(server, "grpc")
    with pytest.raises(InferenceServerException):
        asker.client.infer(server.name, [texts_of(asker, TEXTS)], headers={"long": "a" * 200_000})
    assert asker.client.infer(server.name, [texts_of(asker, TEXTS)])
    asker.close()


def test_all_outputs_come_where_none_is_named(server, asker):
    result = asker.client.infer(server.name, [texts_of(asker, ["good"])], request_id="seven")
    for name in ("logits", "scores", "num_instances", "truncated"):
        assert result.as_numpy(name) is not None, name
    answer = result.get_response()
    assert (answer["id"] if isinstance(answer, dict) else answer.id) == "seven"


def test_a_client_learns_what_there_is(server, asker):
    client = asker.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.name)
    assert not client.is_model_ready("another")
    about, model = client.get_server_metadata(), client.get_model_metadata(server.name)
    if not isinstance(about, dict):
        name, inputs, versions = about.name, [one.name for one in model.inputs], model.versions
    else:
        name, versions = about["name"], model["versions"]
        inputs = [one["name"] for one in model["inputs"]]
    assert (name, inputs, list(versions)) == ("muxserve", ["text"], ["1"])


MISTAKES = [
    ({"texts": [""]}, "422", "INVALID_ARGUMENT", "text"),
    ({"texts": ["a"] * 9}, "413", "INVALID_ARGUMENT", "at most 8"),
    ({"parameters": {"max_num_instances": 0}}, "422", "INVALID_ARGUMENT", "max_num_instances"),
    ({"parameters": {"max_num_instance": 1}}, "422", "INVALID_ARGUMENT", "unknown parameter"),
    ({"parameters": {"isolation_key": 3}}, "422", "INVALID_ARGUMENT", "isolation_key"),
    ({"outputs": ["probabilities"]}, "422", "INVALID_ARGUMENT", "no output 'probabilities'"),
    ({"model": "another"}, "404", "NOT_FOUND", "no model 'another'"),
]


@pytest.mark.parametrize(("changed", "http", "grpc", "says"), MISTAKES)
def test_a_mistake_is_told_with_its_status_and_others_go_on(
    server, asker, changed, http, grpc, says
):
    array = texts_of(asker, changed.get("texts", ["good"]))
    with pytest.raises(InferenceServerException) as caught:
        asker._infer(
            changed.get("model", server.name),
            array,
            changed.get("outputs", ["scores"]),
            changed.get("parameters", {}),
        )
    assert says in caught.value.message()
    status = str(caught.value.status())
    assert http in status if asker.kind is http_client else grpc in status
    assert asker._infer(server.name, texts_of(asker, ["good"]), ["scores"], {})


def test_a_wrong_input_is_named(server, asker):
    array = asker.kind.InferInput("ids", [1, 1], "BYTES")
    array.set_data_from_numpy(np.array([[b"good"]], dtype=object))
    with pytest.raises(InferenceServerException, match="expected the input 'text', got 'ids'"):
        asker.client.infer(server.name, [array])
    array = asker.kind.InferInput("text", [1, 1], "BYTES")
    array.set_data_from_numpy(np.array([[b"\xff"]], dtype=object))
    with pytest.raises(InferenceServerException, match="not UTF-8"):
        asker.client.infer(server.name, [array])


def test_a_deadline_that_passes_is_504_and_its_grpc_status(server, asker):
    with pytest.raises(InferenceServerException) as caught:
        asker.client.infer(server.name, [texts_of(asker, TEXTS)], timeout=1)  # microseconds
    status = str(caught.value.status())
    assert "504" in status or "DEADLINE_EXCEEDED" in status


def rest(server, body: object, headers: dict[str, str] | None = None) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        f"http://{server.http}/v2/models/{server.name}/infer",
        content=content,
        headers=headers or {},
        timeout=BOUND_S,
    )


def test_plain_json_is_answered_in_json_nested_or_not(server):
    for data in (["good", "bad"], [["good"], ["bad"]]):
        tensor = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": data}
        answer = rest(server, {"id": "x", "inputs": [tensor], "outputs": [{"name": "scores"}]})
        assert answer.status_code == 200
        body = answer.json()
        (scores,) = body["outputs"]
        assert (body["id"], scores["datatype"], scores["shape"]) == ("x", "FP32", [2, 2])
        assert sum(scores["data"]) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {}, 400, "not JSON"),
        ({}, {}, 422, "inputs"),
        ({"inputs": []}, {}, 422, "expected one input"),
        (
            {"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["a"]}]},
            {},
            422,
            "is 2 texts, the data has 1",
        ),
        ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}, {}, 422, "neither"),
        (b"{}", {"inference-header-content-length": "99"}, 422, "inference-header-content-length"),
        (b"{}", {"inference-header-content-length": "-1"}, 422, "inference-header-content-length"),
        (b"{}", {"content-encoding": "gzip"}, 400, "not gzip"),
        (b"x" * 20_001, {}, 413, "over 20000 bytes"),
    ],
)
def test_a_malformed_body_is_told_in_one_line(server, body, headers, status, says):
    answer = rest(server, body, headers)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert answer.json()["code"]


def test_words_and_their_labels_come_as_arrays(tiny_token_family):
    with (
        Engine.from_family(tiny_token_family, EngineConfig(warm_up_s=0.3)) as engine,
        serving(engine) as running,
    ):
        for protocol in ("http", "grpc"):
            asker = Asker(running, protocol)
            texts = ["The good film", "bad"]
            got = asker._infer(
                engine.family.spec.name,
                texts_of(asker, texts),
                ["words", "labels", "word_scores"],
                {},
            )
            asker.close()
            assert got["words"].tolist() == [[b"The", b"good", b"film"], [b"bad", b"", b""]]
            for row, tagging in enumerate(engine.tag(texts)):
                labels = [one.label.encode() for one in tagging.words]
                assert got["labels"][row, : len(labels)].tolist() == labels


def test_a_grpc_port_that_is_taken_is_told(server):
    async def start() -> None:
        # Another program's: without SO_REUSEPORT nobody else may have it.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            service = TextService(
                server.engine.family.spec,
                server.engine.encoder,
                LocalBackend(server.engine),
                LIMITS,
                most_texts=1,
            )
            GrpcListener(service, "127.0.0.1", taken.getsockname()[1])

    with pytest.raises(InvalidInput, match="is the port taken"):
        asyncio.run(start())


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_byte_strings_survive_the_wire(values):
    array = np.array(values, dtype=object)
    assert read_byte_strings(as_bytes(array), 20) == values


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw):
    try:
        values = read_byte_strings(raw, 60)
    except InvalidInput:
        return
    assert as_bytes(np.array(values, dtype=object)) == raw
