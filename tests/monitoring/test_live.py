"""A real Prometheus scrapes a live application: every metric that is used exists and is right.

The application is the shipped sentiment family with a short line, so that texts are refused. It
gets texts at every N, and requests past their deadline. The Ray node has no GPU: GPU metrics are
looked up in Ray's own table of metrics.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from muxserve.serving.metrics import SERIES
from tests.monitoring.checks import missing
from tests.monitoring.prometheus_server import Prometheus, prometheus
from tests.monitoring.queries import Query, dashboards, of_dashboards, of_rules, rules
from tests.ray_serve import BOUND_S, ray_serve, until

pytestmark = [pytest.mark.monitoring, pytest.mark.ray, pytest.mark.timeout(280)]

#: Ray exports these only on nodes with a GPU.
ON_A_GPU = {"ray_node_gpus_utilization", "ray_node_gram_used"}
TEXT = "A moving, beautifully shot film, number {}."
SETTINGS = {
    "family": "sentiment",
    # No forward meets this target, so any line makes N wide.
    "engine": {"warm_up_s": 2, "max_waiting_texts": 24, "latency_target_ms": 1},
    "ingress": {"max_waiting_texts": 64},
}


class Load:
    """Clients that send requests without a pause, with eight texts each."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self.statuses: set[int] = set()

    def run(self, client: int) -> None:
        number = client * 1_000_000
        with httpx.Client(timeout=BOUND_S) as http:
            while not self._over.is_set():
                texts = [TEXT.format(number + index) for index in range(8)]
                number += 8
                answer = http.post(f"{self._url}/predict", json={"inputs": texts})
                self.statuses.add(answer.status_code)

    def stop(self) -> None:
        self._over.set()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, str]]:
    """Prometheus and the application's URL, after all kinds of traffic."""
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("prometheus")
    with (
        ray_serve(metrics_port=port) as url,
        prometheus(folder, port, rules(), "muxserve") as server,
    ):
        serve.run(build_app(ServeConfig.model_validate(SETTINGS)), name="sentiment")
        until(lambda: server.is_scraping(), "Ray's metrics are scraped")
        until(lambda: server.query("ray_muxserve_answered_texts_total"), "the first zero")
        late = {"inputs": TEXT, "timeout_ms": 0.01}
        load = Load(url)
        with ThreadPoolExecutor(16) as clients:
            running = [clients.submit(load.run, client) for client in range(16)]
            try:
                until(lambda: 503 in load.statuses, "texts are refused")
                # Retried until one finds room: a full ingress refuses it before it is late.
                until(
                    lambda: httpx.post(f"{url}/predict", json=late).status_code == 504,
                    "a text is late",
                )
                until(
                    lambda: all(server.value(one) > 0 for one in SEEN),
                    "all kinds of traffic are in Prometheus",
                )
            finally:
                load.stop()
        for one in running:
            one.result()
        yield server, url


#: Expressions that the traffic above makes positive.
SEEN = (
    "sum(muxserve:answered_texts:rate5m)",
    "sum(muxserve:shed_texts:rate5m)",
    "sum(muxserve:expired_texts:rate5m)",
    "sum(muxserve:wide_texts:ratio_rate5m)",
    "sum(muxserve:occupancy:ratio_rate5m)",
)


def test_every_metric_of_every_rule_and_panel_exists(live):
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    server, _ = live
    of_ray = {f"ray_{name}" for name in METRICS_GAUGES}
    assert of_ray >= ON_A_GPU
    queries = [*of_rules(rules()), *of_dashboards(dashboards())]
    assert not missing(queries, server.names() | ON_A_GPU)


def test_a_metric_that_does_not_exist_is_found(live):
    server, _ = live
    wrong = Query("traffic: Texts", "sum(rate(ray_muxserve_answered_text_total[1m]))")
    (problem,) = missing([wrong], server.names())
    assert problem == "traffic: Texts: there is no metric ray_muxserve_answered_text_total"


def test_every_panel_and_rule_draws_something(live):
    """Checking names alone would miss labels that do not exist."""
    server, _ = live
    quiet = {
        one["alert"] for group in rules()["groups"] for one in group["rules"] if "alert" in one
    }
    for query in [*of_rules(rules()), *of_dashboards(dashboards())]:
        if query.where.removeprefix("rule ") in quiet or any(gpu in query.expr for gpu in ON_A_GPU):
            continue
        assert server.query(query.expr), f"{query.where}: {query.expr}"


def test_every_series_of_the_ingress_is_one_of_rays_too_with_the_same_value(live):
    """Once no request is under way, both report the same values."""
    server, url = live
    own: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            own[sample.name] = own.get(sample.name, 0.0) + sample.value
    assert own["muxserve_answered_texts_total"] > 0
    for series in SERIES:
        name = f'ray_{series.name}{{application="sentiment"}}'
        until(
            lambda name=name, value=own[series.name]: (
                server.value(f"sum({name})") == pytest.approx(value)
            ),
            f"{name} is {own[series.name]}",
        )


def test_alerts_of_this_traffic_wait_or_fire_and_no_others(live):
    server, _ = live
    until(lambda: server.query('ALERTS{alertname="MuxserveShedsTexts"}'), "texts were refused")
    assert not server.query('ALERTS{alertname=~"MuxserveDown|MuxserveReplicaNotReady"}')
