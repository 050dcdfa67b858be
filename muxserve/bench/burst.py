"""A burst of requests at given times, and what the server did meanwhile.

Arrivals are Poisson and latency counts from the arrival, so that a slow server cannot slow its own
test (coordinated omission).
"""

import random
import threading
import time
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from muxserve.bench.closed_loop import LoadResult, in_own_process, open_loop
from muxserve.loadtest.scenario.shapes import Burst, arrivals_s
from muxserve.loadtest.servers.muxserve import RunningServer
from muxserve.loadtest.servers.process import HOST
from muxserve.measure.texts import generated_texts
from muxserve.models.family import Family

#: Seconds of each stretch of the timeline.
STRETCH_S = 1.0


def measure_burst(
    server: RunningServer, shape: Burst, quality: Mapping[int, float]
) -> dict[str, Any]:
    """Put a burst on a server; quantiles of what was served, refusals, and everything over time.

    Args:
        server: one that is ready.
        shape: of the burst, with its rate.
        quality: measured quality of each N, for the price of the answers.
    """
    arrivals = list(arrivals_s(shape, 1.0, random.Random(0)))
    texts = generated_texts(Family.load("sentiment", []).tokenizer, 8000)
    polled: list[tuple[float, dict[str, Any]]] = []
    done = threading.Event()

    def poll() -> None:
        while not done.wait(STRETCH_S):
            try:
                polled.append((time.monotonic(), server.stats()["engines"][0]))
            except (OSError, ValueError, IndexError):
                continue  # a full server may not answer; the next look may

    watcher = threading.Thread(target=poll, daemon=True)
    watcher.start()
    result = in_own_process(
        partial(open_loop, HOST, server.port, texts, arrivals), 120 + 3 * arrivals[-1]
    )
    done.set()
    watcher.join()
    during = [
        latency
        for latency, answered in zip(result.latencies_s, result.answered_s, strict=True)
        if shape.steady_s <= answered - latency < shape.steady_s + shape.burst_s
    ]
    served = [n for n in result.widths if n]
    return {
        "requests": len(arrivals),
        "statuses": {str(status): count for status, count in sorted(result.statuses.items())},
        "shed": sum(count for status, count in result.statuses.items() if status != 200),
        "client_cpu_s": result.cpu_s,
        "p50_ms": result.quantile_ms(0.5),
        "p99_ms": result.quantile_ms(0.99),
        "burst_p99_ms": 1000 * sorted(during)[int(0.99 * len(during))] if during else None,
        "mean_num_instances": sum(served) / max(1, len(served)),
        "accuracy_price": _price(served, quality),
        "timeline": _timeline(result, arrivals, quality),
        "occupancy": _occupancy(polled),
    }


def _price(served: list[int], quality: Mapping[int, float]) -> float | None:
    """How far the mean quality of what served is below N=1's."""
    if not served or any(n not in quality for n in set(served)):
        return None
    return quality[min(quality)] - sum(quality[n] for n in served) / len(served)


def _timeline(
    result: LoadResult, arrivals: list[float], quality: Mapping[int, float]
) -> list[dict[str, float | None]]:
    stretches = int(arrivals[-1] / STRETCH_S) + 1
    came = [0] * stretches
    for arrival in arrivals:
        came[int(arrival / STRETCH_S)] += 1
    of: list[list[tuple[float, int]]] = [[] for _ in range(stretches)]
    for latency, answered, width in zip(
        result.latencies_s, result.answered_s, result.widths, strict=True
    ):
        of[min(stretches - 1, max(0, int((answered - latency) / STRETCH_S)))].append(
            (latency, width)
        )
    timeline: list[dict[str, float | None]] = []
    for index, some in enumerate(of):
        latencies = sorted(latency for latency, _ in some)
        served = [width for _, width in some if width]
        timeline.append(
            {
                "from_s": index * STRETCH_S,
                "texts_per_s": came[index] / STRETCH_S,
                "p50_ms": 1000 * latencies[len(latencies) // 2] if latencies else None,
                "p99_ms": 1000 * latencies[int(0.99 * len(latencies))] if latencies else None,
                "mean_num_instances": sum(served) / len(served) if served else None,
                "accuracy_price": _price(served, quality),
            }
        )
    return timeline


def _occupancy(polled: list[tuple[float, dict[str, Any]]]) -> list[dict[str, float]]:
    """Filled slots / slots between two looks at the server's counters."""
    entries = []
    for (_, before), (at, after) in pairwise(polled):
        if slots := after["slots"] - before["slots"]:
            filled = after["filled_slots"] - before["filled_slots"]
            entries.append({"at_s": at - polled[0][0], "occupancy": filled / slots})
    return entries
