"""Fuzzing over every protocol: only documented codes may come back, and never a 500.

schemathesis generates valid and invalid requests from the OpenAPI document. No schema has the rules
of ``/v2`` and gRPC, so hypothesis generates requests for them that are nearly valid.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.chaos.clients import HOST
from tests.chaos.harness import Scale, Server, settled
from tests.chaos.load import DOCUMENTED, DOCUMENTED_GRPC

#: Share of the cases for each GET route: it may have to ask every engine, and has little to fuzz.
_FEW = 0.02
_MODEL = "sentiment"


def _settings(cases: int) -> settings:
    return settings(
        max_examples=max(1, cases),
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate],  # shrinking a failure may take minutes
        suppress_health_check=list(HealthCheck),
    )


async def openapi(server: Server, scale: Scale) -> dict[str, Any]:
    return await _fuzzed(server, lambda seen: _openapi(server, scale.cases // 3, seen))


async def infer(server: Server, scale: Scale) -> dict[str, Any]:
    return await _fuzzed(server, lambda seen: _infer(server, scale.cases // 3, seen))


async def over_grpc(server: Server, scale: Scale) -> dict[str, Any]:
    return await _fuzzed(server, lambda seen: _grpc(server, scale.cases // 3, seen))


async def _fuzzed(server: Server, run: Callable[[Counter[str]], None]) -> dict[str, Any]:
    """The figures of a run; afterwards the server answers, and every request has an outcome."""
    seen: Counter[str] = Counter()
    await asyncio.to_thread(run, seen)
    load = server.load_at(12.0)
    await load.run(1.0)
    load.check()
    settled(server)
    return load.figures() | {"cases": seen.total(), "statuses": dict(sorted(seen.items()))}


def _openapi(server: Server, cases: int, seen: Counter[str]) -> None:
    base = f"http://{HOST}:{server.port}"
    schema = schemathesis.openapi.from_dict(requests.get(f"{base}/openapi.json", timeout=30).json())
    operations = [found.ok() for found in schema.get_all_operations()]
    posts = [one for one in operations if one.method == "post"]
    with requests.Session() as session:
        for operation in operations:
            share = (1 - _FEW * (len(operations) - len(posts))) / len(posts)
            count = round(cases * (share if operation in posts else _FEW) / 2)
            for mode in GenerationMode:
                strategy = operation.as_strategy(generation_mode=mode)

                @_settings(count)
                @given(case=strategy)
                def one(case: Any) -> None:
                    response = case.call(base_url=base, session=session, timeout=60)
                    seen[str(response.status_code)] += 1
                    assert response.status_code != 500, response.text
                    case.validate_response(
                        response,
                        checks=[
                            checks.status_code_conformance,
                            checks.content_type_conformance,
                            checks.response_schema_conformance,
                        ],
                    )

                try:
                    one()
                except Unsatisfiable:
                    # A GET without parameters cannot be invalid.
                    assert mode is GenerationMode.NEGATIVE
                    assert operation.method == "get"


_numbers = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 10**30, -(2**64)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
_texts = st.one_of(st.sampled_from(["A good film.", "", " ", "\x00", "é" * 300]), st.text())
_json = st.recursive(
    st.one_of(st.none(), _numbers, _texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)
    ),
    max_leaves=8,
)
_parameters = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                *("max_num_instances", "isolation_key", "truncate", "timeout", "classification"),
                *("binary_data", "binary_data_size", "binary_data_output", "priority"),
            ]
        ),
        _texts,
    ),
    _json,
    max_size=3,
)


def _mostly(right: Any, wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The right value in four of five cases, so that a request is nearly valid."""
    return st.sampled_from("rrrrw").flatmap(lambda turn: wrong if turn == "w" else st.just(right))


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """A body for ``infer`` and its headers."""
    texts = draw(st.lists(_mostly("A good film.", _json), min_size=0, max_size=3))
    given_input: dict[str, Any] = {
        "name": draw(_mostly("text", _json)),
        "shape": draw(_mostly([len(texts), 1], _json)),
        "datatype": draw(_mostly("BYTES", _json)),
        "data": draw(_mostly(texts, _json)),
    }
    body: dict[str, Any] = {
        "inputs": draw(_mostly([given_input], st.one_of(_json, st.just([given_input] * 2))))
    }
    if draw(st.booleans()):
        given_input["parameters"] = draw(st.one_of(_parameters, _json))
    if draw(st.booleans()):
        body["parameters"] = draw(st.one_of(_parameters, _json))
    if draw(st.booleans()):
        names = st.sampled_from(["scores", "logits", "num_instances", "truncated", "none"])
        output = st.fixed_dictionaries({"name": names, "parameters": _parameters})
        body["outputs"] = draw(st.one_of(st.lists(output, max_size=3), _json))
    for name in draw(st.lists(st.sampled_from(["id", "extra", "inputs"]), max_size=1)):
        body[name] = draw(_json)
    # Not orjson, which cannot write half a surrogate pair.
    raw = json.dumps(body, allow_nan=False).encode()
    if draw(_mostly(False, st.just(True))):
        raw = raw[: draw(st.integers(0, len(raw)))] + draw(st.binary(max_size=40))
    headers = {}
    if draw(_mostly(False, st.just(True))):
        headers["inference-header-content-length"] = draw(
            st.one_of(st.just(str(len(raw))), st.from_regex(r"[-0-9a-f]{1,30}", fullmatch=True))
        )
    if draw(_mostly(False, st.just(True))):
        headers["content-encoding"] = draw(st.sampled_from(["gzip", "deflate", "br", "identity"]))
    return raw, headers


