"""An application with `backend: triton` on a real Ray Serve, in front of a real Triton server."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray import serve

from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.loadtest.servers.triton import TritonServer
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from tests.ray_serve import BOUND_S, ray_serve, until

pytestmark = [pytest.mark.triton, pytest.mark.ray]


@pytest.fixture(scope="module")
def fronted(triton_environment, exported, tiny_family, tmp_path_factory) -> Iterator[Any]:
    """A separate Triton server, and the application in front of it."""
    folder = tmp_path_factory.mktemp("fronted")
    (folder / "tiny").symlink_to(exported.folder / "tiny")
    triton = TritonServer(folder, environment=triton_environment).start()
    config = ServeConfig.model_validate(
        {
            "family": str(tiny_family),
            "backend": "triton",
            "triton.url": triton.grpc,
            "triton.wait_s": 0.5,
        }
    )
    try:
        with ray_serve() as url:
            serve.run(build_app(config), name="default", route_prefix="/")
            yield SimpleNamespace(url=url, triton=triton)
    finally:
        triton.kill()  # it would wait for connections that are gone
        triton.stop()


def predict(url: str, inputs: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/predict", json={"inputs": inputs, **options}, timeout=60)


def test_answers_are_the_engine_s(fronted, tiny_family):
    until(lambda: httpx.get(f"{fronted.url}/ready").status_code == 200, "ready")
    with Engine.from_family(tiny_family, EngineConfig(num_instances=1, warm_up_s=0.2)) as engine:
        (expected,) = engine.classify(["a good film"])
    response = predict(fronted.url, "a good film", max_num_instances=1)
    assert response.status_code == 200
    entry = response.json()[0]
    assert entry["num_instances"] == 1
    assert entry["label"] == expected.labels[0].label
    assert abs(entry["score"] - expected.labels[0].score) < 0.005  # bfloat16 where there is some


def test_requests_of_many_clients_travel_in_bundles(fronted):
    texts = [f"good {'very ' * (i % 9)}film {chr(98 + i % 25)}" for i in range(200)]
    answers = predict(fronted.url, texts)
    assert answers.status_code == 200
    assert len(answers.json()) == 200
    stats = httpx.get(f"{fronted.url}/stats").json()
    (engine,) = stats["engines"]
    assert engine["backend"] == "triton"
    assert engine["ready"]
    assert engine["texts"] >= 200
    assert engine["calls"] < 200
    assert stats["ingress"]["texts"] >= 200


def test_mistakes_are_told_as_ever(fronted):
    empty = predict(fronted.url, ["good", ""])
    assert (empty.status_code, empty.json()["field"]) == (422, "inputs[1]")
    late = predict(fronted.url, "good film", timeout_ms=0.001)
    assert (late.status_code, late.json()["error"]) == (504, "deadline_exceeded")


def test_a_restart_of_triton_under_load(fronted):
    """Triton is killed and restarted: 503 with Retry-After meanwhile, then answers, and no hang."""
    until(lambda: httpx.get(f"{fronted.url}/ready").status_code == 200, "ready")
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    lock, stop = threading.Lock(), threading.Event()

    def client(index: int) -> None:
        nonlocal slowest
        with httpx.Client(timeout=60) as http:
            turn = 0
            while not stop.is_set():
                turn += 1
                started = time.monotonic()
                body = {"inputs": f"good film {'very ' * (turn % 20)}{index}"}
                response = http.post(f"{fronted.url}/predict", json=body)
                with lock:
                    slowest = max(slowest, time.monotonic() - started)
                    statuses[response.status_code] += 1
                    if response.status_code == 503 and "retry-after" not in response.headers:
                        wrong.append("no Retry-After")
                    if response.status_code not in (200, 503):
                        wrong.append(response.text)

    clients = [threading.Thread(target=client, args=(index,)) for index in range(16)]
    for one in clients:
        one.start()
    try:
        until(lambda: statuses[200] > 50, "answers before")
        fronted.triton.kill()
        until(lambda: statuses[503] > 50, "refusals meanwhile")
        assert httpx.get(f"{fronted.url}/ready", timeout=60).status_code == 503
        assert httpx.get(f"{fronted.url}/health", timeout=60).status_code == 200
        fronted.triton.start(wait=False)
        before = statuses[200]
        until(lambda: statuses[200] > before + 50, "answers after")
    finally:
        stop.set()
        for one in clients:
            one.join(BOUND_S)
    assert not any(one.is_alive() for one in clients)
    assert not wrong
    # A text waits for Triton for half a second, at most twice; the rest is this slow machine.
    assert slowest < 20
    assert httpx.get(f"{fronted.url}/ready").status_code == 200
    assert httpx.get(f"{fronted.url}/stats").json()["engines"][0]["unreachable"] > 0
