"""Who may ask, on real sockets: keys, pages, origins and proxies, over HTTP and gRPC."""

import asyncio
import hashlib
import json
import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import yaml
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from pydantic import ValidationError
from ray import serve
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.request import RequestOptions, Tokens
from muxserve.errors import FamilyError, InvalidInput, one_line
from muxserve.loadtest.generator.oip_clients import OipGrpcSpeaker, OipHttpSpeaker
from muxserve.loadtest.generator.requests import OK
from muxserve.loadtest.scenario.texts import Text
from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.access.authentication import Authenticator
from muxserve.serving.access.callers import HANDLES
from muxserve.serving.access.keys import Keyring
from muxserve.serving.access.proxies import TrustedProxies
from muxserve.serving.app import build_app
from muxserve.serving.backend import LocalBackend
from muxserve.serving.config import LimitsConfig, ServeConfig
from muxserve.serving.listening.listener import Listener
from muxserve.serving.security import SecurityConfig
from muxserve.serving.service import TextService
from tests.listening import listening
from tests.ray_serve import BOUND_S, ray_serve, until

WEB, BATCH, SMALL = "a" * 20 + "web", "b" * 20 + "batch", "c" * 20 + "small"
ORIGIN = "https://app.example.com"
LIMITS = LimitsConfig(max_texts_per_request=8, max_body_bytes=20_000)
KEYS = {
    "keys": [
        {"name": "web", "key": WEB},
        {"name": "batch", "sha256": hashlib.sha256(BATCH.encode()).hexdigest(), "isolation": False},
        {
            "name": "small",
            "key": SMALL,
            "max_num_instances": 1,
            "limits": {"max_texts_per_request": 2, "max_body_bytes": 2000, "max_waiting_texts": 2},
        },
    ]
}


class Recording(LocalBackend):
    """The engine, and what it was asked. Callers that are held wait for their answers."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.options: list[RequestOptions] = []
        self.held: set[str] = set()

    async def predict(self, tokens: list[Tokens], options: RequestOptions) -> Any:
        self.options.append(options)
        while options.caller in self.held:
            await asyncio.sleep(0.01)
        return await super().predict(tokens, options)


@contextmanager
def serving(engine: Engine, security: SecurityConfig) -> Iterator[SimpleNamespace]:
    """HTTP and gRPC in front of an engine."""
    keyring = None
    if security.keys_file is not None:
        keyring = Keyring(security.keys_file, LIMITS)
    backend = Recording(engine)
    service = TextService(engine.family.spec, engine.encoder, backend, LIMITS, most_texts=64)
    with (
        listening(service, Authenticator(security, keyring), security.cors_origins) as (
            port,
            grpc_port,
        ),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=BOUND_S) as client,
    ):
        yield SimpleNamespace(
            client=client,
            port=port,
            grpc=f"127.0.0.1:{grpc_port}",
            backend=backend,
            keyring=keyring,
            name=engine.family.spec.name,
        )


@pytest.fixture(scope="module")
def engine(tiny_family) -> Iterator[Engine]:
    with Engine.from_family(tiny_family, EngineConfig(warm_up_s=0.3, dtype="float32")) as engine:
        yield engine


def keys_file(folder: Path, content: object = KEYS) -> str:
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """With keys, an origin, and a page of each kind."""
    security = SecurityConfig.model_validate(
        {
            "keys_file": keys_file(tmp_path_factory.mktemp("keys")),
            "pages": {"stats": "key", "metrics": "open", "docs": "off"},
            "cors_origins": [ORIGIN],
        }
    )
    with serving(engine, security) as running:
        yield running


@pytest.fixture(scope="module")
def open_server(engine) -> Iterator[SimpleNamespace]:
    """Without keys, behind proxies of 127.0.0.1 and 10.0.0.0/8."""
    security = SecurityConfig.model_validate({"trusted_proxies": "127.0.0.1, 10.0.0.0/8"})
    with serving(engine, security) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def infer_body(texts: list[str]) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    return {"inputs": [tensor]}


# HTTP


#: Routes that answer, below a server's model.
ANSWERS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "/predict": ("/predict", lambda texts: {"inputs": texts}),
    "/": ("/", lambda texts: {"inputs": texts}),
    "/v2": ("/v2/models/{name}/infer", infer_body),
    "/v2 version": ("/v2/models/{name}/versions/1/infer", infer_body),
}


@pytest.fixture(params=ANSWERS)
def route(server, request) -> tuple[str, Callable[[list[str]], Any]]:
    path, body = ANSWERS[request.param]
    return path.format(name=server.name), body


def refused(response: httpx.Response) -> str:
    """That a key is asked for, in the shape of the path's protocol; the message."""
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    if response.request.url.path.startswith("/v2"):
        assert body["code"] == "unauthenticated"
        return str(body["error"])
    assert body.keys() == {"error", "message"}
    assert body["error"] == "unauthenticated"
    return str(body["message"])


