"""The component as kubectl renders it in an overlay; every manifest rule checks it too."""

import json

import pytest

from tests.kubernetes.rendering import find, of_kind, render
from tests.monitoring.queries import dashboards, rules

pytestmark = pytest.mark.kubernetes


def test_dashboards_are_config_maps_that_grafana_finds():
    found = find(render("everything"), "ConfigMap", "muxserve-dashboards")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    written = {name.removesuffix(".json"): json.loads(text) for name, text in found["data"].items()}
    assert written == dashboards()


def test_alerts_are_rendered_as_they_were_tested():
    (found,) = of_kind(render("everything"), "PrometheusRule")
    assert found["spec"] == rules()


def test_every_port_of_rays_metrics_is_scraped():
    ports = {
        monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"]: [
            endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]
        ]
        for monitor in of_kind(render("everything"), "PodMonitor")
    }
    assert ports == {"head": ["metrics", "as-metrics", "dash-metrics"], "worker": ["metrics"]}
