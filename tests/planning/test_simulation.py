"""The simulation: known answers, and the engine's own choice of N."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.engine.times import ForwardTimes
from muxserve.planning.simulation import Phase, Replicas, SimulatedText, poisson_arrivals, simulate
from tests.engine.simulated_times import linear_times

TIMES = linear_times()


def flat_times(seconds: float, widths=(1,)) -> ForwardTimes:
    """Every forward takes as long; one group at most."""
    times = ForwardTimes([64], [1])
    for n in widths:
        times.set(n, 64, [seconds])
    return times


def served_by(widths, target_s=0.05, count=1, **settings) -> Replicas:
    return Replicas(count, widths, target_s, **settings)


def test_texts_that_come_one_by_one_wait_for_nothing():
    texts = [SimulatedText(float(i), 20) for i in range(5)]
    result = simulate(texts, flat_times(0.25), served_by([1], max_groups=1))
    assert result.latencies_s == [0.25] * 5
    assert result.seconds == 4.25
    assert result.busy_s == pytest.approx(1.25)


def test_texts_that_come_at_once_are_served_one_after_the_other():
    texts = [SimulatedText(0.0, 20) for _ in range(4)]
    result = simulate(texts, flat_times(0.25), served_by([1], max_groups=1))
    assert result.latencies_s == [0.25, 0.5, 0.75, 1.0]
    two = simulate(
        [SimulatedText(0.0, 20) for _ in range(4)],
        flat_times(0.25),
        served_by([1], max_groups=1, in_flight=2),
    )
    assert two.latencies_s == [0.25, 0.25, 0.5, 0.5]


def test_a_full_line_sheds_and_says_so_in_the_quantile():
    texts = [SimulatedText(0.0, 20) for _ in range(10)]
    result = simulate(texts, flat_times(0.25), served_by([1], max_groups=1, max_waiting=4))
    assert result.shed == 5  # one runs, four wait
    assert result.quantile_s(0.4) < float("inf")
    assert result.quantile_s(0.6) == float("inf")


def test_poisson_arrivals_come_at_their_rate():
    texts = poisson_arrivals([Phase(50, 100), Phase(0, 10), Phase(500, 20)], [10, 20])
    early = [text for text in texts if text.arrival_s < 100]
    assert len(early) == pytest.approx(5000, rel=0.05)
    assert not [text for text in texts if 100 <= text.arrival_s < 110]
    assert len(texts) - len(early) == pytest.approx(10_000, rel=0.05)
    assert {text.length for text in texts} == {10, 20}


def test_n_is_one_when_idle_wide_in_a_burst_and_one_again_after_it():
    phases = [Phase(20, 5), Phase(6000, 5), Phase(20, 5)]
    texts = poisson_arrivals(phases, [20, 40])
    result = simulate(texts, TIMES, served_by([1, 2, 5]))

    def mean_n(first_s: float, end_s: float) -> float:
        served = [
            n
            for n, arrival_s in zip(result.num_instances, result.arrivals_s, strict=True)
            if first_s <= arrival_s < end_s
        ]
        return sum(served) / len(served)

    assert mean_n(0, 5) < 1.05
    assert mean_n(6, 10) > 2
    assert mean_n(11, 15) < 1.05
    assert result.quantile_s(0.99) < 0.05


def test_elastic_holds_a_load_that_n_of_one_cannot():
    texts = poisson_arrivals([Phase(6000, 4)], [20, 40])
    assert simulate(texts, TIMES, served_by([1, 2, 5])).quantile_s(0.99) < 0.05
    assert simulate(texts, TIMES, served_by([1])).quantile_s(0.99) > 0.5
    assert simulate(texts, TIMES, served_by([1], count=5)).quantile_s(0.99) < 0.05


def test_texts_with_a_key_each_are_served_as_well_and_as_fast_as_at_n_of_one():
    """Too many for the target at any N: width would only repeat each text in its own group."""

    def served(widths, in_flight):
        texts = [
            SimulatedText(at.arrival_s, at.length, None, str(number))
            for number, at in enumerate(poisson_arrivals([Phase(3000, 1)], [20, 40]))
        ]
        settings = served_by(widths, target_s=0.001, in_flight=in_flight)
        return simulate(texts, TIMES, settings)

    for in_flight in (1, 2):
        elastic, narrow = (served(widths, in_flight) for widths in ([1, 2, 5], [1]))
        assert elastic.mean_num_instances == 1
        assert elastic.seconds == pytest.approx(narrow.seconds)


def test_texts_that_allow_only_one_fill_their_forwards():
    def served(widths):
        texts = [SimulatedText(0.0, 20, 1) for _ in range(41)]
        return simulate(texts, TIMES, served_by(widths, target_s=1e-6, in_flight=2))

    elastic, narrow = served([1, 2, 5]), served([1])
    assert elastic.mean_num_instances == 1
    assert elastic.seconds == pytest.approx(narrow.seconds)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(3, 64)), min_size=1, max_size=80),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_text_is_answered_once_and_none_before_it_came(arrivals, count, in_flight):
    texts = [SimulatedText(at, length) for at, length in sorted(arrivals)]
    result = simulate(texts, TIMES, served_by([1, 2, 5], count=count, in_flight=in_flight))
    assert sorted(result.arrivals_s) == [text.arrival_s for text in texts]
    assert min(result.latencies_s) > 0
    assert result.shed == 0
    assert result.busy_s <= result.seconds * count * in_flight + 1e-9