@pytest.mark.parametrize("key", [WEB, BATCH, SMALL])
def test_a_key_is_let_in_on_every_route(server, route, key):
    path, body = route
    response = server.client.post(path, json=body(["a good film"]), headers=bearer(key))
    assert response.status_code == 200, response.text


def test_the_stock_client_of_hugging_face_sends_a_key(server):
    url = f"http://127.0.0.1:{server.port}"
    elements = InferenceClient(url, token=WEB).text_classification("a good film", top_k=1)
    assert [one.label for one in elements] in (["positive"], ["negative"])
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(url, token=f"{WEB}x").text_classification("a good film")


WRONG: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "empty": [("authorization", "")],
    "no-key": [("authorization", "Bearer")],
    "unknown": [("authorization", f"Bearer {WEB}x")],
    "shorter": [("authorization", f"Bearer {WEB[:-1]}")],
    "other-case": [("authorization", f"Bearer {WEB.upper()}")],
    "basic": [("authorization", f"Basic {WEB}")],
    "no-scheme": [("authorization", WEB)],
    "two": [("authorization", f"Bearer {WEB}"), ("authorization", f"Bearer {WEB}")],
    "digest": [("authorization", f"Bearer {hashlib.sha256(BATCH.encode()).hexdigest()}")],
    "long": [("authorization", f"Bearer {'x' * 50_000}")],
    "elsewhere": [("x-api-key", WEB), ("cookie", f"key={WEB}")],
}


@pytest.mark.parametrize("name", WRONG)
def test_without_a_right_key_nobody_is_let_in(server, route, name):
    path, body = route
    before = len(server.backend.options)
    told = refused(server.client.post(path, json=body(["good"]), headers=WRONG[name]))
    assert WEB[:-1] not in told
    assert len(server.backend.options) == before


