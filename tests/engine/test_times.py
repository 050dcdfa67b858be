"""Forward times: predictions between measured points, and corrections while running."""

import json

import pytest

from muxserve.engine.times import ForwardTimes, SpreadGain, grid, measure
from tests.engine.simulated_times import linear_times


def test_predictions_are_linear_between_grid_points():
    times = linear_times()
    assert times.predict(2, 24, 3) == pytest.approx(1e-3 + 1e-5 * 24 * 3)
    assert times.predict(2, 64, 16) == pytest.approx(2 * (1e-3 + 1e-5 * 64 * 8))


def test_a_text_below_the_first_bucket_costs_as_the_first_bucket():
    times = linear_times()
    assert times.predict(1, 3, 1) == times.predict(1, 16, 1)


def test_what_slows_one_n_down_is_taken_to_slow_all_but_for_a_part():
    """A busy machine must not seem to slow down just the N that it happens to run."""
    times = linear_times()
    before, other = times.predict(1, 32, 4), times.predict(5, 64, 4)
    for _ in range(100):
        times.observe(1, 32, 4, 3 * before)
    assert times.predict(1, 32, 4) == pytest.approx(3 * before, rel=0.01)
    assert 2 * other < times.predict(5, 64, 4) < 3 * other


def test_an_n_that_is_slower_than_measured_is_told_apart_in_time():
    times = linear_times()
    real = {n: times.predict(n, 32, 4) * (2 if n == 5 else 1) for n in (1, 2, 5)}
    for _ in range(100):
        for n, seconds in real.items():
            times.observe(n, 32, 4, seconds)
    for n, seconds in real.items():
        assert times.predict(n, 32, 4) == pytest.approx(seconds, rel=0.1)


def test_one_stalled_forward_hardly_moves_them():
    times = linear_times()
    before = times.predict(1, 32, 4)
    times.observe(1, 32, 4, 1000 * before)
    assert times.predict(1, 32, 4) < 1.5 * before


def test_best_groups_are_the_fewest_that_are_nearly_as_good():
    times = ForwardTimes([16], [1, 2, 4, 8])
    times.set(1, 16, [1.0, 1.0, 1.01, 2.0])  # 8 groups bring next to nothing over 4
    assert times.best_groups(1, 16) == 4


def test_the_grid_ends_at_the_limits_and_is_one_length_where_padding_is_fixed():
    assert grid(100, 32, None).lengths == [16, 32, 64, 100]
    assert grid(16, 5, None).lengths == [16]
    assert grid(16, 5, None).groups == [1, 2, 4]
    assert grid(128, 4, 128).lengths == [128]


def test_measuring_runs_small_shapes_and_scales_what_the_budget_does_not_reach():
    ran = []
    times = grid(64, 8, None)
    measure(times, [1, 2], lambda *shape: ran.append(shape), budget_s=0.0)
    assert {(n, length) for n, length, _ in ran} == {(n, x) for n in (1, 2) for x in (16, 32, 64)}
    assert max(g for *_, g in ran) == 1
    assert times.predict(1, 64, 8) == pytest.approx(8 * times.predict(1, 64, 1))


def test_a_row_of_times_must_fit_the_grid():
    with pytest.raises(ValueError, match="4 times expected, got 1"):
        linear_times().set(1, 16, [0.1])


def test_a_table_survives_being_written_and_read():
    times = linear_times()
    again = ForwardTimes.load(json.loads(json.dumps(times.dump())))
    assert again.widths == [1, 2, 5]
    assert again.predict(2, 24, 3) == times.predict(2, 24, 3)


@pytest.mark.parametrize("values", [{}, {"lengths": [16], "groups": [1], "seconds": [{}]}])
def test_something_else_is_not_read_as_a_table(values):
    with pytest.raises(ValueError, match="not a table of forward times"):
        ForwardTimes.load(values)


def test_every_core_pays_as_long_as_it_is_quicker():
    gain = SpreadGain()
    gain.start(0.6)
    assert gain.pays()
    for _ in range(20):
        gain.observe(3.0)
    assert not gain.pays(), "other programs use the cores"


def test_every_core_is_tried_again_now_and_then():
    gain = SpreadGain()
    gain.start(2.0)
    chances = next(i for i in range(1000) if gain.pays())
    assert 10 < chances < 100
    for _ in range(20):
        gain.observe(0.5)
    assert all(gain.pays() for _ in range(100)), "the cores are free again"
