"""Each kind of user against the fake server; what is answered is read as its protocol says."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from muxserve.loadtest.servers.muxserve import free_port
from tests.loadtest.conftest import ROOT, fake, report_of, run, write_scenario
from tests.ray_serve import until

pytestmark = pytest.mark.loadtest

LOAD = {"shape": "constant", "rate_per_s": 40, "seconds": 3, "warm_up_s": 0}


@pytest.mark.parametrize(
    ("kind", "texts", "more"),
    [
        ("texts", 8, {"texts_per_request": 8}),
        ("mixed", 1, {}),
        ("oip-http", 1, {"model": "fake"}),
    ],
)
def test_a_kind_of_request_is_answered_and_judged(tmp_path, kind, texts, more):
    with fake(delay_ms=5) as server:
        changes = {"requests": kind, "texts": {"count": 40 * texts}, **more}
        scenario = write_scenario(tmp_path, server.url, LOAD, **changes)
        code, _, errors = run(scenario, tmp_path / "out")
        counts = server.counts()
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["answered"] == counts["200"]
    assert one["texts_by_num_instances"] == {"2": texts * counts["200"]}
    assert 0.3 < one["accuracy"] < 0.7


def test_a_server_is_asked_for_nothing_beside_one_that_classifies(tmp_path):
    with fake() as server:
        alone = {"shape": "saturate", "clients": 1, "seconds": 3, "warm_up_s": 0}
        servers = [
            {"name": "texts", "url": server.url},
            {"name": "empty", "url": server.url, "requests": "ready", "load": [alone]},
        ]
        scenario = write_scenario(tmp_path, server.url, LOAD, servers=servers)
        code, _, errors = run(scenario, tmp_path / "out")
        counts = server.counts()
    assert code == 0, errors
    texts, empty = (one["loads"][0] for one in report_of(tmp_path / "out")["servers"])
    assert texts["answered"] == counts["200"]
    assert empty["answered"] > 100
    assert (empty["errors"], empty["accuracy"], empty["mean_num_instances"]) == ({}, None, None)


def test_words_are_judged_one_by_one(tmp_path):
    (tmp_path / "words.jsonl").write_text(
        '{"tokens": ["words", "run"], "tags": ["NOUN", "VERB"]}\n'
    )
    texts = {"source": "file", "file": "words.jsonl", "text_field": "tokens", "label_field": "tags"}
    with fake() as server:
        scenario = write_scenario(tmp_path, server.url, LOAD, requests="tokens", texts=texts)
        code, _, errors = run(scenario, tmp_path / "out")
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["accuracy"] == 0.5


def test_a_model_that_is_not_there_is_said(tmp_path):
    with fake() as server:
        scenario = write_scenario(tmp_path, server.url, LOAD, requests="oip-http", model="other")
        code, _, errors = run(scenario, tmp_path / "out")
    assert code == 3
    assert "/v2/models/other answers 404" in errors
    assert "Traceback" not in errors


@contextmanager
def fake_grpc() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.loadtest.fake_oip_grpc", "--port", str(port)], cwd=ROOT
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, "the fake model answers over gRPC")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_grpc_is_answered_judged_and_timed(tmp_path):
    with fake_grpc() as url:
        scenario = write_scenario(tmp_path, url, LOAD, requests="oip-grpc", model="fake")
        code, _, errors = run(scenario, tmp_path / "out")
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["errors"] == {"RESOURCE_EXHAUSTED": one["requests"] // 5}
    assert one["texts_by_num_instances"] == {"2": one["answered"]}
    assert 0.3 < one["accuracy"] < 0.7
    assert 20 <= one["p50_ms"] < 60


def test_a_model_that_grpc_does_not_have_is_said(tmp_path):
    with fake_grpc() as url:
        scenario = write_scenario(tmp_path, url, LOAD, requests="oip-grpc", model="other")
        code, _, errors = run(scenario, tmp_path / "out")
    assert code == 3
    assert "no model other" in errors
    assert "Traceback" not in errors