def test_a_key_in_the_address_is_none(server):
    refused(server.client.post(f"/predict?key={WEB}&authorization=Bearer%20{WEB}", json={}))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_written_as_clients_like(server, scheme):
    headers = {"authorization": f"{scheme} {WEB}"}
    assert server.client.post("/predict", json={"inputs": "a"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/predict/",
        "//predict",
        "/health/",
        "//health",
        "/Health",
        "/v2/none",
        "/docs/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "DELETE"])
def test_what_is_not_listed_is_closed(server, path, method):
    url = httpx.URL(f"http://127.0.0.1:{server.port}").copy_with(raw_path=path.encode())
    response = server.client.request(method, url)
    assert response.status_code == 401, response.text


def test_metadata_of_the_model_asks_for_a_key(server):
    for path in ("/v2", f"/v2/models/{server.name}", f"/v2/models/{server.name}/versions/1"):
        refused(server.client.get(path))
        assert server.client.get(path, headers=bearer(WEB)).status_code == 200


def test_probes_have_no_key(server):
    name = server.name
    for path in (
        *("/health", "/ready", "/v2/health/live", "/v2/health/ready"),
        *(f"/v2/models/{name}/ready", f"/v2/models/{name}/versions/1/ready"),
    ):
        assert server.client.get(path).status_code == 200, path


def test_a_refusal_comes_before_the_body_is_read(server):
    """No byte of it is sent, and none is asked for with 100 Continue."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", server.port), BOUND_S) as client:
        client.sendall(head + b"\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
    with socket.create_connection(("127.0.0.1", server.port), BOUND_S) as client:
        client.sendall(head + b"authorization: Bearer " + WEB.encode() + b"\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 100 ")


def test_each_page_is_open_or_closed_or_off(server):
    client = server.client
    refused(client.get("/stats"))
    assert client.get("/stats", headers=bearer(WEB)).status_code == 200
    assert client.get("/metrics").status_code == 200
    for path in ("/docs", "/openapi.json", "/docs/oauth2-redirect"):
        for headers in ({}, bearer(WEB)):
            response = client.get(path, headers=headers)
            assert (response.status_code, response.json()["error"]) == (404, "not_found")
    unknown = client.get("/nothing", headers=bearer(WEB))
    assert unknown.status_code == 404
    assert "/docs" not in unknown.text


def test_the_description_says_which_paths_ask_for_a_key(engine, tmp_path):
    config = {"keys_file": keys_file(tmp_path), "pages": {"stats": "key"}}
    with serving(engine, SecurityConfig.model_validate(config)) as running:
        document = running.client.get("/openapi.json").json()
    closed = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if operation.get("security") == [{"key": []}]
    }
    assert {"/predict", "/", "/stats", "/v2/models/{name}/infer"} <= closed
    assert not {"/health", "/ready", "/metrics", "/v2/models/{name}/ready"} & closed
    assert "401" in document["paths"]["/predict"]["post"]["responses"]


# What a key allows


def ask(server: SimpleNamespace, key: str, **fields: Any) -> RequestOptions:
    """What the engine is asked for one text."""
    body = {"inputs": "a good film", **fields}
    response = server.client.post("/predict", json=body, headers=bearer(key))
    assert response.status_code == 200, response.text
    options: RequestOptions = server.backend.options[-1]
    return options


def test_a_body_narrows_the_isolation_of_its_key_and_no_more(server):
    isolated = {ask(server, WEB).isolation_key, ask(server, SMALL).isolation_key}
    assert len(isolated - {None}) == 2
    assert ask(server, BATCH).isolation_key is None
    narrowed = [ask(server, key, isolation_key="x").isolation_key for key in (WEB, SMALL, BATCH)]
    assert len({*narrowed, *isolated}) == 5
    # Nobody writes himself into the group of another key.
    for guess in ("web:", "web", ":", "key:web", *map(str, isolated)):
        assert ask(server, BATCH, isolation_key=guess).isolation_key not in isolated


def test_a_cap_of_a_key_is_a_floor_of_quality(server):
    asked = [ask(server, SMALL, max_num_instances=n).max_num_instances for n in (1, 2, 5)]
    assert asked == [1, 1, 1]
    assert ask(server, SMALL).max_num_instances == 1
    assert [ask(server, WEB, max_num_instances=n).max_num_instances for n in (1, 5)] == [1, 5]
    assert ask(server, WEB).max_num_instances is None


def test_callers_are_told_apart_by_their_keys(server):
    assert [ask(server, key).caller for key in (WEB, BATCH)] == ["key:web", "key:batch"]


def test_limits_of_a_key_hold_for_it_alone(server, route):
    path, body = route
    for texts, size, code in ((["a"] * 3, 0, "too_many_texts"), (["a"], 3000, "body_too_large")):
        content = json.dumps(body(texts)).encode() + b" " * size
        refusal = server.client.post(path, content=content, headers=bearer(SMALL))
        assert refusal.status_code == 413
        told = refusal.json()
        assert code in (told["error"], told.get("code"))
        assert server.client.post(path, content=content, headers=bearer(WEB)).status_code == 200


def test_a_key_holds_no_more_texts_than_it_may(server):
    """While texts of it are under way; others go on."""
    backend = server.backend

    def post(key: str, texts: list[str]) -> httpx.Response:
        response: httpx.Response = server.client.post(
            "/predict", json={"inputs": texts}, headers=bearer(key)
        )
        return response

    before = len(backend.options)
    backend.held.add("key:small")
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(post, SMALL, ["a", "b"])
            until(lambda: len(backend.options) > before, "it is under way")
            refusal = post(SMALL, ["c"])
            assert (refusal.status_code, refusal.json()["error"]) == (503, "overloaded")
            assert "at most 2 may be" in refusal.json()["message"]
            assert "retry-after" in refusal.headers
            assert post(WEB, ["c"]).status_code == 200
        finally:
            backend.held.clear()
        assert first.result(BOUND_S).status_code == 200
    assert post(SMALL, ["c"]).status_code == 200


# gRPC


@pytest.fixture(scope="module")
def stub(server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer_request(name: str, texts: list[str]) -> Any:
    request = pb.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def test_a_key_is_let_in_over_grpc(server, stub):
    metadata = (("authorization", f"Bearer {WEB}"),)
    answer = stub.ModelInfer(infer_request(server.name, ["good"]), BOUND_S, metadata)
    assert answer.model_name == server.name
    assert server.backend.options[-1].caller == "key:web"
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name=server.name), BOUND_S, metadata)


def test_the_stock_client_sends_a_key(server):
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        text = triton_grpc.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"good"]], dtype=object))
        result = client.infer(server.name, [text], headers=bearer(WEB))
        assert result.as_numpy("scores").shape == (1, 2)


@pytest.mark.parametrize("kind", [OipHttpSpeaker, OipGrpcSpeaker])
def test_a_load_test_sends_a_key(server, kind):
    url = server.grpc if kind is OipGrpcSpeaker else f"http://127.0.0.1:{server.port}"
    speaker = kind(url, server.name, {"Authorization": f"Bearer {WEB}"}, BOUND_S)
    try:
        answer = speaker.ask(speaker.prepare([Text("a good film", None)]))
        assert answer.status == OK
    finally:
        speaker.close()
    with pytest.raises(InvalidInput, match="API key"):
        kind(url, server.name, {}, BOUND_S)


@pytest.mark.parametrize("name", sorted(set(WRONG) - {"long"}))
def test_without_a_right_key_no_call_is_answered(server, stub, name):
    calls = [
        lambda metadata: stub.ModelInfer(infer_request(server.name, ["a"]), BOUND_S, metadata),
        lambda metadata: stub.ServerMetadata(pb.ServerMetadataRequest(), BOUND_S, metadata),
        lambda metadata: stub.RepositoryIndex(pb.RepositoryIndexRequest(), BOUND_S, metadata),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(tuple(WRONG[name]))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert "API key" in caught.value.details() or "Bearer" in caught.value.details()
        assert dict(caught.value.trailing_metadata())["www-authenticate"] == "Bearer"


def test_probes_over_grpc_have_no_key(server, stub):
    assert stub.ServerLive(pb.ServerLiveRequest(), BOUND_S).live
    assert stub.ServerReady(pb.ServerReadyRequest(), BOUND_S).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name=server.name), BOUND_S).ready


def test_limits_of_a_key_hold_over_grpc(server, stub):
    for texts in (["a"] * 3, ["a" * 3000]):
        request = infer_request(server.name, texts)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, BOUND_S, (("authorization", f"Bearer {SMALL}"),))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert stub.ModelInfer(request, BOUND_S, (("authorization", f"Bearer {WEB}"),))


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\xff\x01", b"not a message"])
def test_a_message_that_cannot_be_read_is_the_callers_mistake(server, caplog, message):
    with grpc.insecure_channel(server.grpc) as channel, caplog.at_level(logging.DEBUG):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(message, BOUND_S, (("authorization", f"Bearer {WEB}"),))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            call(message, BOUND_S)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not [one for one in caplog.records if one.exc_info or one.levelno >= logging.WARNING]


def test_a_method_that_is_not_there_is_unimplemented_and_not_logged(server, stub, caplog):
    metadata = (("authorization", f"Bearer {WEB}"),)
    calls = [
        lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(), BOUND_S, metadata),
        lambda: list(stub.ModelStreamInfer(iter([]), BOUND_S, metadata)),
    ]
    with caplog.at_level(logging.DEBUG):
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert not [one for one in caplog.records if one.exc_info or one.levelno >= logging.WARNING]


# Keys that change, and are never told


def test_a_key_is_taken_away_while_it_is_used(engine, tmp_path, caplog):
    security = SecurityConfig(keys_file=keys_file(tmp_path))

    def passes(running: SimpleNamespace, key: str) -> tuple[int, bool]:
        """Status over HTTP, and whether gRPC answers."""
        response = running.client.post("/predict", json={"inputs": "good"}, headers=bearer(key))
        metadata = (("authorization", f"Bearer {key}"),)
        with grpc.insecure_channel(running.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            call = stub.ServerMetadata.future(pb.ServerMetadataRequest(), BOUND_S, metadata)
            return response.status_code, call.code() == grpc.StatusCode.OK

    with caplog.at_level(logging.DEBUG), serving(engine, security) as running:
        assert [passes(running, key) for key in (WEB, BATCH)] == [(200, True), (200, True)]
        # The first key is taken away; then comes a file that is none.
        for content in ({"keys": KEYS["keys"][1:]}, {"keys": KEYS["keys"][0]}):
            keys_file(tmp_path, content)
            for _ in range(2):
                running.keyring.look()
            assert [passes(running, key) for key in (WEB, BATCH)] == [(401, False), (200, True)]
    told = "\n".join(f"{one.getMessage()} {one.args}" for one in caplog.records)
    assert "the keys that were read before stay" in told
    for key in (WEB, BATCH, SMALL):
        assert key not in told
        assert hashlib.sha256(key.encode()).hexdigest() not in told


# Origins


def preflight(server: SimpleNamespace, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response: httpx.Response = server.client.options("/predict", headers=headers)
    return response


def of_cors(response: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name.startswith("access-control") or name == "vary"
    }


def test_a_preflight_of_a_configured_origin_has_no_key(server):
    response = preflight(server, ORIGIN)
    assert (response.status_code, response.content) == (204, b"")
    told = of_cors(response)
    assert told["access-control-allow-origin"] == ORIGIN
    assert told["vary"] == "Origin"
    assert "POST" in told["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(
        told["access-control-allow-headers"].split(", ")
    )
    assert "access-control-allow-credentials" not in told


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.example.com", ORIGIN + ".evil.com", ORIGIN.upper(), "http://x"]
)
def test_other_origins_are_told_nothing(server, origin):
    for response in (
        preflight(server, origin),
        server.client.post(
            "/predict", json={"inputs": "a"}, headers={**bearer(WEB), "origin": origin}
        ),
    ):
        assert of_cors(response) == {"vary": "Origin"}
    refused(preflight(server, origin))


def test_answers_and_refusals_can_be_read_by_the_origin(server):
    for headers, status in (({}, 401), (bearer(WEB), 200)):
        response = server.client.post(
            "/predict", json={"inputs": "a"}, headers={**headers, "origin": ORIGIN}
        )
        assert response.status_code == status
        assert of_cors(response)["access-control-allow-origin"] == ORIGIN
        assert "x-muxserve-num-instances" in of_cors(response)["access-control-expose-headers"]


def test_without_configured_origins_nothing_is_said(open_server):
    assert of_cors(preflight(open_server, ORIGIN)) == {}
    assert preflight(open_server, ORIGIN).status_code == 405
    response = open_server.client.post("/predict", json={"inputs": "a"}, headers={"origin": ORIGIN})
    assert (response.status_code, of_cors(response)) == (200, {})


def test_every_origin_where_that_is_said(engine):
    with serving(engine, SecurityConfig(cors_origins=("*",))) as running:
        told = of_cors(preflight(running, ORIGIN))
        assert told["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in told


# Proxies


@pytest.mark.parametrize(
    ("peer", "header", "address"),
    [
        # Nobody but a proxy is believed.
        ("9.9.9.9", ["1.2.3.4"], "9.9.9.9"),
        ("", ["1.2.3.4"], ""),
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("2001:db8::5", ["1.2.3.4"], "1.2.3.4"),
        # What stands left of the rightmost stranger, the stranger wrote.
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4", "10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["10.0.0.3, 1.2.3.4,10.0.0.2"], "1.2.3.4"),
        # Ports, brackets, IPv6.
        ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
        ("10.0.0.1", ["[2001:db9::1]:5678"], "2001:db9::1"),
        ("10.0.0.1", ["2001:db9::1"], "2001:db9::1"),
        # What says nothing leaves the proxy that wrote it.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["," * 1000], "10.0.0.1"),
    ],
)
def test_the_caller_is_the_rightmost_address_that_is_no_proxy(peer, header, address):
    proxies = TrustedProxies(["10.0.0.0/8", "2001:db8::/32"])
    assert proxies.address(peer, header) == address


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (["for=1.2.3.4"], "1.2.3.4"),
        (["For=1.2.3.4;proto=http;by=10.0.0.1"], "1.2.3.4"),
        (["proto=http; for=1.2.3.4"], "1.2.3.4"),
        (['for="[2001:db9::1]:4711"'], "2001:db9::1"),
        (['for="1.2.3.4:4711"'], "1.2.3.4"),
        (["for=6.6.6.6, for=1.2.3.4, for=10.0.0.2"], "1.2.3.4"),
        (["for=6.6.6.6", "for=1.2.3.4"], "1.2.3.4"),
        (["for=_hidden"], "10.0.0.1"),
        (["for=1.2.3.4, proto=http"], "10.0.0.1"),
        (["1.2.3.4"], "10.0.0.1"),
    ],
)
def test_the_header_of_rfc_7239_is_read_where_it_is_chosen(header, address):
    proxies = TrustedProxies(["10.0.0.0/8"], "forwarded")
    assert proxies.address("10.0.0.1", header) == address


def test_a_client_behind_a_trusted_proxy_is_a_caller_of_its_own(open_server):
    """This test is the proxy: it connects from 127.0.0.1."""

    def caller(headers: list[tuple[str, str]]) -> str:
        body = {"inputs": "good"}
        response = open_server.client.post("/predict", json=body, headers=headers)
        assert response.status_code == 200
        name: str = open_server.backend.options[-1].caller
        return name

    assert caller([]) == "127.0.0.1"
    assert caller([("x-forwarded-for", "1.2.3.4")]) == "1.2.3.4"
    assert caller([("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4")]) == "1.2.3.4"
    assert caller([("x-forwarded-for", "2001:db8:1:2::3")]) == "2001:db8:1:2::/64"
    # The header that the proxies do not write is the client's.
    assert caller([("forwarded", "for=1.2.3.4")]) == "127.0.0.1"
    assert caller([("x-real-ip", "1.2.3.4")]) == "127.0.0.1"
    with grpc.insecure_channel(open_server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = infer_request(open_server.name, ["good"])
        for metadata, name in (((), "127.0.0.1"), ((("x-forwarded-for", "1.2.3.4"),), "1.2.3.4")):
            stub.ModelInfer(request, BOUND_S, metadata)
            assert open_server.backend.options[-1].caller == name


def test_no_variable_makes_a_header_believed(monkeypatch):
    """uvicorn's own reading of proxies' headers is off, whatever the environment says."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")

    async def told(scope, receive, send) -> None:
        body = json.dumps(scope["client"][0]).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def ask() -> str:
        port = free_port()
        listener = Listener("127.0.0.1", port)
        listener.start(told)
        try:
            async with httpx.AsyncClient() as client:
                headers = {"x-forwarded-for": "1.2.3.4"}
                response = await client.get(f"http://127.0.0.1:{port}/", headers=headers)
                return str(response.json())
        finally:
            await listener.stop()

    assert asyncio.run(ask()) == "127.0.0.1"


# Settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"security.pages.stats": "key"}, "security.keys_file"),
        ({"security.pages.stats": "closed"}, "'open', 'key' or 'off'"),
        ({"security.cors_origins": "https://a.example.com/"}, "expected an origin"),
        ({"security.cors_origins": "null"}, "expected an origin"),
        ({"security.cors_origins": ["*", "https://a.example.com"]}, "give it alone"),
        ({"security.trusted_proxies": "10.0.0.1/8"}, "has host bits set"),
        ({"security.trusted_proxies": "gateway"}, "expected an address or a network"),
        ({"security.proxy_header": "x-real-ip"}, "x-forwarded-for"),
    ],
)
def test_a_setting_that_cannot_be_is_told(settings, told):
    with pytest.raises(ValidationError, match=told):
        ServeConfig.model_validate({"family": "sentiment", **settings})


