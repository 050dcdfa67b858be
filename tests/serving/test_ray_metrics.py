"""Counters at the port where Prometheus scrapes a Ray node, from a real Ray Serve."""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.app import build_app
from muxserve.serving.config import ServeConfig
from muxserve.serving.metrics import SERIES, samples
from muxserve.serving.ray.metrics import RayMetrics
from tests.ray_serve import BOUND_S, ray_serve, until

pytestmark = pytest.mark.ray

ARRANGEMENTS = {"separate": "MuxReplica", "together": "MuxIngress"}
Found = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture(scope="module")
def served(tiny_family) -> Iterator[tuple[str, str]]:
    """URLs of an application in each arrangement, asked a few times, and of Ray's metrics."""
    port = free_port()
    with ray_serve(metrics_port=port) as url:
        for name in ARRANGEMENTS:
            settings = {
                "family": str(tiny_family),
                "arrangement": name,
                "engine": {"warm_up_s": 0.5},
            }
            app = build_app(ServeConfig.model_validate(settings))
            serve.run(app, name=name, route_prefix=f"/{name}")
            for inputs in ("good", ["good", "bad film"], ["a", "b", "c"]):
                answer = httpx.post(f"{url}/{name}/predict", json={"inputs": inputs})
                assert answer.status_code == 200
            late = {"inputs": "good", "timeout_ms": 1e-3}
            assert httpx.post(f"{url}/{name}/predict", json=late).status_code == 504
        yield url, f"http://127.0.0.1:{port}/metrics"


def scraped(url: str) -> tuple[Found, dict[str, str]]:
    """Samples of each name, and the type of each family."""
    found: Found = defaultdict(list)
    types = {}
    try:
        text = httpx.get(url, timeout=BOUND_S).text
    except httpx.TransportError:
        return found, types
    for family in text_string_to_metric_families(text):
        types[family.name] = family.type
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found, types


def total(found: Found, name: str, **labels: str) -> float | None:
    """Sum of the samples with these labels; None where there is none."""
    values = [value for of, value in found[name] if labels.items() <= of.items()]
    return sum(values) if values else None


@pytest.mark.parametrize("application", ARRANGEMENTS)
def test_every_series_is_there_and_says_what_the_ingress_says(served, application):
    url, metrics = served
    own: dict[str, float] = defaultdict(float)
    text = httpx.get(f"{url}/{application}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own[sample.name] += sample.value
    assert own["muxserve_answered_texts_total"] == 6
    assert own["muxserve_ingress_expired_texts_total"] == 1
    for series in SERIES:
        name = f"ray_{series.name}"
        until(
            lambda name=name, value=own[series.name]: (
                total(scraped(metrics)[0], name, application=application) == pytest.approx(value)
            ),
            f"{name} of {application} is {own[series.name]}",
        )


@pytest.mark.parametrize(("application", "deployment"), ARRANGEMENTS.items())
def test_series_have_the_labels_that_rules_and_panels_go_by(served, application, deployment):
    _, metrics = served
    labels = {"application": application, "deployment": deployment}
    until(
        lambda: total(scraped(metrics)[0], "ray_muxserve_texts_total", **labels), "texts are there"
    )
    found, types = scraped(metrics)
    ((of, _),) = [
        one for one in found["ray_muxserve_texts_total"] if labels.items() <= one[0].items()
    ]
    assert of["replica"]
    by_n = [
        of
        for of, _ in found["ray_muxserve_texts_by_num_instances_total"]
        if labels.items() <= of.items()
    ]
    assert {one["num_instances"] for one in by_n} <= {"1", "2", "5"}
    within = [
        of["le"]
        for of, _ in found["ray_muxserve_requests_within_total"]
        if of["application"] == application
    ]
    assert "+Inf" in within
    # prometheus_client's parser takes the suffix of a counter off its family's name.
    assert types["ray_muxserve_texts"] == "counter"
    assert types["ray_muxserve_line_texts"] == "gauge"


def test_a_counter_is_there_before_it_grows(served):
    _, metrics = served
    until(lambda: "ray_muxserve_shed_texts_total" in scraped(metrics)[0], "the series")
    assert total(scraped(metrics)[0], "ray_muxserve_shed_texts_total") == 0


def test_it_goes_on_without_ray_and_says_once_what_is_wrong(monkeypatch, caplog):
    """Where no agent takes the metrics, and where the counters cannot be read."""
    monkeypatch.setattr("muxserve.serving.ray.metrics.EVERY_S", 0.01)
    looks = threading.Semaphore(0)
    failing = threading.Event()

    def read():
        looks.release()
        if failing.is_set():
            raise RuntimeError("not now")
        return {"stages": {"requests": 3}, "ingress": {"texts_under_way": 1}}, None

    with caplog.at_level(logging.WARNING, logger="muxserve"):
        RayMetrics(read)
        for _ in range(3):
            assert looks.acquire(timeout=BOUND_S)
        assert not caplog.records
        failing.set()
        for _ in range(5):
            assert looks.acquire(timeout=BOUND_S)
    (record,) = caplog.records
    assert "metrics could not be given to Ray" in record.getMessage()


def test_what_is_not_measured_has_no_sample():
    (ready,) = [series for series in SERIES if series.name == "muxserve_ready"]
    assert list(samples(ready, {}, ready=None)) == []
    (texts,) = [series for series in SERIES if series.name == "muxserve_texts_total"]
    assert list(samples(texts, {"engines": [{"texts": 3}]}, ready=True)) == []
