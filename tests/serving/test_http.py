"""The HTTP interface over a real engine, in this process: answers, and what bad input gets."""

import asyncio
import gc
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import TextClassificationOutputElement
from prometheus_client.parser import text_string_to_metric_families

from muxserve import Engine, Family
from muxserve.engine.config import EngineConfig
from muxserve.engine.forward import TorchExecutor
from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.backend import LocalBackend
from muxserve.serving.config import LimitsConfig
from muxserve.serving.listening.listener import Listener
from muxserve.serving.metrics import SERIES, exposition
from muxserve.serving.protocols.http import create_app
from muxserve.serving.service import TextService

LIMITS = LimitsConfig(max_texts_per_request=8, max_body_bytes=2048, request_timeout_s=20)
POISON = 10  # "very"
LONG = "good " * 40
BOUND_S = 20


class Gate:
    """A real executor that can be held, and that fails for texts with a poisonous token."""

    in_flight, spreads = 1, False

    def __init__(self, family: Family) -> None:
        self.real = TorchExecutor(
            family.models, pad_id=family.pad_id, padded_length=None, threads=1
        )
        self.entered = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def prepare(self) -> None:
        self.real.prepare()

    def run(self, n, rows, *, alone=False):
        self.entered.set()
        assert self.open.wait(BOUND_S)
        if any(POISON in row for row in rows):
            raise RuntimeError("poison")
        return self.real.run(n, rows)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Forwards wait while this is entered."""
        self.entered.clear()
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


@pytest.fixture(scope="module")
def served(tiny_family) -> Iterator[SimpleNamespace]:
    family = Family.load(tiny_family)
    gate = Gate(family)
    config = EngineConfig(warm_up_s=0.5, max_waiting_texts=4)
    with Engine(family, config, executor=gate) as engine:
        service = TextService(
            family.spec, engine.encoder, LocalBackend(engine), LIMITS, most_texts=64
        )
        yield SimpleNamespace(app=create_app(service), engine=engine, gate=gate)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://muxserve")


def within(test: Callable[[httpx.AsyncClient], Awaitable[Any]], app: Any) -> Any:
    """Run a test's conversation with the app; it must end in bounded time."""

    async def run() -> Any:
        async with client_of(app) as client, asyncio.timeout(BOUND_S):
            return await test(client)

    return asyncio.run(run())


@pytest.fixture
def ask(served) -> Callable[..., httpx.Response]:
    """Send one request; a dict or list is sent as JSON."""

    def send(method: str, path: str, body: Any = None, **settings: Any) -> httpx.Response:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return within(
            lambda client: client.request(method, path, content=content, **settings), served.app
        )

    return send


def refused(response: httpx.Response, status: int, code: str, field: str | None = None) -> str:
    """Check an error's shape; gives its message."""
    body = response.json()
    assert (response.status_code, body["error"]) == (status, code), body
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"error", "message"} | ({"field"} if field else set())
    assert body.get("field") == field
    return body["message"]


# Answers


def test_one_text_gets_its_labels_best_first(ask):
    response = ask("POST", "/predict", {"inputs": "a good film"})
    assert response.status_code == 200
    entries = response.json()
    assert {entry["label"] for entry in entries} == {"negative", "positive"}
    assert entries[0]["score"] >= entries[1]["score"]
    assert sum(entry["score"] for entry in entries) == pytest.approx(1)
    assert all(set(entry) == {"label", "score", "num_instances"} for entry in entries)
    assert response.headers["x-muxserve-num-instances"] == str(entries[0]["num_instances"])
    assert response.headers["x-muxserve-truncated"] == "0"


def test_a_list_gets_a_list_of_answers_in_its_order(ask):
    texts = ["a good film", "bad", "not good"]
    alone = [ask("POST", "/predict", {"inputs": one, "max_num_instances": 1}) for one in texts]
    together = ask("POST", "/predict", {"inputs": texts, "max_num_instances": 1})
    for one, answer in zip(alone, together.json(), strict=True):
        assert answer[0]["label"] == one.json()[0]["label"]
        assert answer[0]["score"] == pytest.approx(one.json()[0]["score"], abs=1e-4)
        assert answer[0]["num_instances"] == 1


def test_a_list_of_one_text_gets_a_list_of_one_answer(ask):
    answers = ask("POST", "/predict", {"inputs": ["good"]}).json()
    assert len(answers) == 1
    assert answers[0][0]["label"]