def test_settings_come_from_a_command_line_and_from_yaml():
    line = {
        "security.cors_origins": "https://a.example.com,http://localhost:3000",
        "security.trusted_proxies": "10.0.0.0/8, ::1",
        "security.pages.docs": "off",
    }
    text = """
    security:
      cors_origins: ["https://a.example.com", "http://localhost:3000"]
      trusted_proxies: [10.0.0.0/8, "::1"]
      pages: {docs: off}
    """
    one, other = (
        ServeConfig.model_validate({"family": "sentiment", **values})
        for values in (line, yaml.safe_load(text))
    )
    assert one == other
    assert one.security.trusted_proxies == ("10.0.0.0/8", "::1")
    assert one.security.pages.docs == "off"
    assert ServeConfig.model_validate(one.model_dump(mode="json")) == one


def test_a_broken_file_of_keys_is_told_before_anything_is_deployed(tiny_family, tmp_path):
    file = keys_file(tmp_path, {"keys": [{"name": "web", "key": WEB, "shares": 2}]})
    settings = {"family": str(tiny_family), "security.keys_file": file}
    with pytest.raises(InvalidInput, match=r"keys\[0\]: a field that does not exist") as caught:
        build_app(ServeConfig.model_validate(settings))
    assert file in one_line(caught.value)
    assert WEB not in one_line(caught.value)


