"""What a client may send: bounded work, short errors, documented codes only, on every route."""

import asyncio
import json
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from pydantic import BaseModel, ValidationError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.tokens import TextEncoder
from muxserve.errors import InvalidInput, MuxserveError, TextTooLong, TooManyTexts
from muxserve.serving.backend import LocalBackend
from muxserve.serving.config import LimitsConfig
from muxserve.serving.errors import MalformedJson, shown
from muxserve.serving.protocols.hugging_face import _truncate
from muxserve.serving.protocols.json_bodies import read_json
from muxserve.serving.protocols.oip import read_byte_strings
from muxserve.serving.protocols.oip_rest import InferBody
from muxserve.serving.protocols.schemas import (
    ClassificationRequest,
    PredictRequest,
    check_texts,
    parse,
)
from muxserve.serving.service import TextService
from muxserve.serving.tokenizing import Tokenizing
from tests.conftest import MAX_LENGTH, tiny_tokenizer
from tests.serving.test_oip import BOUND_S, LIMITS, serving

MOST = 512
BODY_BYTES = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def server(tiny_family) -> Iterator[SimpleNamespace]:
    with (
        Engine.from_family(tiny_family, EngineConfig(warm_up_s=0.3)) as engine,
        serving(engine) as running,
    ):
        running.name = engine.family.spec.name
        yield running


def filled(before: str, unit: str, after: str) -> bytes:
    """As many units, with commas, as a body has room for."""
    count = (BODY_BYTES - len(before) - len(after)) // (len(unit) + 1)
    return f"{before}{','.join([unit] * count)}{after}".encode()


def keys(before: str, after: str) -> bytes:
    return (before + ",".join(f'"{i:06}":0' for i in range(180_000)) + after).encode()


