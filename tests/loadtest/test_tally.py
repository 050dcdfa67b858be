"""Counting: the same in any order, and quantiles as exact as the buckets."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.loadtest.generator.tally import Second, Tally, bucket_of, quantile_s
from muxserve.loadtest.scenario.shapes import Burst, Constant, Diurnal, Search, arrivals_s
from muxserve.loadtest.search import highest_rate, passes, search_row

LATENCIES = st.lists(st.floats(1e-4, 100), min_size=1, max_size=200)


@given(LATENCIES, st.floats(0, 1))
def test_a_quantile_is_within_a_bucket_of_the_exact_one(latencies, q):
    exact = sorted(latencies)[min(len(latencies) - 1, int(q * len(latencies)))]
    got = quantile_s(Counter(map(bucket_of, latencies)), q)
    assert got == pytest.approx(exact, rel=0.011)


def test_no_latency_has_no_quantile():
    assert quantile_s(Counter(), 0.5) is None


@st.composite
def tallies(draw):
    tally = Tally()
    for number in draw(st.sets(st.integers(0, 5), max_size=4)):
        second = tally.at(number)
        second.due = draw(st.integers(0, 9))
        second.completed = draw(st.integers(0, 9))
        second.latencies.update(draw(st.lists(st.integers(0, 50), max_size=5)))
        second.widths.update(draw(st.lists(st.sampled_from([1, 2, 5]), max_size=5)))
        second.statuses.update(draw(st.lists(st.sampled_from(["200", "503"]), max_size=5)))
    return tally


@given(st.lists(tallies(), max_size=4), st.randoms())
def test_parts_add_up_in_any_order_and_over_json(parts, rng):
    one, other = Tally(), Tally()
    for part in parts:
        one.add(part)
    rng.shuffle(parts)
    for part in parts:
        other.add(Tally.from_json(json.loads(json.dumps(part.as_json()))))
    assert one.total() == other.total()
    assert {n: s for n, s in one.seconds.items() if s != Second()} == {
        n: s for n, s in other.seconds.items() if s != Second()
    }


def test_errors_are_all_statuses_but_ok():
    assert Second(statuses=Counter({"200": 5, "503": 2, "timeout": 1})).errors == 3


@pytest.mark.parametrize(
    "shape",
    [
        Constant(shape="constant", rate_per_s=200, seconds=100),
        Burst(shape="burst", rate_per_s=100, factor=5, steady_s=20, burst_s=20),
        Diurnal(shape="diurnal", rate_per_s=50, factor=5, day_s=60, days=2),
    ],
    ids=lambda shape: shape.shape,
)
def test_arrivals_follow_the_rate_and_several_users_share_it(shape):
    steps = [shape.duration_s * index / 1000 for index in range(1000)]
    expected = shape.duration_s / 1000 * sum(map(shape.rate_at, steps))
    arrivals = [time for user in range(3) for time in arrivals_s(shape, 1 / 3, random.Random(user))]
    assert len(arrivals) == pytest.approx(expected, abs=5 * expected**0.5)
    assert max(arrivals) < shape.duration_s
    if isinstance(shape, Burst):
        within = sum(20 <= time < 40 for time in arrivals)
        assert within / (len(arrivals) - within) == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize("capacity", [30, 90, 700, 5000])
def test_a_search_closes_in_on_the_capacity(capacity):
    search = Search(shape="search", start_per_s=100, max_steps=12)

    tried = []

    def passes_at(rate):
        tried.append(rate)
        return rate <= capacity

    assert highest_rate(search, passes_at) == pytest.approx(capacity, rel=0.05)
    assert len(tried) <= 12


@pytest.mark.parametrize(
    "bad",
    [{"error_rate": 0.01}, {"under_way_at_end": 3}, {"p99_ms": None}, {"interrupted_at_s": 2},
     {"died_at_s": 2}],
    ids=lambda bad: next(iter(bad)),
)  # fmt: skip
def test_a_step_with_errors_or_that_is_not_whole_does_not_pass(bad):
    search = Search(shape="search", start_per_s=100, max_steps=2)
    good = {"p99_ms": 5, "error_rate": 0, "under_way_at_end": 0}
    assert passes(search, good)
    assert not passes(search, {**good, **bad})


def test_the_row_of_a_search_is_its_best_step():
    search = Search(shape="search")
    steps = [
        {"rate_per_s": rate, "passed": passed, "texts_per_s": rate - 1, "timeline": []}
        for rate, passed in ((100, True), (200, False), (150, True))
    ]
    row = search_row(search, steps)
    assert (row["highest_rate_per_s"], row["texts_per_s"]) == (150, 149)
    assert [one["rate_per_s"] for one in row["steps"]] == [100, 200, 150]
    row = search_row(search, steps[1:2])
    assert row["highest_rate_per_s"] is None
