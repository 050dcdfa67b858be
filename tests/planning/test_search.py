"""The search for a limit: of whole numbers exact, of others as near as its caller asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.planning.search import bracket_limit


def halfway(below: int, above: int) -> int:
    return (below + above) // 2


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 20))
def test_a_whole_limit_is_found_with_few_tries(limit, most, first):
    tried = []

    def is_below(value: int) -> bool:
        tried.append(value)
        return value < limit

    below, above = bracket_limit(is_below, min(first, most), halfway, most=most)
    assert (below, above) == ((limit - 1, limit) if limit <= most else (most, None))
    assert len(tried) == len(set(tried)) <= 18
    assert max(tried) <= most


@pytest.mark.parametrize("limit", [0.3, 40.0, 7000.0])
def test_any_other_limit_is_found_from_above_and_from_below(limit):
    def between(below: float, above: float) -> float:
        return below if above < 1.01 * below else (below + above) / 2

    below, above = bracket_limit(lambda value: value < limit, 50.0, between)
    assert above is not None
    assert below < limit <= above < 1.01 * below


def test_tries_are_limited():
    assert bracket_limit(lambda _: True, 1.0, max, max_tries=3) == (4.0, None)
    assert bracket_limit(lambda _: False, 1.0, lambda _, above: above / 2, max_tries=3) == (0, 0.25)
