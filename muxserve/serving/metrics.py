"""Counters in, Prometheus text out: ``GET /metrics`` of an ingress, with the engines behind it.

Nothing is counted here: what ``/stats`` has is read when a scrape asks, so a request costs no more
for being measured. ``muxserve.serving.ray.metrics`` gives the same series to Ray.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Series:
    """One name of the exposition.

    Attributes:
        name: as Prometheus stores it.
        of: where in ``/stats`` its values are, a part and a key; None for what has no such place.
        help: what it says, with its unit.
        labels: beside ``engine``, the process of the engine that it is of.
    """

    name: str
    of: tuple[str, str] | None
    help: str
    labels: tuple[str, ...] = ()

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


SERIES = (
    Series("muxserve_ready", None, "1 where a request would be answered now, else 0."),
    Series(
        "muxserve_missing_engines",
        ("ingress", "missing_engines"),
        "Engines that did not tell their counters in time when last asked by /stats or /metrics.",
    ),
    Series("muxserve_texts_total", ("engines", "texts"), "Texts answered, each copy counted."),
    Series(
        "muxserve_texts_by_num_instances_total",
        ("engines", "texts_by_num_instances"),
        "Distinct texts computed at each N.",
        ("num_instances",),
    ),
    Series("muxserve_forwards_total", ("engines", "batches"), "Forwards."),
    Series("muxserve_slots_total", ("engines", "slots"), "Slots of all forwards."),
    Series(
        "muxserve_filled_slots_total",
        ("engines", "filled_slots"),
        "Slots that held a text for the first time; over slots it is the occupancy.",
    ),
    Series("muxserve_line_texts", ("engines", "waiting"), "Texts that wait for a forward now."),
    Series(
        "muxserve_line_capacity_texts",
        ("engines", "capacity"),
        "Texts that may wait; more are refused.",
    ),
    Series(
        "muxserve_line_drain_seconds",
        ("engines", "drain_s"),
        "Predicted seconds until all that waits and runs now is served, at the widest N that is "
        "allowed.",
    ),
    Series(
        "muxserve_latency_target_seconds",
        ("engines", "latency_target_s"),
        "Seconds within which texts are to be answered: engine.latency_target_ms.",
    ),
    Series("muxserve_shed_texts_total", ("engines", "shed"), "Texts that a full line refused."),
    Series("muxserve_expired_texts_total", ("engines", "expired"), "Texts past their deadline."),
    Series("muxserve_cancelled_texts_total", ("engines", "cancelled"), "Texts that nobody wanted."),
    Series("muxserve_failed_texts_total", ("engines", "failed"), "Texts whose forward failed."),
    Series("muxserve_forward_seconds_total", ("engines", "forward_s"), "Seconds of all forwards."),
    Series(
        "muxserve_line_seconds_total",
        ("engines", "line_s"),
        "Seconds that distinct texts waited in the line, summed over texts.",
    ),
    Series(
        "muxserve_plan_seconds_total", ("engines", "plan_s"), "Seconds of choosing N and slots."
    ),
    Series("muxserve_requests_total", ("stages", "requests"), "Requests answered."),
    Series(
        "muxserve_received_requests_total",
        ("requests", "received"),
        "Requests for texts that came to the ingress, over every protocol.",
    ),
    Series(
        "muxserve_request_fates_total",
        ("requests", "fates"),
        "What became of them: answered, refused (4xx, 503), expired (504), cancelled by the "
        "client, failed (500). The sum is what was received, less what is under way.",
        ("fate",),
    ),
    Series(
        "muxserve_answered_texts_total",
        ("stages", "texts"),
        "Texts of the requests answered, whatever runs the forwards.",
    ),
    Series(
        "muxserve_tokens_seconds_total",
        ("stages", "tokens_s"),
        "Seconds of tokenizing, the wait for it included, summed over requests.",
    ),
    Series(
        "muxserve_backend_seconds_total",
        ("stages", "backend_s"),
        "Seconds from token ids to logits, summed over requests.",
    ),
    Series(
        "muxserve_request_seconds_total",
        ("stages", "total_s"),
        "Seconds from a request's first message to its answer over HTTP, summed over requests.",
    ),
    Series(
        "muxserve_requests_within_total",
        ("latency", "within"),
        "Requests answered within so many seconds, from their texts to predictions: the buckets of "
        "a histogram.",
        ("le",),
    ),
    Series(
        "muxserve_ingress_texts",
        ("ingress", "texts_under_way"),
        "Texts that the ingress holds now, from before they are tokenized until they are answered.",
    ),
    Series(
        "muxserve_ingress_capacity_texts",
        ("ingress", "capacity"),
        "Texts that the ingress may hold; more are refused.",
    ),
    Series(
        "muxserve_ingress_shed_texts_total",
        ("ingress", "shed"),
        "Texts that a full ingress refused.",
    ),
    Series(
        "muxserve_ingress_expired_texts_total",
        ("ingress", "expired"),
        "Texts of requests that the ingress answered with 504.",
    ),
)


def exposition(stats: Mapping[str, Any], *, ready: bool) -> bytes:
    """The text format of what ``TextService.stats`` gave.

    A series whose values the backend does not have, such as Triton's, is left out: it is not zero.
    """
    return generate_latest(_Scrape(stats, ready))


class _Scrape:
    """What a registry is to ``generate_latest``."""

    def __init__(self, stats: Mapping[str, Any], ready: bool) -> None:
        self._stats = stats
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        for series in SERIES:
            found = list(samples(series, self._stats, ready=self._ready))
            if not found:
                continue
            of_engines = series.of is not None and series.of[0] == "engines"
            labels = [*(("engine",) if of_engines else ()), *series.labels]
            kind = CounterMetricFamily if series.is_counter else GaugeMetricFamily
            family = kind(series.name.removesuffix("_total"), series.help, labels=labels)
            for one in found:
                engine = () if one.engine is None else (one.engine,)
                family.add_metric([*engine, *one.labels], one.value)
            yield family


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a series.

    Attributes:
        engine: process of the engine that it is of, if of one.
        labels: values of the series' labels.
        value: as it is now.
    """

    engine: str | None
    labels: tuple[str, ...]
    value: float


def samples(series: Series, stats: Mapping[str, Any], *, ready: bool | None) -> Iterator[Sample]:
    """What a series has in ``stats``; nothing where these have no such part."""
    if series.of is None:
        if ready is not None:
            yield Sample(None, (), float(ready))
        return
    part, key = series.of
    for one in stats.get(part, ()) if part == "engines" else [stats.get(part, {})]:
        engine = str(one["pid"]) if "pid" in one else None
        if engine is None and part == "engines":
            continue  # another server's, whose counters mean something else
        value = one.get(key)
        if isinstance(value, dict):
            for label, count in value.items():
                yield Sample(engine, (str(label),), count)
        elif value is not None:
            yield Sample(engine, (), value)
