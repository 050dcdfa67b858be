"""Counters of this Ray process in, Ray's own metrics out: what Prometheus scrapes on Ray nodes.

The series are those of ``muxserve.serving.metrics`` with ``ray_`` before their names, and with the
application, deployment and replica as labels. Nothing here is on the way of a request.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve.metrics import Counter, Gauge

from muxserve.serving.metrics import SERIES, Series, samples

log = logging.getLogger(__name__)

#: Seconds between looks at the counters. Ray sends them on every ten seconds, and forgets a gauge
#: that was not set for twenty.
EVERY_S = 5.0


class RayMetrics:
    """Gives counters to Ray every few seconds, from a thread of its own.

    Where Ray has no metrics agent they go nowhere; the thread never ends what it measures.
    """

    def __init__(self, read: Callable[[], tuple[Mapping[str, Any], bool | None]]) -> None:
        """Start the thread.

        Args:
            read: what ``/stats`` has of this process, and whether its engine answers if it has
                one; called from the thread.
        """
        self._read = read
        self._given: dict[tuple[str, tuple[str, ...]], float] = {}
        self._metrics = {series.name: _metric(series) for series in SERIES}
        self._failed = False
        threading.Thread(target=self._run, daemon=True, name="muxserve-metrics").start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._give()
            except Exception:
                # Serving goes on without metrics, and that is logged once.
                if not self._failed:
                    log.warning("metrics could not be given to Ray", exc_info=True)
                self._failed = True
            pause.wait(EVERY_S)

    def _give(self) -> None:
        stats, ready = self._read()
        for series in SERIES:
            metric = self._metrics[series.name]
            for one in samples(series, stats, ready=ready):
                tags = dict(zip(series.labels, one.labels, strict=True))
                if isinstance(metric, Gauge):
                    metric.set(one.value, tags)
                    continue
                before = self._given.get((series.name, one.labels))
                if before is None:
                    metric.begin(tags)
                if (more := one.value - (before or 0.0)) > 0:
                    metric.inc(more, tags)
                self._given[series.name, one.labels] = one.value


class _Counter(Counter):
    """A counter that exists before it grows.

    Ray's ``inc`` refuses zero, but a rate ignores the value that a series begins with: an alert
    would miss the first texts that are refused.
    """

    def begin(self, tags: dict[str, str]) -> None:
        """Let it be zero."""
        self._record(0.0, tags)


def _metric(series: Series) -> Gauge | _Counter:
    kind = _Counter if series.is_counter else Gauge
    # Ray says a tuple of one string, and takes any number.
    return kind(series.name, description=series.help, tag_keys=series.labels)  # type: ignore[arg-type]
