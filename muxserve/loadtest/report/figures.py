"""Figures of one load: a tally and looks at the server in, a row of the report out.

Latency figures are of requests that were due after the warm-up and were answered; throughput is of
answers that came in the same time, whenever they were due.
"""

import math
from collections.abc import Mapping
from typing import Any

from muxserve.loadtest.generator.tally import OK, Second, Tally, quantile_s
from muxserve.loadtest.scenario.shapes import Saturate, Shape
from muxserve.loadtest.servers.watch import Look, between, stages_ms

#: Points of a timeline at most; a longer run has several seconds in each.
_POINTS = 240
QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}


def figures(
    tally: Tally,
    shape: Shape,
    looks: list[Look],
    start_unix_s: float,
    ran_s: float,
    quality: Mapping[int, float],
) -> dict[str, Any]:
    """Every figure of one load on one server.

    Args:
        tally: of the whole run.
        shape: what was asked for.
        looks: at the server meanwhile.
        start_unix_s: when the first second began.
        ran_s: seconds that were run, which are fewer than the shape's where it was cut short.
        quality: measured quality of each N, where the family states it.
    """
    end_s = math.floor(min(ran_s, shape.duration_s) + 1e-6)
    start_s = math.ceil(shape.warm_up_s)
    if end_s <= start_s:  # cut short within the warm-up: all there is
        start_s = 0
    window = range(start_s, max(end_s, start_s + 1))
    total, seconds = tally.total(window), len(window)
    overall = tally.total()
    finished = sum(total.statuses.values())
    result: dict[str, Any] = {
        "shape": shape.model_dump(),
        "measured_s": seconds,
        "requests": total.due,
        "answered": total.statuses[OK],
        "under_way_at_end": total.due - finished,
        "errors": {k: v for k, v in sorted(total.statuses.items()) if k != OK},
        "error_rate": total.errors / finished if finished else None,
        "error_examples": tally.examples,
        "offered_per_s": None if isinstance(shape, Saturate) else total.due / seconds,
        "texts_per_s": total.completed / seconds,
        **{name: _ms(quantile_s(total.latencies, q)) for name, q in QUANTILES.items()},
        "max_ms": _ms(quantile_s(total.latencies, 1.0)),
        "generator_late_p99_ms": _ms(quantile_s(total.lags, 0.99)),
        "texts_by_num_instances": {str(n): total.widths[n] for n in sorted(total.widths)},
        "mean_num_instances": _mean(total),
        "accuracy": _share(total.correct, total.judged),
        "agreement_with_n1": _share(total.agreed, total.compared),
        "measured_quality": _quality(total, quality),
        "generator_cpu_s_per_1000_texts": _share(1000 * tally.cpu_s, overall.completed),
    }
    ends = between(looks, start_unix_s + window[0], start_unix_s + window[-1] + 1)
    result["server_cpu_s_per_1000_texts"] = result["occupancy"] = None
    result["texts_per_forward"] = result["stages_ms"] = None
    if ends is not None:
        first, last = ends
        spent_s = last.cpu_s - first.cpu_s
        texts = result["texts_per_s"] * (last.unix_s - first.unix_s)
        if not math.isnan(spent_s) and texts:
            result["server_cpu_s_per_1000_texts"] = 1000 * spent_s / texts
        result["occupancy"] = _ratio(first, last, "filled_slots", "slots")
        result["texts_per_forward"] = _ratio(first, last, "filled_slots", "batches")
        result["stages_ms"] = stages_ms(first, last)
    result["timeline"] = _timeline(tally, looks, start_unix_s, end_s, quality)
    return result


def _timeline(
    tally: Tally,
    looks: list[Look],
    start_unix_s: float,
    end_s: int,
    quality: Mapping[int, float],
) -> list[dict[str, Any]]:
    step = max(1, math.ceil(end_s / _POINTS))
    entries = []
    for at in range(0, end_s, step):
        numbers = range(at, min(end_s, at + step))
        one = tally.total(numbers)
        ends = between(looks, start_unix_s + at, start_unix_s + at + step)
        entries.append(
            {
                "at_s": at,
                "due_per_s": one.due / len(numbers),
                "texts_per_s": one.completed / len(numbers),
                "p50_ms": _ms(quantile_s(one.latencies, 0.5)),
                "p99_ms": _ms(quantile_s(one.latencies, 0.99)),
                "errors_per_s": one.errors / len(numbers),
                "mean_num_instances": _mean(one),
                "accuracy": _share(one.correct, one.judged),
                "agreement_with_n1": _share(one.agreed, one.compared),
                "measured_quality": _quality(one, quality),
                "occupancy": ends and _ratio(*ends, "filled_slots", "slots"),
                "waiting": ends and ends[1].counters["waiting"],
            }
        )
    return entries


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _ratio(first: Look, last: Look, part: str, whole: str) -> float | None:
    """How much one counter grew over how much another did."""
    grown = [last.counters[name] - first.counters[name] for name in (part, whole)]
    return _share(*grown)


def _mean(one: Second) -> float | None:
    texts = sum(one.widths.values())
    return _share(sum(n * count for n, count in one.widths.items()), texts)


def _quality(one: Second, quality: Mapping[int, float]) -> float | None:
    """Mean of the qualities that the family states for the N that served."""
    texts = sum(one.widths.values())
    if not texts or any(n not in quality for n in one.widths):
        return None
    return sum(quality[n] * count for n, count in one.widths.items()) / texts
