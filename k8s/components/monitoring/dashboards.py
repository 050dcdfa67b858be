"""Writes Grafana's dashboards beside this file: ``make dashboards``.

Nine tenths of a dashboard's JSON is the same in every panel; the tables below have the rest.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"

#: Selectors for muxserve's and Ray Serve's series, and for those of Ray's nodes, which have no
#: application.
APP = 'namespace=~"$namespace",application=~"$application"'
NODE = 'namespace=~"$namespace"'
STARTS = "ray_serve_deployment_replica_starts_total"


@dataclass(frozen=True)
class Panel:
    """A graph over time.

    Attributes:
        title: its title.
        help: what it shows, and what to look for.
        unit: Grafana's name for the unit.
        lines: legend -> PromQL.
        stacked: whether the lines are stacked.
    """

    title: str
    help: str
    unit: str
    lines: dict[str, str]
    stacked: bool = False


def rate(series: str, by: str = "", more: str = "") -> str:
    """The sum of rates, by labels."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({series}{{{APP}{more}}}[$__rate_interval]))"


def mean(seconds: str, count: str) -> str:
    """Mean seconds per counted item."""
    return f"{rate(seconds)} / {rate(count)}"


def quantile(q: float) -> str:
    """The seconds within which a share ``q`` of the requests was answered."""
    return f"histogram_quantile({q:g}, {rate('ray_muxserve_requests_within_total', 'le')})"


DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "muxserve-traffic": (
        "muxserve: traffic",
        [
            Panel(
                "Texts answered",
                "Texts of answered requests, per second.",
                "cps",
                {"{{application}}": rate("ray_muxserve_answered_texts_total", "application")},
            ),
            Panel(
                "Requests answered",
                "Requests with an answer per second; a request may hold many texts.",
                "reqps",
                {"{{application}}": rate("ray_muxserve_requests_total", "application")},
            ),
            Panel(
                "Latency",
                "From a request's texts to its predictions. Compare with engine.latency_target_ms.",
                "s",
                {"p50": quantile(0.5), "p95": quantile(0.95), "p99": quantile(0.99)},
            ),
            Panel(
                "Not answered",
                "Texts per second: refused (503), late (504), withdrawn by clients, failed (500).",
                "cps",
                {
                    "refused by an ingress": rate("ray_muxserve_ingress_shed_texts_total"),
                    "refused by an engine": rate("ray_muxserve_shed_texts_total"),
                    "late": rate("ray_muxserve_ingress_expired_texts_total"),
                    "expired in the line": rate("ray_muxserve_expired_texts_total"),
                    "withdrawn": rate("ray_muxserve_cancelled_texts_total"),
                    "failed": rate("ray_muxserve_failed_texts_total"),
                },
            ),
            Panel(
                "Texts under way",
                "Held by the ingresses, from before tokenization until the answer.",
                "short",
                {"{{replica}}": f"ray_muxserve_ingress_texts{{{APP}}}"},
            ),
            Panel(
                "Fullest line",
                "How full the fullest line of an engine or ingress is. At 100 % texts get 503.",
                "percentunit",
                {"{{application}}": f"muxserve:fullest_line:ratio{{{APP}}}"},
            ),
        ],
    ),
    "muxserve-width": (
        "muxserve: N and occupancy",
        [
            Panel(
                "Texts by N",
                "Distinct texts per second at each N. Idle traffic is at N=1; load widens it.",
                "cps",
                {
                    "N={{num_instances}}": rate(
                        "ray_muxserve_texts_by_num_instances_total", "num_instances"
                    )
                },
                stacked=True,
            ),
            Panel(
                "Share at N of 5 or more",
                "The share of texts served at the accuracy of a wide N.",
                "percentunit",
                {"{{application}}": f"muxserve:wide_texts:ratio_rate5m{{{APP}}}"},
            ),
            Panel(
                "Occupancy",
                "Slots that held a text for the first time; the others average it (ensembling).",
                "percentunit",
                {"{{application}}": f"muxserve:occupancy:ratio_rate5m{{{APP}}}"},
            ),
            Panel(
                "Texts of a forward",
                "Distinct texts per forward: N times the groups if every slot is filled.",
                "short",
                {
                    "all": f"{rate('ray_muxserve_filled_slots_total')} / "
                    f"{rate('ray_muxserve_forwards_total')}"
                },
            ),
            Panel(
                "Texts in the line",
                "Waiting for a forward, at each replica.",
                "short",
                {"{{replica}}": f"ray_muxserve_line_texts{{{APP}}}"},
            ),
            Panel(
                "Drain time",
                "Time to serve all waiting texts at the widest N; autoscaling compares it with "
                "replicas.target_drain_ms. If it stays over the target, no N is wide enough.",
                "s",
                {
                    "{{replica}}": f"ray_muxserve_line_drain_seconds{{{APP}}}",
                    "target of {{application}}": "max by (application) "
                    f"(ray_muxserve_latency_target_seconds{{{APP}}})",
                },
            ),
        ],
    ),
    "muxserve-stages": (
        "muxserve: latency by stage",
        [
            Panel(
                "Tokenizing",
                "Mean seconds of a request until its texts are tokenized, including the wait.",
                "s",
                {"mean": mean("ray_muxserve_tokens_seconds_total", "ray_muxserve_requests_total")},
            ),
            Panel(
                "From tokens to logits",
                "Mean seconds of a request, including the way to an engine and back.",
                "s",
                {"mean": mean("ray_muxserve_backend_seconds_total", "ray_muxserve_requests_total")},
            ),
            Panel(
                "In the line",
                "Mean seconds that a distinct text waits for its forward.",
                "s",
                {
                    "mean": mean(
                        "ray_muxserve_line_seconds_total", "ray_muxserve_filled_slots_total"
                    )
                },
            ),
            Panel(
                "Forward",
                "Mean seconds of a forward.",
                "s",
                {"mean": mean("ray_muxserve_forward_seconds_total", "ray_muxserve_forwards_total")},
            ),
            Panel(
                "Planning",
                "Mean seconds per forward for choosing N and filling slots.",
                "s",
                {"mean": mean("ray_muxserve_plan_seconds_total", "ray_muxserve_forwards_total")},
            ),
            Panel(
                "Over HTTP",
                "Mean seconds of a request to /predict or /, from its first byte to its answer. "
                "Too low if the Open Inference Protocol is used as well.",
                "s",
                {"mean": mean("ray_muxserve_request_seconds_total", "ray_muxserve_requests_total")},
            ),
        ],
    ),
    "muxserve-replicas": (
        "muxserve: replicas and GPUs",
        [
            Panel(
                "Engines that answer",
                "Replicas whose forward thread is alive.",
                "short",
                {"{{deployment}}": f"sum by (deployment) (ray_muxserve_ready{{{APP}}})"},
            ),
            Panel(
                "Healthy replicas",
                "As Ray Serve's controller sees them.",
                "short",
                {
                    "{{deployment}}": "sum by (deployment) "
                    f"(ray_serve_deployment_replica_healthy{{{APP}}})"
                },
            ),
            Panel(
                "Starts of replicas",
                "Replicas started in the last ten minutes: autoscaling, upgrades, crashes.",
                "short",
                # Each replica has a series that starts at 1 and never grows.
                {
                    "{{deployment}}": f"count by (deployment) ({STARTS}{{{APP}}} "
                    f"unless {STARTS}{{{APP}}} offset 10m)"
                },
            ),
            Panel(
                "CPU",
                "Usage of each Ray node.",
                "percent",
                {"{{instance}}": f"ray_node_cpu_utilization{{{NODE}}}"},
            ),
            Panel(
                "Memory",
                "Memory in use on each Ray node.",
                "bytes",
                {"{{instance}}": f"ray_node_mem_used{{{NODE}}}"},
            ),
            Panel(
                "GPU",
                "Usage of each GPU; absent on nodes without one.",
                "percent",
                {"{{instance}} {{GpuIndex}}": f"ray_node_gpus_utilization{{{NODE}}}"},
            ),
            Panel(
                "GPU memory",
                "Memory in use on each GPU.",
                "mbytes",
                {"{{instance}} {{GpuIndex}}": f"ray_node_gram_used{{{NODE}}}"},
            ),
        ],
    ),
}

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(name: str) -> dict[str, Any]:
    """The JSON of one dashboard."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": name,
        "title": title,
        "tags": ["muxserve"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable(
                    "namespace", "label_values(ray_muxserve_answered_texts_total, namespace)"
                ),
                _variable(
                    "application",
                    "label_values(ray_muxserve_answered_texts_total"
                    '{namespace=~"$namespace"}, application)',
                ),
            ]
        },
        "panels": [_panel(index, panel) for index, panel in enumerate(panels)],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        # Also matches series without the label, as outside Kubernetes.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (index % 2), "y": 8 * (index // 2), "w": 12, "h": 8},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {
                    "fillOpacity": 10,
                    "stacking": {"mode": "normal" if panel.stacked else "none"},
                },
            },
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expr, "legendFormat": legend}
            for number, (legend, expr) in enumerate(panel.lines.items())
        ],
    }


def as_json(name: str) -> str:
    """The content of a dashboard's JSON file."""
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(as_json(name))