TENSOR = '{"name":"text","datatype":"BYTES",'
ATTACKS: list[tuple[str, type[BaseModel], bytes]] = [
    ("zeros", PredictRequest, filled('{"inputs":[', "0", "]}")),
    ("lists", PredictRequest, filled('{"inputs":[', "[]", "]}")),
    ("empty-texts", PredictRequest, filled('{"inputs":[', '""', "]}")),
    ("unknown-fields", PredictRequest, keys('{"inputs":"a",', "}")),
    ("same-field", PredictRequest, filled('{"inputs":"a",', '"b":0', "}")),
    ("long-field", PredictRequest, b'{"' + b"k" * (BODY_BYTES - 20) + b'":0}'),
    ("deep", PredictRequest, b'{"inputs":' + b"[" * 10**6 + b"]" * 10**6 + b"}"),
    ("shallow-enough", PredictRequest, b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ("digits", PredictRequest, b'{"inputs":"a","max_num_instances":' + b"9" * 10**6 + b"}"),
    ("labels", ClassificationRequest, keys('{"inputs":"a","parameters":{', "}}")),
    ("v2-inputs", InferBody, filled('{"inputs":[', "{}", "]}")),
    ("v2-few-inputs", InferBody, filled('{"inputs":[', "0", "]}")),
    ("v2-outputs", InferBody, filled('{"inputs":[],"outputs":[', "0", "]}")),
    ("v2-shape", InferBody, filled(f'{{"inputs":[{TENSOR}"shape":[', '""', "]}]}")),
    ("v2-parameters", InferBody, keys('{"inputs":[],"parameters":{', "}}")),
]


@pytest.mark.parametrize(("model", "body"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
def test_the_worst_bodies_are_refused_in_a_short_sentence(model, body, monkeypatch):
    # Errors of pydantic are what costs: each is an object, made before any is looked at.
    told: list[int] = []
    original = model.model_validate

    def watched(value: Any, **settings: Any) -> Any:
        try:
            return original(value, **settings)
        except ValidationError as error:
            told.append(error.error_count())
            raise

    monkeypatch.setattr(model, "model_validate", watched)
    with pytest.raises(MuxserveError) as caught:
        parse(model, body, MOST)
    assert len(caught.value.message) < 500
    assert len(caught.value.field or "") < 300
    assert sum(told) < 10


def test_texts_are_counted_before_any_is_looked_at():
    class Untouchable(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("a text was looked at")

    with pytest.raises(TooManyTexts):
        check_texts(Untouchable([0] * (MOST + 1)), MOST)
    with pytest.raises(TooManyTexts):
        read_byte_strings(bytes(4) * 500_000, MOST)


def test_brackets_within_texts_are_no_lists():
    text = '[{"' * 200_000 + "\\"
    body = json.dumps({"inputs": text}).encode()
    assert read_json(body, MOST) == {"inputs": text}
    for cut in (body[:-2], body[:-3], body[: len(body) // 2]):
        with pytest.raises(MalformedJson):
            read_json(cut, MOST)
    with pytest.raises(InvalidInput, match="lists and objects"):
        read_json(b"[" * 50_000 + b'"' + b'\\"' * 500_000, MOST)


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, "\n\0é" * 1000, b"y" * 10**6, 10**5000, [0] * 10**6, {"a": 1}, None, 1.5],
    ids=range(8),
)
def test_what_an_error_repeats_is_short_and_printable(value):
    assert len(shown(value)) < 250
    assert shown(value).isprintable()


def test_half_a_character_is_one_error_everywhere(server):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["X"]}
    infer = f"/v2/models/{server.name}/infer"
    with httpx.Client(base_url=f"http://{server.http}", timeout=BOUND_S) as client:
        for half in (b"\\ud800", b"good \\udfff", b"\\ud800\\ud800", b"\xed\xa0\x80"):
            for path in ("/predict", "/"):
                answer = client.post(path, content=b'{"inputs": "' + half + b'"}')
                assert (answer.status_code, answer.json()["error"]) == (422, "invalid_input")
                assert "half a character" in answer.json()["message"]
            body = json.dumps({"inputs": [tensor]}).encode().replace(b"X", half)
            answer = client.post(infer, content=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


def test_a_text_over_the_limit_of_characters_is_refused_before_it_is_tokenized(server):
    text = "a" * (LimitsConfig().max_characters_per_text + 1)

    class Untouchable(TextEncoder):
        def encode_each(self, requests: Any) -> Any:
            raise AssertionError("it was tokenized")

    engine = server.engine
    strict = TextService(
        engine.family.spec,
        Untouchable(tiny_tokenizer(), MAX_LENGTH),
        LocalBackend(engine),
        LimitsConfig(),
        most_texts=64,
    )
    with pytest.raises(TextTooLong) as caught:
        asyncio.run(strict.classify(["good", text]))
    assert caught.value.field == "inputs[1]"


def test_left_truncation_keeps_the_end(server):
    texts = {"Right": "good " * 40 + "bad " * 40, "Left": "bad " * 40 + "good " * 40}
    with httpx.Client(base_url=f"http://{server.http}", timeout=BOUND_S) as client:
        scores = []
        for direction, text in texts.items():
            body = {"inputs": text, "truncation_direction": direction, "max_num_instances": 1}
            answer = client.post("/predict", json=body)
            assert answer.headers["x-muxserve-truncated"] == "1"
            scores.append({one["label"]: one["score"] for one in answer.json()})
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        body = {"inputs": "good", "truncation_direction": None, "prompt_name": None}
        assert client.post("/predict", json=body).status_code == 200


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),  # where the family says
        ({"truncation_direction": None}, True),
        ({"truncation_direction": "Left"}, "left"),
        ({"truncation_direction": "Right"}, "right"),
        ({"truncate": False, "truncation_direction": "Left"}, False),
    ],
)
def test_a_requests_direction_overrules_the_familys(fields, expected):
    body = json.dumps({"inputs": "a", **fields}).encode()
    assert _truncate(parse(PredictRequest, body, MOST)) == expected


def test_null_stands_for_what_is_absent_in_v2(server):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], "parameters": None}
    url = f"http://{server.http}/v2/models/{server.name}/infer"
    for outputs in (None, [{"name": "scores", "parameters": None}]):
        body = {"id": None, "parameters": None, "inputs": [tensor], "outputs": outputs}
        answer = httpx.post(url, json=body, timeout=BOUND_S)
        assert answer.status_code == 200, answer.text
        assert "id" not in answer.json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/", 404),
        ("POST", "/v2/models/x/y/z", 404),
        ("GET", "/v2/models/another/versions/7", 404),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/health/live", 405),
        ("GET", "/v2/models/x/infer", 405),
        ("GET", "/v2/" + "x" * 5000, 404),
    ],
)
def test_every_error_below_v2_has_its_shape(server, method, path, status):
    answer = httpx.request(method, f"http://{server.http}{path}", timeout=BOUND_S)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code"}
    assert len(answer.text) < 500
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({"parameters": {"timeout": 10**400}}, {}),
        ({"parameters": {"timeout": -1}}, {}),
        ({"parameters": {"timeout": 2**63}}, {}),
        ({"parameters": {"timeout": True}}, {}),
        ({"parameters": {"timeout": 1.5}}, {}),
        ({"parameters": {"max_num_instances": 10**400}}, {}),
        ({"parameters": {"n" * 5000: 1}}, {}),
        ({"outputs": [{"name": "scores", "parameters": {"classification": True}}]}, {}),
        ({"outputs": [{"name": "scores", "parameters": {"classification": 10**400}}]}, {}),
        ({"outputs": [{"name": "s" * 5000}]}, {}),
        ({"outputs": [{"name": "scores"}] * 65}, {}),
        (
            {"inputs": [{"name": "text", "datatype": "BYTES", "data": ["a"], "shape": [10**400]}]},
            {},
        ),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "data": ["a"], "shape": [-1, 1]}]}, {}),
        ({}, {"inference-header-content-length": "9" * 5000}),
        ({}, {"inference-header-content-length": "٣".encode()}),
        ({}, {"inference-header-content-length": ""}),
        ({}, {"inference-header-content-length": "+2"}),
    ],
    ids=range(17),
)
def test_numbers_that_cannot_be_are_422_and_told_shortly(server, change, headers):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    answer = httpx.post(
        f"http://{server.http}/v2/models/{server.name}/infer",
        content=json.dumps({"inputs": [tensor], **change}).encode(),
        headers=headers,
        timeout=BOUND_S,
    )
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_input"
    assert len(answer.text) < 600


