"""The highest rate within a target: the rate doubles until a step fails, then the gap is halved."""

from collections.abc import Callable
from typing import Any

from muxserve.loadtest.shapes import Search


def highest_rate(
    search: Search, probe: Callable[[float], dict[str, Any]]
) -> tuple[float | None, list[dict[str, Any]]]:
    """Try rates, each from an idle server.

    Args:
        search: target and steps.
        probe: the figures of a step at a rate.

    Returns:
        The highest rate that passed, None where none did; and every step's figures, each with its
        ``rate_per_s`` and whether it ``passed``.
    """
    passed: float | None = None
    failed: float | None = None
    steps = []
    rate = search.start_per_s
    for _ in range(search.max_steps):
        step = probe(rate)
        ok = passes(search, rate, step)
        steps.append({**step, "rate_per_s": rate, "passed": ok})
        if ok:
            passed = rate
        else:
            failed = rate
        if failed is None:
            rate *= 2
        elif passed is None:
            rate /= 2
        else:
            rate = (passed + failed) / 2
            if failed / passed < 1.03:
                break
    return passed, steps


def passes(search: Search, rate: float, step: dict[str, Any]) -> bool:
    """Whether a step is within the target."""
    p99, errors = step["p99_ms"], step["error_rate"]
    return (
        p99 is not None
        and p99 <= search.target_p99_ms
        and (errors or 0.0) <= search.max_error_rate
        and not step["under_way_at_end"]
    )
