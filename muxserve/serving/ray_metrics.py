"""Counters of this Ray process in, Ray's metrics out: what Prometheus scrapes on every Ray node.

The series are those of ``muxserve.serving.metrics`` with ``ray_`` before their names, and with the
application, deployment and replica as labels.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve.metrics import Gauge

from muxserve.serving.metrics import SERIES, samples

log = logging.getLogger(__name__)

#: Seconds between looks at the counters; Ray's own exporter looks about as often.
EVERY_S = 5.0


class RayMetrics:
    """Gives counters to Ray every few seconds, from a thread of its own."""

    def __init__(self, read: Callable[[], tuple[Mapping[str, Any], bool | None]]) -> None:
        """Args:
        read: what ``/stats`` has of this process, and whether its engine answers if it has one;
            called from another thread.
        """
        self._read = read
        # Gauges, though most are sums: Ray's counters cannot be zero, and an alert on the rate of a
        # sum that does not exist yet would miss its first step. Prometheus reads both alike.
        self._gauges = {
            series.name: Gauge(series.name, description=series.help, tag_keys=series.labels)
            for series in SERIES
        }
        threading.Thread(target=self._run, daemon=True, name="muxserve-metrics").start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._give()
            except Exception:
                # Whoever serves texts goes on without being measured.
                log.warning("metrics could not be given to Ray", exc_info=True)
            pause.wait(EVERY_S)

    def _give(self) -> None:
        stats, ready = self._read()
        for series in SERIES:
            for one in samples(series, stats, ready=ready):
                tags = dict(zip(series.labels, one.labels, strict=True))
                self._gauges[series.name].set(one.value, tags)