def test_a_file_of_keys_is_found_from_another_folder(tiny_family, tmp_path, monkeypatch):
    """The processes of Ray have a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    file = keys_file(tmp_path)
    settings = {"family": str(tiny_family), "security.keys_file": "keys.yaml"}
    app = build_app(ServeConfig.model_validate(settings))
    (config, _) = app._bound_deployment.init_args
    assert config.security.keys_file == file


def test_a_cap_below_the_family_is_refused_before_anything_is_deployed(tiny_family, tmp_path):
    keys = {"keys": [{"name": "web", "key": WEB, "max_num_instances": 1}]}
    settings = {
        "family": str(tiny_family),
        "engine.num_instances": 2,
        "security.keys_file": keys_file(tmp_path, keys),
    }
    with pytest.raises(InvalidInput, match="the narrowest N here is 2"):
        build_app(ServeConfig.model_validate(settings))


def test_handles_have_no_key_and_are_trusted():
    assert (HANDLES.key, HANDLES.max_num_instances, HANDLES.isolated) == (None, None, False)


# Through Ray Serve


@pytest.mark.ray
def test_keys_hold_through_ray_s_proxy_too(tiny_family, tmp_path):
    settings = {
        "family": str(tiny_family),
        "arrangement": "together",
        "engine": {"warm_up_s": 0.5},
        "security": {"keys_file": keys_file(tmp_path), "pages": {"stats": "off"}},
    }
    with ray_serve() as url:
        serve.run(build_app(ServeConfig.model_validate(settings)), name="a", route_prefix="/a")
        with httpx.Client(base_url=f"{url}/a", timeout=BOUND_S) as client:
            for path in ("/predict", "/"):
                body = {"inputs": "a good film"}
                refused(client.post(path, json=body))
                refused(client.post(path, json=body, headers=bearer(f"{WEB}x")))
                assert client.post(path, json=body, headers=bearer(WEB)).status_code == 200
            assert client.get("/ready").status_code == 200
            assert client.get("/stats", headers=bearer(WEB)).status_code == 404
            told = client.get("/v2")
            assert (told.status_code, told.json()["code"]) == (401, "unauthenticated")
        handle = serve.get_app_handle("a")
        assert len(handle.classify.remote(["good", "bad"]).result()) == 2


def test_checksums_that_are_not_verified_are_not_with_keys_either(tiny_family, tmp_path):
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    with (folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump(KEYS))
    keys.chmod(0o600)
    settings = {"family": str(folder), "security.keys_file": str(keys)}
    with pytest.raises(FamilyError, match="has a checksum of"):
        build_app(ServeConfig.model_validate(settings))
    build_app(ServeConfig.model_validate({**settings, "engine.verify_checksums": False}))
