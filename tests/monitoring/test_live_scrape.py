"""A real Prometheus scrapes a real Ray Serve: every metric of every rule and panel exists."""

import inspect
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve

from muxserve.bench.server import free_port
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from tests.monitoring.files import (
    groups,
    panel_expressions,
    program,
    rule_expressions,
    unknown_metrics,
)
from tests.ray_serve import ray_serve, until

pytestmark = [pytest.mark.monitoring, pytest.mark.ray, pytest.mark.timeout(280)]

#: Exist on nodes with a GPU only.
OF_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used"}


@contextmanager
def prometheus(folder: Path, scraped: list[int]) -> Iterator[str]:
    """A Prometheus that scrapes ports of this machine each second; gives its URL."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups()}))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "ray",
                "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in scraped]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def asked(url: str, path: str, **query: str) -> Any:
    """The data of an answer of Prometheus' API, or None while it is starting."""
    try:
        with urllib.request.urlopen(
            f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10
        ) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


def value(url: str, expression: str) -> float | None:
    found = asked(url, "query", query=expression)
    return float(found["result"][0]["value"][1]) if found and found["result"] else None


@pytest.fixture(scope="module")
def live(tiny_family, tmp_path_factory) -> Iterator[str]:
    """Prometheus beside a family that is served; its URL."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ray_serve() as base:
        config = ServeConfig(
            family=str(tiny_family),
            **{"ingress.max_waiting_texts": 4, "engine.warm_up_s": 0.5, "engine.num_instances": 5},
        )
        serve.run(build_app(config), name="default", route_prefix="/")
        (node,) = ray.nodes()
        with prometheus(folder, [node["MetricsExportPort"]]) as url, httpx.Client() as client:

            def ask() -> None:
                texts = ["a good film", "a bad film"]
                answer = client.post(f"{base}/predict", json={"inputs": texts}, timeout=30)
                assert answer.status_code == 200

            def answered() -> bool:
                ask()
                return bool(value(url, "sum(ray_muxserve_texts_total)"))

            until(answered, "Prometheus knows answered texts")
            late = {"inputs": "a good film", "timeout_ms": 0.001}
            assert client.post(f"{base}/predict", json=late, timeout=30).status_code == 504
            many = {"inputs": ["a good film"] * 5}
            assert client.post(f"{base}/predict", json=many, timeout=30).status_code == 200

            def everything_moves() -> bool:
                ask()
                return not nameless(url)

            until(everything_moves, "every panel has a value")
            yield url


def nameless(url: str) -> list[str]:
    """Panels and rules without any value now, but for those of GPUs."""
    expressions = panel_expressions() | rule_expressions()
    return [
        where
        for where, expression in expressions.items()
        if not any(name in expression for name in OF_GPUS)
        # An alert that does not fire has none.
        and not where.startswith("rules.yaml: Muxserve")
        and value(url, expression) is None
    ]


def test_every_metric_of_every_rule_and_panel_exists(live):
    known = set(asked(live, "label/__name__/values"))
    missing = unknown_metrics(panel_expressions() | rule_expressions(), known | OF_GPUS)
    assert missing == []


def test_every_panel_shows_something(live):
    assert nameless(live) == []


def test_every_rule_is_evaluated_without_an_error(live):
    found = [rule for group in asked(live, "rules")["groups"] for rule in group["rules"]]
    assert len(found) == len(rule_expressions())
    assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}


def test_what_happened_is_what_prometheus_says(live):
    assert value(live, "sum(ray_muxserve_ingress_expired_texts_total)") == 1
    assert value(live, "sum(ray_muxserve_ready)") == 1
    (texts,) = asked(live, "query", query="ray_muxserve_texts_total")["result"]
    assert texts["metric"]["application"] == "default"
    assert texts["metric"]["deployment"] == "MuxReplica"
    within = asked(live, "query", query='ray_muxserve_requests_within_total{le="+Inf"}')
    answered = value(live, "ray_muxserve_requests_total")
    assert float(within["result"][0]["value"][1]) == answered


def test_metrics_of_gpus_are_those_of_rays_reporter():
    from ray.dashboard.modules.reporter import reporter_agent

    source = inspect.getsource(reporter_agent)
    for name in OF_GPUS:
        assert f'"{name.removeprefix("ray_")}"' in source