def test_a_batch_may_be_written_as_text_embeddings_inference_has_it(ask):
    answers = ask("POST", "/predict", {"inputs": [["good"], ["bad"]]}).json()
    assert len(answers) == 2


def test_raw_scores_are_logits(ask):
    body = {"inputs": "a good film", "max_num_instances": 1}
    probabilities = {e["label"]: e["score"] for e in ask("POST", "/predict", body).json()}
    logits = ask("POST", "/predict", {**body, "raw_scores": True}).json()
    powers = {entry["label"]: math.exp(entry["score"]) for entry in logits}
    for label, power in powers.items():
        assert power / sum(powers.values()) == pytest.approx(probabilities[label], abs=1e-4)


def test_null_stands_for_the_default(ask):
    body = {"inputs": "good", "raw_scores": None, "truncate": None, "timeout_ms": None}
    assert ask("POST", "/predict", body).status_code == 200


def test_a_text_that_is_cut_says_so(ask):
    response = ask("POST", "/predict", {"inputs": ["good", LONG]})
    short, long = response.json()
    assert not any("truncated" in entry for entry in short)
    assert all(entry["truncated"] is True for entry in long)
    assert response.headers["x-muxserve-truncated"] == "1"


def test_the_content_type_does_not_matter(ask):
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        response = ask(
            "POST", "/predict", {"inputs": "good"}, headers={"content-type": content_type}
        )
        assert response.status_code == 200


def test_the_shape_of_inference_client(ask):
    response = ask("POST", "/", {"inputs": "a good film"})
    elements = TextClassificationOutputElement.parse_obj_as_list(response.content)[0]
    assert {element.label for element in elements} == {"negative", "positive"}


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_parameters_choose_the_function_and_the_number_of_labels(ask, function):
    parameters = {"function_to_apply": function, "top_k": 1}
    answers = ask("POST", "/", {"inputs": ["good", "bad"], "parameters": parameters}).json()
    assert [len(answer) for answer in answers] == [1, 1]
    if function != "none":
        assert all(0 < answer[0]["score"] < 1 for answer in answers)


def test_health_and_ready(ask):
    assert ask("GET", "/health").json() == {"status": "ok"}
    assert ask("GET", "/ready").json() == {"status": "ready"}


def test_stats_count_texts(ask):
    before = ask("GET", "/stats").json()["engines"][0]["texts"]
    ask("POST", "/predict", {"inputs": ["good", "bad"]})
    assert ask("GET", "/stats").json()["engines"][0]["texts"] == before + 2


def test_every_route_is_described_and_nothing_else(ask, served):
    document = ask("GET", "/openapi.json").json()
    assert document == served.app.openapi()
    described = {
        (path, verb.upper()) for path, verbs in document["paths"].items() for verb in verbs
    }
    routes = {
        (route.path, method)
        for route in served.app.routes
        if not route.path.startswith(("/docs", "/openapi"))
        for method in route.methods - {"HEAD"}
    }
    assert described == routes
    assert "inputs" in document["components"]["schemas"]["PredictRequest"]["properties"]
    assert ask("GET", "/docs").status_code == 200


# Bad input


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": "a", "timeout_ms": NaN}',
        b'{"inputs": "a", "timeout_ms": -Infinity}',
        b"",
        b"{",
        b"inputs=good",
        b'{"inputs": "good"',
        b'{"inputs": "good"} x',
        b"\x1f\x8b\x08\x00",
    ],
)
def test_malformed_json(ask, body):
    refused(ask("POST", "/predict", body), 400, "malformed_json")