def grpc_request(name: str) -> Any:
    request = pb.ModelInferRequest(model_name=name)
    given = request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    given.contents.bytes_contents.append(b"good")
    return request


def classified(**value: Any) -> Any:
    def change(request: Any) -> None:
        output = request.outputs.add(name="scores")
        for kind, one in value.items():
            setattr(output.parameters["classification"], kind, one)

    return change


def more_raw(request: Any) -> None:
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.extend([b"\1\0\0\0a"] * 2)


GRPC_MISTAKES = {
    "classes-abc": classified(string_param="abc"),
    "classes-nan": classified(double_param=float("nan")),
    "classes-inf": classified(double_param=float("inf")),
    "classes-negative": classified(int64_param=-1),
    "classes-huge": classified(uint64_param=2**64 - 1),
    "classes-bool": classified(bool_param=True),
    "timeout-negative": lambda r: setattr(r.parameters["timeout"], "int64_param", -1),
    "timeout-huge": lambda r: setattr(r.parameters["timeout"], "uint64_param", 2**64 - 1),
    "parameter-empty": lambda r: r.parameters["truncate"].SetInParent(),
    "parameter-long": lambda r: setattr(r.parameters["n" * 9_000], "bool_param", True),
    "key-long": lambda r: setattr(r.parameters["isolation_key"], "string_param", "é" * 9_000),
    "output-long": lambda r: r.outputs.add(name="\0\n" * 9_000),
    "input-long": lambda r: setattr(r.inputs[0], "name", "é" * 9_000),
    "datatype-long": lambda r: setattr(r.inputs[0], "datatype", "x" * 15_000),
    "shape-negative": lambda r: r.inputs[0].shape.__setitem__(0, -(2**63)),
    "shape-huge": lambda r: r.inputs[0].shape.__setitem__(0, 2**63 - 1),
    "shape-long": lambda r: r.inputs[0].shape.extend([1] * 1000),
    "raw-more-than-inputs": more_raw,
    "raw-and-contents": lambda r: r.raw_input_contents.append(b"\1\0\0\0a"),
    "other-contents": lambda r: (
        r.raw_input_contents.append(b"\1\0\0\0a"),
        r.inputs[0].contents.ClearField("bytes_contents"),
        r.inputs[0].contents.int_contents.append(1),
    ),
    "no-contents": lambda r: r.inputs[0].ClearField("contents"),
    "raw-of-many": lambda r: (
        r.inputs[0].ClearField("contents"),
        r.raw_input_contents.append(bytes(4) * 4000),
    ),
}


