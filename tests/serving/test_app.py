"""Applications on a real Ray Serve: real clients, bad ones among good ones, a replica that dies.

One Ray instance for the module, with both arrangements of the same family. Waiting is polling with
a bound; nothing is asserted about time.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from huggingface_hub import InferenceClient
from ray import serve

from muxserve.errors import FamilyError, InvalidInput
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from tests.ray_serve import BOUND_S, ray_serve, until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
ARRANGEMENTS = {"separate": "default", "together": "together"}


def config_of(family: Any, arrangement: str) -> ServeConfig:
    return ServeConfig.model_validate(
        {
            "family": str(family),
            "arrangement": arrangement,
            # Small batches, so that a flood of texts takes long enough to be disturbed.
            "engine": {"warm_up_s": 1, "max_groups": 2},
            "ingress": {"replica_wait_s": 0.5},
            "replicas": {"num_cpus": 1, "health_check_period_s": 1},
        }
    )


@pytest.fixture(scope="module")
def url(tiny_family) -> Iterator[str]:
    """Base URL of a Ray Serve with both arrangements."""
    with ray_serve() as url:
        for arrangement, name in ARRANGEMENTS.items():
            prefix = "/" if name == "default" else f"/{name}"
            app = build_app(config_of(tiny_family, arrangement))
            serve.run(app, name=name, route_prefix=prefix)
        yield url


@pytest.fixture(params=list(ARRANGEMENTS))
def base(url: str, request: pytest.FixtureRequest) -> str:
    """Base URL of one arrangement, ready."""
    name = ARRANGEMENTS[request.param]
    base = url if name == "default" else f"{url}/{name}"
    until(lambda: httpx.get(f"{base}/ready", timeout=BOUND_S).status_code == 200, "ready")
    return base


def stats(base: str) -> dict[str, Any]:
    return httpx.get(f"{base}/stats", timeout=BOUND_S).json()


# Clients


def test_http(base):
    response = httpx.post(f"{base}/predict", json={"inputs": ["a good film", "bad"]})
    assert response.status_code == 200
    assert [len(answer) for answer in response.json()] == [2, 2]
    assert response.headers["x-muxserve-num-instances"] in {"1", "2", "5"}


def test_inference_client(base):
    elements = InferenceClient(base).text_classification("a good film", top_k=1)
    assert [element.label for element in elements] in (["positive"], ["negative"])


@pytest.mark.parametrize("name", ARRANGEMENTS.values())
def test_handle(url, name):
    handle = serve.get_app_handle(name)
    base = url if name == "default" else f"{url}/{name}"
    before = stats(base)["requests"]
    first, second = handle.classify.remote(["a good film", "bad"]).result()
    assert first[0]["score"] >= first[1]["score"]
    assert {entry["label"] for entry in second} == {"negative", "positive"}
    assert handle.classify.remote("a good film").result()[0]["num_instances"] in (1, 2, 5)
    with pytest.raises(InvalidInput, match="empty"):
        handle.classify.remote(["good", ""]).result()
    after = stats(base)["requests"]
    assert after["received"] - before["received"] == 3
    assert after["fates"]["answered"] - before["fates"]["answered"] == 2
    assert after["fates"]["refused"] - before["fates"]["refused"] == 1


def test_docs_are_served_below_a_route_prefix(base):
    document = httpx.get(f"{base}/openapi.json").json()
    assert "/predict" in document["paths"]


def test_a_lone_request_runs_at_n_1(base):
    assert httpx.post(f"{base}/predict", json={"inputs": "good"}).json()[0]["num_instances"] == 1


# Bad input, through Ray's proxy


def test_bad_input_gets_the_same_errors_as_in_process(base):
    cases: list[tuple[str, str, bytes, int, str]] = [
        ("POST", "/predict", b"{", 400, "malformed_json"),
        ("POST", "/predict", b'{"inputs": "\xe9"}', 400, "malformed_json"),
        ("POST", "/predict", b'{"inputs": 3}', 422, "invalid_input"),
        ("POST", "/predict", b'{"inputs": []}', 422, "invalid_input"),
        ("POST", "/predict", b'{"inputs": " "}', 422, "invalid_input"),
        ("POST", "/predict", json.dumps({"inputs": ["a"] * 513}).encode(), 413, "too_many_texts"),
        ("POST", "/predict", b" " * (2 * 1024 * 1024 + 1), 413, "body_too_large"),
        ("POST", "/predict", b'{"inputs": "good", "timeout_ms": 1e-3}', 504, "deadline_exceeded"),
        ("GET", "/predict", b"", 405, "method_not_allowed"),
        ("GET", "/nowhere", b"", 404, "not_found"),
    ]
    with httpx.Client(base_url=base, timeout=BOUND_S) as client:
        for method, path, body, status, code in cases:
            response = client.request(method, path, content=body)
            assert (response.status_code, response.json()["error"]) == (status, code)


def test_a_body_of_unknown_length_is_refused_at_the_limit(base):
    def body() -> Iterator[bytes]:
        for _ in range(48):
            yield b" " * 65536

    response = httpx.post(f"{base}/predict", content=body(), timeout=BOUND_S)
    assert (response.status_code, response.json()["error"]) == (413, "body_too_large")


def test_64_clients_with_bad_ones_among_them(base):
    def talk(index: int) -> Counter[int]:
        statuses: Counter[int] = Counter()
        with httpx.Client(base_url=base, timeout=BOUND_S) as client:
            for turn in range(5):
                bad = index % 4 == 3
                body = b'{"inputs": ' if bad else json.dumps({"inputs": f"film {index} {turn}"})
                statuses[client.post("/predict", content=body).status_code] += 1
        return statuses

    before = stats(base)
    with ThreadPoolExecutor(64) as pool:
        statuses = sum(pool.map(talk, range(64)), Counter())
    assert statuses == {200: 240, 400: 80}
    after = stats(base)
    assert after["engines"][0]["texts"] - before["engines"][0]["texts"] == 240
    if "bundles" in after["ingress"]:
        calls = after["ingress"]["bundles"] - before["ingress"]["bundles"]
        assert calls < 240, "requests were not bundled"


def flood(base: str, texts: int) -> socket.socket:
    """Send a request on a socket and do not read the answer."""
    host, port = base.removeprefix("http://").split("/")[0].split(":")
    path = base.removeprefix(f"http://{host}:{port}") + "/predict"
    # No two are equal: equal texts that wait are computed once.
    inputs = ["".join(random.choices("bcdfghjklmnpqrstvwxz", k=20)) for _ in range(texts)]
    body = json.dumps({"inputs": inputs, "max_num_instances": 1})
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def test_work_for_clients_that_have_gone_is_dropped(base):
    before = stats(base)
    connections = [flood(base, 512) for _ in range(7)]
    until(lambda: stats(base)["engines"][0]["waiting"] > 512, "the flood waits")
    for connection in connections:
        connection.close()
    until(
        lambda: stats(base)["engines"][0]["cancelled"] > before["engines"][0]["cancelled"],
        "the engine drops the texts",
    )
    until(lambda: stats(base)["engines"][0]["waiting"] == 0, "the line is empty")
    if "cancelled" in before["ingress"]:
        assert stats(base)["ingress"]["cancelled"] > before["ingress"]["cancelled"]
    assert httpx.post(f"{base}/predict", json={"inputs": "good"}).status_code == 200


def test_a_gone_client_does_not_cancel_those_who_share_its_bundle(base):
    connections = [flood(base, 512) for _ in range(4)]
    until(lambda: stats(base)["engines"][0]["waiting"] > 0, "the flood waits")
    with ThreadPoolExecutor(16) as pool:
        good = [
            pool.submit(
                httpx.post, f"{base}/predict", json={"inputs": f"a {index}"}, timeout=BOUND_S
            )
            for index in range(16)
        ]
        gone = [flood(base, 1) for _ in range(16)]
        for connection in gone + connections:
            connection.close()
        assert [one.result().status_code for one in good] == [200] * 16


# serve run


def test_serve_run_takes_settings_as_arguments(url, tiny_family):
    name, settings = "arguments", ("engine.num_instances=2", "engine.warm_up_s=1")
    try:
        subprocess.run(
            [
                *(Path(sys.executable).with_name("serve"), "run", "--non-blocking"),
                *("--address", ray.get_runtime_context().gcs_address),
                *("--name", name, "--route-prefix", f"/{name}", "deployments.sentiment:app"),
                *(f"family={tiny_family}", "arrangement=together", "replicas.num_cpus=0"),
                *settings,
            ],
            cwd=ROOT,
            check=True,
            timeout=BOUND_S,
        )
        answer = httpx.post(f"{url}/{name}/predict", json={"inputs": "good"}, timeout=BOUND_S)
        assert answer.json()[0]["num_instances"] == 2
    finally:
        serve.delete(name)


# Failure


def test_a_replica_that_dies_under_load_costs_503s_and_is_replaced(url):
    statuses: Counter[int] = Counter()
    lock, stop = threading.Lock(), threading.Event()
    retry_after: list[str | None] = []

    def talk() -> None:
        with httpx.Client(base_url=url, timeout=BOUND_S) as client:
            while not stop.is_set():
                response = client.post("/predict", json={"inputs": "a good film"})
                with lock:
                    statuses[response.status_code] += 1
                    if response.status_code == 503:
                        retry_after.append(response.headers.get("retry-after"))
                if response.status_code != 200:
                    stop.wait(0.05)

    def count(status: int) -> int:
        with lock:
            return statuses[status]

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(talk) for _ in range(8)]
        try:
            until(lambda: count(200) > 20, "clients are answered")
            pid = stats(url)["engines"][0]["pid"]
            os.kill(pid, signal.SIGKILL)
            until(lambda: count(503) > 0, "clients are told")
            assert httpx.get(f"{url}/health").status_code == 200
            until(lambda: httpx.get(f"{url}/ready").status_code == 200, "a new replica")
            answered = count(200)
            until(lambda: count(200) > answered + 20, "clients are answered again")
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert set(statuses) == {200, 503}
    assert all(value is not None and int(value) >= 1 for value in retry_after)
    assert stats(url)["engines"][0]["pid"] != pid


# Building


def test_a_broken_family_fails_before_anything_is_deployed(tmp_path, tiny_family):
    with pytest.raises(FamilyError, match="no family"):
        build_app(ServeConfig(family=str(tmp_path / "none")))
    (tmp_path / "family.json").write_text("{")
    with pytest.raises(FamilyError, match=r"family\.json"):
        build_app(ServeConfig(family=str(tmp_path)))
    spec = json.loads((tiny_family / "family.json").read_text())
    shutil.copy(tiny_family / "tokenizer.json", tmp_path)
    (tmp_path / "family.json").write_text(json.dumps(spec))
    with pytest.raises(FamilyError, match=r"weights/config\.json: missing"):
        build_app(ServeConfig(family=str(tmp_path)))


@pytest.mark.parametrize(
    ("setting", "value"), [("engine.num_instances", 3), ("engine.num_instances", 10)]
)
def test_an_n_that_the_family_lacks_fails_at_once(tiny_family, setting, value):
    config = ServeConfig.model_validate({"family": str(tiny_family), setting: value})
    with pytest.raises(FamilyError, match=setting):
        build_app(config)
