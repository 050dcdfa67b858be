"""The search for a limit: double a value until it is high enough, then halve the gap."""

from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def bracket_limit(
    is_below: Callable[[Number], bool],
    first: Number,
    between: Callable[[Number, Number], Number],
    *,
    most: Number | None = None,
    max_tries: int = 64,
) -> tuple[Number, Number | None]:
    """Narrow down where ``is_below`` turns from true to false.

    Args:
        is_below: whether a value is below the limit.
        first: the first value to try.
        between: the next value to try, given one below the limit (0 at first) and one that is not;
            either of the two ends the search.
        most: the highest value to try.
        max_tries: how many values to try at most.

    Returns:
        The highest value found below the limit, 0 without one, and the lowest that is not, None
        without one.
    """
    below: Number = 0
    above: Number | None = None
    value = first
    for _ in range(max_tries):
        if is_below(value):
            below = value
        else:
            above = value
        if above is not None:
            value = between(below, above)
        else:
            value = 2 * below if most is None else min(2 * below, most)
        if value in (below, above):
            break
    return below, above
