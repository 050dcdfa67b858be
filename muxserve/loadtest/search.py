"""The highest rate within a target: the rate doubles until a step fails, then the gap is halved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muxserve.loadtest.scenario.shapes import Search
from muxserve.planning.search import bracket_limit

#: A search ends where the rate that failed is less than so many times the one that passed.
NEAR = 1.03


def highest_rate(search: Search, passes_at: Callable[[float], bool]) -> float | None:
    """The highest rate that passed, None where none did. Each is tried from an idle server.

    Args:
        search: target and steps.
        passes_at: whether a step at a rate is within the target.
    """

    def between(passed: float, failed: float) -> float:
        return passed if failed < NEAR * passed else (passed + failed) / 2

    passed, _ = bracket_limit(passes_at, search.start_per_s, between, max_tries=search.max_steps)
    return passed or None


def passes(search: Search, step: Mapping[str, Any]) -> bool:
    """Whether a step's figures are within the target; never where it was cut short."""
    p99, errors = step["p99_ms"], step["error_rate"]
    return (
        p99 is not None
        and p99 <= search.target_p99_ms
        and (errors or 0.0) <= search.max_error_rate
        and not step["under_way_at_end"]
        and not step.keys() & {"died_at_s", "interrupted_at_s"}
    )


def search_row(search: Search, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row of a search: the figures of its best step, and every step without its timeline.

    Args:
        search: the shape.
        steps: at least one, each with its ``rate_per_s`` and whether it ``passed``.
    """
    best = max((one for one in steps if one["passed"]), key=lambda o: o["rate_per_s"], default=None)
    return {
        **(best or steps[0]),
        "shape": search.model_dump(),
        "highest_rate_per_s": best and best["rate_per_s"],
        "steps": [{k: v for k, v in one.items() if k != "timeline"} for one in steps],
    }