def _infer(server: Server, cases: int, seen: Counter[str]) -> None:
    paths = [
        *(f"/v2/models/{_MODEL}/infer", f"/v2/models/{_MODEL}/versions/1/infer"),
        *(f"/v2/models/{_MODEL}_text/infer", "/v2/models/other/infer"),
    ]
    with httpx.Client(base_url=f"http://{HOST}:{server.port}", timeout=60) as client:

        @_settings(cases)
        @given(body=_bodies(), path=_mostly(paths[0], st.sampled_from(paths)))
        def one(body: tuple[bytes, dict[str, str]], path: str) -> None:
            raw, headers = body
            response = client.post(path, content=raw, headers=headers)
            seen[str(response.status_code)] += 1
            if response.status_code != 200:
                told = response.json()
                assert told.keys() == {"error", "code"}, told
                assert (response.status_code, told["code"]) in DOCUMENTED, response.text

        one()


@st.composite
def _calls(draw: st.DrawFn) -> Any:
    """A message of ``ModelInfer``."""
    strings = st.text(max_size=20)
    request = pb.ModelInferRequest(
        model_name=draw(_mostly(_MODEL, strings)), model_version=draw(_mostly("", strings))
    )
    contents = draw(st.lists(_mostly(b"A good film.", st.binary(max_size=30)), max_size=3))
    for _ in range(draw(_mostly(1, st.integers(0, 3)))):
        one = request.inputs.add(
            name=draw(_mostly("text", strings)),
            datatype=draw(_mostly("BYTES", strings)),
            shape=draw(
                _mostly([len(contents), 1], st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3))
            ),
        )
        if draw(_mostly(True, st.just(False))):
            one.contents.bytes_contents.extend(contents)
        if draw(_mostly(False, st.just(True))):
            one.contents.int_contents.append(draw(st.integers(0, 9)))
        _set(one.parameters, draw)
    for _ in range(draw(_mostly(0, st.integers(0, 3)))):
        request.raw_input_contents.append(
            draw(st.one_of(st.binary(max_size=30), st.just(b"\x04\x00\x00\x00good")))
        )
    for name in draw(st.lists(st.sampled_from(["scores", "logits", "truncated", "x"]), max_size=2)):
        _set(request.outputs.add(name=name).parameters, draw)
    _set(request.parameters, draw)
    return request


def _set(parameters: Any, draw: st.DrawFn) -> None:
    names = ["max_num_instances", "isolation_key", "truncate", "timeout", "classification", "odd"]
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        kind, values = draw(
            st.sampled_from(
                [
                    ("int64_param", st.integers(-(2**63), 2**63 - 1)),
                    ("int64_param", st.integers(-1, 12)),
                    ("bool_param", st.booleans()),
                    ("string_param", st.text(max_size=10)),
                    ("double_param", st.floats()),
                    ("uint64_param", st.integers(0, 2**64 - 1)),
                ]
            )
        )
        setattr(parameters[name], kind, draw(values))


def _grpc(server: Server, cases: int, seen: Counter[str]) -> None:
    rng = random.Random(0)
    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        @_settings(cases)
        @given(request=_calls())
        def one(request: Any) -> None:
            try:
                stub.ModelInfer(request, timeout=rng.choice([60, 60, 60, 0.001]))
                name = "OK"
            except grpc.RpcError as error:
                name = error.code().name
            seen[name] += 1
            assert name in {"OK", *DOCUMENTED_GRPC}, request

        one()