@pytest.fixture(scope="module")
def stub(server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("change", GRPC_MISTAKES.values(), ids=GRPC_MISTAKES)
def test_a_mistake_over_grpc_is_an_invalid_argument_in_few_words(server, stub, change):
    request = grpc_request(server.name)
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=BOUND_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert 0 < len(caught.value.details()) < 600
    assert stub.ModelInfer(grpc_request(server.name), timeout=BOUND_S).outputs


@pytest.mark.parametrize("name", ["x" * 19_000, "\0\n\x7f" * 1000, "é" * 9000])
def test_a_long_name_over_grpc_is_cut_before_it_is_told(stub, name):
    for ask, request in (
        (stub.ModelInfer, pb.ModelInferRequest(model_name=name)),
        (stub.ModelMetadata, pb.ModelMetadataRequest(name=name)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(request, timeout=BOUND_S)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert len(caught.value.details()) < 600


class Watched(TextEncoder):
    """The real encoder; it notes the characters of its batches."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer(), MAX_LENGTH)
        self.batches: list[int] = []

    def encode_each(self, requests):
        self.batches.append(sum(len(text) for texts, _ in requests for text in texts))
        return super().encode_each(requests)


def test_a_batch_of_tokenizing_is_bounded_and_short_requests_pass_long_ones():
    long = ["good film " * 5000] * 12  # 600,000 characters
    order: list[str] = []

    async def ask() -> None:
        encoder = Watched()
        tokenizing = Tokenizing(encoder)

        async def one(name: str, texts: list[str]) -> None:
            assert len(await tokenizing.encode(texts, truncate=True)) == len(texts)
            order.append(name)

        await asyncio.gather(
            *(one("long", long) for _ in range(3)), *(one("short", ["good"]) for _ in range(20))
        )
        assert max(encoder.batches) <= 200_000
        # Nobody's text is forgotten.
        assert sum(encoder.batches) == 3 * 600_000 + 20 * 4

    asyncio.run(asyncio.wait_for(ask(), BOUND_S))
    assert order[:20] == ["short"] * 20


def test_an_error_in_a_later_part_names_its_text():
    texts = ["good film " * 9000] * 5

    async def ask(index: int, bad: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            await Tokenizing(Watched()).encode([*texts[:index], bad, *texts[index:]], truncate=True)
        assert caught.value.field == f"inputs[{index}]"

    for index in range(6):
        asyncio.run(ask(index, " "))


def random_value(chance: random.Random, depth: int = 0) -> Any:
    simple = [None, True, 0, -1, 2.5, 10**30, 10**400, "", "a", " ", "\ud800", "x" * 300, "1"]
    if depth < 3 and chance.random() < 0.3:
        if chance.random() < 0.5:
            return [random_value(chance, depth + 1) for _ in range(chance.randrange(10))]
        return random_fields(chance, depth + 1)
    return chance.choice(simple)


FIELDS = [
    *("inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data", "truncate"),
    *("timeout", "timeout_ms", "max_num_instances", "isolation_key", "truncation_direction"),
    *("top_k", "function_to_apply", "classification", "binary_data_size", "raw_scores", "odd"),
]


def random_fields(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    names = chance.sample(FIELDS, chance.randrange(5))
    return {name: random_value(chance, depth) for name in names}


@pytest.mark.parametrize("seed", range(4))
def test_random_bodies_get_documented_answers_only(server, seed):
    chance = random.Random(seed)
    good = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
    with httpx.Client(base_url=f"http://{server.http}", timeout=BOUND_S) as client:
        for _ in range(60):
            for path in ("/predict", "/", f"/v2/models/{server.name}/infer"):
                v2 = path.startswith("/v2")
                body: Any = random_fields(chance)
                if chance.random() < 0.7:
                    body = {**(good if v2 else {"inputs": "a"}), **random_fields(chance)}
                    if v2 and chance.random() < 0.8:
                        body["inputs"] = [{**good["inputs"][0], **random_fields(chance)}]
                content = json.dumps(body).encode()
                if chance.random() < 0.1:
                    content = content[: chance.randrange(len(content))] + bytes(
                        [chance.randrange(256)]
                    )
                answer = client.post(path, content=content[: LIMITS.max_body_bytes])
                assert answer.status_code in {200, 400, 413, 422, 504}, (path, content, answer.text)
                if answer.status_code != 200:
                    told = answer.json()
                    assert set(told) - {"field"} == (
                        {"error", "code"} if v2 else {"error", "message"}
                    )
                    assert len(answer.text) < 1500, content