@pytest.mark.parametrize("body", [b'{"inputs": "caf\xe9"}', b"\xff\xfe{\x00"])
def test_a_body_that_is_not_utf_8(ask, body):
    refused(ask("POST", "/predict", body), 400, "malformed_json")


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], None),
        ("good", None),
        (None, "inputs"),
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": 3}, "inputs"),
        ({"inputs": True}, "inputs"),
        ({"inputs": {"text": "good"}}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": " \t\n\u3000"}, "inputs"),
        ({"inputs": ["good", ""]}, "inputs[1]"),
        ({"inputs": ["good", "  "]}, "inputs[1]"),
        ({"inputs": ["good", 3]}, "inputs[1]"),
        ({"inputs": ["good", None]}, "inputs[1]"),
        ({"inputs": [["good", "bad"]]}, "inputs[0]"),
        ({"inputs": [["good"], []]}, "inputs[1]"),
        ({"inputs": [[["good"]]]}, "inputs[0]"),
        ({"inputs": "good", "input": "good"}, "input"),
    ],
)
def test_wrong_inputs(ask, path, body, field):
    content = b"{}" if body is None else body
    refused(ask("POST", path, content), 422, "invalid_input", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("raw_scores", 1),
        ("raw_scores", "true"),
        ("truncate", "yes"),
        ("max_num_instances", 0),
        ("max_num_instances", True),
        ("max_num_instances", "2"),
        ("max_num_instances", 1.5),
        ("max_num_instances", 10**30),
        ("isolation_key", ""),
        ("isolation_key", 7),
        ("timeout_ms", 0),
        ("timeout_ms", -1),
        ("timeout_ms", "100"),
        ("timeout_ms", 10**400),
        ("prompt_name", "query"),
        ("truncation_direction", "left"),
        ("truncation_direction", 1),
    ],
)
def test_wrong_options(ask, field, value):
    message = refused(
        ask("POST", "/predict", {"inputs": "good", field: value}), 422, "invalid_input", field
    )
    assert field in message


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        (3, "parameters"),
        ({"top_k": 0}, "parameters.top_k"),
        ({"top_k": "1"}, "parameters.top_k"),
        ({"function_to_apply": "relu"}, "parameters.function_to_apply"),
        ({"topk": 1}, "parameters.topk"),
    ],
)
def test_wrong_parameters(ask, parameters, field):
    refused(
        ask("POST", "/", {"inputs": "good", "parameters": parameters}), 422, "invalid_input", field
    )


def test_an_unknown_field_is_told_which_exist(ask):
    message = refused(
        ask("POST", "/predict", {"inputs": "good", "max_num_instance": 1}),
        422,
        "invalid_input",
        "max_num_instance",
    )
    assert "max_num_instances" in message


def test_pairs_are_said_to_be_unsupported(ask):
    response = ask("POST", "/predict", {"inputs": [["good", "bad"], ["a", "film"]]})
    assert "pairs" in refused(response, 422, "invalid_input", "inputs[0]")


def test_a_long_text_is_refused_where_it_may_not_be_cut(ask):
    response = ask("POST", "/predict", {"inputs": LONG, "truncate": False})
    assert "32" in refused(response, 413, "text_too_long", "inputs")
    response = ask("POST", "/predict", {"inputs": ["good", LONG], "truncate": False})
    refused(response, 413, "text_too_long", "inputs[1]")


def test_too_many_texts(ask):
    refused(ask("POST", "/predict", {"inputs": ["good"] * 9}), 413, "too_many_texts", "inputs")


def test_a_body_that_says_it_is_too_large_is_not_read(served):
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def test(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/predict", content=body(), headers={"content-length": "2049"})

    refused(within(test, served.app), 413, "body_too_large")


def test_a_body_of_unknown_length_is_read_up_to_the_limit(served):
    taken = []

    async def body() -> AsyncIterator[bytes]:
        for index in range(100):
            taken.append(index)
            yield b"x" * 1024

    refused(
        within(lambda client: client.post("/predict", content=body()), served.app),
        413,
        "body_too_large",
    )
    assert len(taken) == 3  # the third kilobyte is over the limit of two


def test_a_body_at_the_limit_is_read(ask):
    body = json.dumps({"inputs": "good"}).encode().ljust(LIMITS.max_body_bytes)
    assert ask("POST", "/predict", body).status_code == 200


def test_an_unknown_path(ask):
    for method, path in (("GET", "/nowhere"), ("POST", "/predict/"), ("POST", "/v1/predict")):
        assert path in refused(ask(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", {"POST"}),
        ("PUT", "/", {"POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("DELETE", "/ready", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method(ask, method, path, allowed):
    response = ask(method, path)
    refused(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


def test_an_n_below_the_narrowest_is_refused_by_the_engine_too(tiny_family):
    family = Family.load(tiny_family)
    config = EngineConfig(warm_up_s=0.2, num_instances=5)
    with Engine(family, config) as engine:
        service = TextService(
            family.spec, engine.encoder, LocalBackend(engine), LIMITS, most_texts=64
        )
        response = within(
            lambda client: client.post("/predict", json={"inputs": "good", "max_num_instances": 2}),
            create_app(service),
        )
    refused(response, 422, "invalid_input", "max_num_instances")


# Load, deadlines, failures


async def until(condition: Callable[[], bool]) -> None:
    """Poll; the caller bounds the time."""
    while not condition():
        await asyncio.sleep(0.005)


def test_a_full_line_is_overloaded_and_those_in_it_are_answered(served):
    async def test(client: httpx.AsyncClient) -> None:
        with served.gate.held():
            running = asyncio.create_task(client.post("/predict", json={"inputs": "good"}))
            await until(served.gate.entered.is_set)
            texts = {"inputs": ["a", "b", "c", "d"]}
            waiting = asyncio.create_task(client.post("/predict", json=texts))
            await until(lambda: served.engine.stats().waiting == 4)
            response = await client.post("/predict", json={"inputs": "film"})
            refused(response, 503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        assert (await running).status_code == 200
        assert (await waiting).status_code == 200

    within(test, served.app)


def test_a_deadline_that_passes(served):
    async def test(client: httpx.AsyncClient) -> httpx.Response:
        with served.gate.held():
            return await client.post("/predict", json={"inputs": "good", "timeout_ms": 20})

    refused(within(test, served.app), 504, "deadline_exceeded")


def test_the_servers_own_deadline_bounds_the_requests(served):
    limits = LimitsConfig(request_timeout_s=0.02)
    service = TextService(
        served.engine.family.spec,
        served.engine.encoder,
        LocalBackend(served.engine),
        limits,
        most_texts=64,
    )

    async def test(client: httpx.AsyncClient) -> httpx.Response:
        with served.gate.held():
            return await client.post("/predict", json={"inputs": "good", "timeout_ms": 10_000})

    refused(within(test, create_app(service)), 504, "deadline_exceeded")


def test_a_body_that_never_ends_meets_the_deadline(served):
    limits = LimitsConfig(request_timeout_s=0.02)
    service = TextService(
        served.engine.family.spec,
        served.engine.encoder,
        LocalBackend(served.engine),
        limits,
        most_texts=64,
    )

    async def body() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        await asyncio.Event().wait()

    response = within(lambda client: client.post("/predict", content=body()), create_app(service))
    refused(response, 504, "deadline_exceeded")


class Told(LocalBackend):
    """The real backend, noting the deadlines that it is told."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.deadlines_s: list[float] = []

    async def predict(self, tokens, options):
        self.deadlines_s.append(options.deadline_s)
        return await super().predict(tokens, options)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", b'{"inputs": "good"}'),
        ("/predict", b'{"inputs": "good"}'),
        ("/predict", b'{"inputs": "good", "timeout_ms": 20000}'),
        (
            "/v2/models/NAME/infer",
            b'{"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]}',
        ),
        (
            "/v2/models/NAME/infer",
            b'{"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}],'
            b'"parameters": {"timeout": 20000000}}',
        ),
    ],
)
def test_the_time_that_a_body_takes_is_part_of_the_requests(served, path, body):
    spec, backend = served.engine.family.spec, Told(served.engine)
    service = TextService(spec, served.engine.encoder, backend, LIMITS, most_texts=64)
    arrived_s: list[float] = []

    async def slow() -> AsyncIterator[bytes]:
        yield body[:5]
        await asyncio.sleep(0.01)
        arrived_s.append(time.monotonic())
        yield body[5:]

    response = within(
        lambda client: client.post(path.replace("NAME", spec.name), content=slow()),
        create_app(service),
    )
    assert response.status_code == 200
    # Were it counted from the body's end, it would be later than that.
    (deadline_s,) = backend.deadlines_s
    assert deadline_s < arrived_s[0] + LIMITS.request_timeout_s


def test_metrics_have_every_series_with_the_values_of_stats(ask):
    assert ask("POST", "/predict", {"inputs": ["good", "bad"]}).status_code == 200
    answer = ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    stats = ask("GET", "/stats").json()
    (engine,) = stats["engines"]
    found = {
        sample.name: sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert {series.name for series in SERIES} <= found.keys()
    assert found["muxserve_ready"].value == 1
    assert found["muxserve_texts_total"].labels == {"engine": str(engine["pid"])}
    assert found["muxserve_texts_total"].value == engine["texts"]
    assert found["muxserve_requests_total"].value == stats["stages"]["requests"]
    by_n = found["muxserve_texts_by_num_instances_total"]
    assert by_n.value == engine["texts_by_num_instances"][by_n.labels["num_instances"]]


def test_what_a_backend_does_not_count_is_absent_and_not_zero():
    of_triton = {"engines": [{"backend": "triton", "texts": 3}], "stages": {"requests": 1}}
    text = exposition(of_triton, ready=False).decode()
    assert "muxserve_ready 0.0" in text
    assert "muxserve_requests_total 1.0" in text
    assert "muxserve_texts_total" not in text
    assert "muxserve_slots_total" not in text


def test_a_full_ingress_refuses_before_a_text_costs_anything_and_takes_again(served):
    encoded: list[int] = []

    class Counting:
        def encode_each(self, requests: Any) -> Any:
            encoded.append(len(requests))
            return served.engine.encoder.encode_each(requests)

    backend = LocalBackend(served.engine)
    service = TextService(served.engine.family.spec, Counting(), backend, LIMITS, most_texts=2)

    async def test(client: httpx.AsyncClient) -> None:
        with served.gate.held():
            first = asyncio.create_task(client.post("/predict", json={"inputs": ["good", "bad"]}))
            await until(lambda: encoded)
            full = await client.post("/predict", json={"inputs": "more"})
            refused(full, 503, "overloaded")
            assert int(full.headers["retry-after"]) >= 1
            # Its body was not even read.
            refused(await client.post("/predict", content=b"no JSON"), 503, "overloaded")
            assert encoded == [1]
            own = (await client.get("/stats")).json()["ingress"]
            assert (own["texts_under_way"], own["shed"]) == (2, 2)
            assert backend._demand._refused == 2, "autoscaling counts it"
        assert (await first).status_code == 200
        alone = await client.post("/predict", json={"inputs": ["a good", "a bad", "an ugly film"]})
        assert alone.status_code == 200
        assert (await client.get("/stats")).json()["ingress"]["texts_under_way"] == 0

    within(test, create_app(service))


def test_a_request_whose_client_has_gone_leaves_the_line(served):
    async def test(client: httpx.AsyncClient) -> None:
        before = served.engine.stats().cancelled
        with served.gate.held():
            running = asyncio.create_task(client.post("/predict", json={"inputs": "good"}))
            await until(served.gate.entered.is_set)
            gone = asyncio.create_task(client.post("/predict", json={"inputs": ["a", "b"]}))
            await until(lambda: served.engine.stats().waiting == 2)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        assert (await running).status_code == 200
        await until(lambda: served.engine.stats().cancelled == before + 2)

    within(test, served.app)


def test_a_text_that_cannot_be_computed_fails_its_request_alone(served):
    async def test(client: httpx.AsyncClient) -> list[httpx.Response]:
        with served.gate.held():
            running = asyncio.create_task(client.post("/predict", json={"inputs": "good"}))
            await until(served.gate.entered.is_set)
            requests = [
                asyncio.create_task(client.post("/predict", json={"inputs": inputs}))
                for inputs in (["bad", "very"], "film", "not")
            ]
            await until(lambda: served.engine.stats().waiting == 4)
        return [await running, *[await request for request in requests]]

    running, culprit, *others = within(test, served.app)
    assert "inputs[1]" in refused(culprit, 500, "forward_failed", "inputs[1]")
    assert [response.status_code for response in (running, *others)] == [200, 200, 200]


def test_a_mistake_of_ours_is_told_without_its_insides(served, monkeypatch, caplog):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(LocalBackend, "predict", broken)
    response = within(lambda client: client.post("/predict", json={"inputs": "good"}), served.app)
    assert "secret" not in refused(response, 500, "internal")
    assert "a secret" in caplog.text


def test_requests_leave_no_cycles_for_the_collector(served):
    """At thousands of requests per second the collector would take a fifth of the event loop."""

    engine = served.engine
    full = TextService(
        engine.family.spec, engine.encoder, LocalBackend(engine), LIMITS, most_texts=0
    )

    async def test(app: Any) -> list[Any]:
        port = free_port()
        listener = Listener("127.0.0.1", port)
        listener.start(app)
        url = f"http://127.0.0.1:{port}/predict"
        async with httpx.AsyncClient() as client, asyncio.timeout(BOUND_S):
            gc.collect()
            gc.disable()
            try:
                for inputs in ("a good film", ["bad", "good"], ""):
                    await client.post(url, json={"inputs": inputs})
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                return [one for one in gc.garbage if _module(one).startswith("muxserve")]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
                await listener.stop()

    assert asyncio.run(test(served.app)) == []
    assert asyncio.run(test(create_app(full))) == []


def _module(one: Any) -> str:
    return getattr(one, "__module__", None) or type(one).__module__
