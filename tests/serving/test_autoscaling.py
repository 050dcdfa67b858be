"""Autoscaling: the decision by itself, and on simulated traffic with the engine's own policy."""

import csv
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.engine.config import EngineConfig
from muxserve.engine.stats import EngineStats
from muxserve.planning.simulation import Phase, Simulated
from muxserve.serving.app import _scaling
from muxserve.serving.config import ReplicasConfig
from muxserve.serving.demand import DemandMeter, HeldBack
from muxserve.serving.ray.autoscaling import (
    BUSY,
    BUSY_WITH_FEWER,
    Scaling,
    Seen,
    needed,
    seen_by,
    target_replicas,
)
from tests.serving.simulated_scaling import ONE_AT_WIDEST, scaled

SCALING = Scaling(1, 8, 0.05, 30.0, 300.0, 600.0)


def seen(replicas: int, drain_s: float = 0.0, load: float = 0.0, running: int | None = None):
    return Seen(replicas, replicas if running is None else running, drain_s, load)


# What is needed now


def test_a_line_within_the_target_asks_for_nothing():
    assert needed(seen(2, drain_s=0.05, load=1.5), SCALING) == 2


def test_a_line_over_the_target_asks_for_one_more_or_for_what_the_load_takes():
    assert needed(seen(2, drain_s=0.06, load=1.5), SCALING) == 3
    assert needed(seen(2, drain_s=0.06, load=4.0), SCALING) == math.ceil(4.0 / BUSY) == 5


def test_replicas_that_start_are_part_of_the_answer():
    assert needed(seen(4, drain_s=9.0, load=2.0, running=1), SCALING) == 4


def test_a_line_on_replicas_that_are_hardly_busy_asks_for_nothing():
    """Forwards that take longer than the target, or bursts: one more replica shortens neither."""
    assert needed(seen(2, drain_s=0.5, load=0.4), SCALING) == 2


def test_replicas_without_time_to_spare_ask_for_more_before_there_is_a_line():
    assert needed(seen(2, load=2 * BUSY + 0.01), SCALING) == 3


def test_fewer_are_enough_only_where_they_would_have_time_to_spare():
    assert needed(seen(3, load=2 * BUSY_WITH_FEWER), SCALING) == 2
    assert needed(seen(3, load=2 * BUSY_WITH_FEWER + 0.01), SCALING) == 3
    assert needed(seen(8, load=0.1), SCALING) == 1


def test_what_was_asked_for_stays_while_nothing_is_measured():
    assert needed(seen(3, running=0), SCALING) == 3


def test_the_last_one_goes_only_where_it_may_and_nothing_came():
    to_zero = replace(SCALING, min_replicas=0)
    assert needed(seen(1), to_zero) == 0
    assert needed(seen(1), SCALING) == 1
    assert needed(seen(1, load=1e-9), to_zero) == 1
    assert needed(seen(1, drain_s=1e-9), to_zero) == 1
    assert needed(seen(2), to_zero) == 1, "one after the other"


# In time


def follow(scaling: Scaling, moments: list[tuple[float, float, float]], replicas: int):
    """(time, called for, asked for) of (time, drain, load); what is asked for runs at once."""
    pending, history = None, []
    for now_s, drain_s, load in moments:
        measured = seen(replicas, drain_s, load)
        replicas, pending = target_replicas(measured, scaling, pending, now_s)
        history.append((now_s, needed(measured, scaling), replicas))
    return history


def test_more_are_asked_for_after_the_delay_and_not_before():
    history = follow(SCALING, [(float(t), 1.0, 1.0) for t in range(32)], 1)
    assert [asked for _, _, asked in history] == [1] * 30 + [2] * 2


def test_a_pause_in_the_call_begins_the_delay_anew():
    moments = [(float(t), 0.0 if t == 20 else 1.0, 0.6) for t in range(60)]
    history = follow(SCALING, moments, 1)
    assert next(now for now, _, asked in history if asked == 2) == 21 + 30


def test_the_smallest_step_called_for_is_made():
    moments = [(float(t), 1.0, 5.0 if t < 29 else 1.0) for t in range(31)]
    assert follow(SCALING, moments, 1)[-1][2] == 2
    moments = [(float(t), 0.0, 2.0 if t == 5 else 0.0) for t in range(301)]
    assert follow(SCALING, moments, 8)[-1][2] == math.ceil(2.0 / BUSY_WITH_FEWER) == 4


def test_none_is_added_for_a_line_that_will_be_gone_before_it_could_go_again():
    def lines(fall_s: float) -> list[tuple[float, float, float]]:
        return [(float(t), 40 - fall_s * t, 0.8) for t in range(120)]

    assert follow(SCALING, lines(0.2), 1)[-1][2] == 1
    assert follow(SCALING, lines(0.05), 1)[-1][2] > 1, "in 800 s"
    assert follow(SCALING, lines(-0.2), 1)[-1][2] > 1


def test_bounds_that_were_changed_hold_at_once():
    assert target_replicas(seen(1), replace(SCALING, min_replicas=3), None, 0.0) == (3, None)
    assert target_replicas(seen(9, load=8.0), replace(SCALING, max_replicas=4), None, 0.0) == (
        4,
        None,
    )


LEVELS = st.floats(0, 20, allow_subnormal=False)
SETTINGS = st.builds(
    lambda low, more, target, up, down, zero: Scaling(
        low, max(1, low + more), target, up, down, zero
    ),
    *(st.integers(0, 3), st.integers(0, 9), st.floats(0.01, 1), st.floats(0, 60)),
    *(st.floats(0, 300), st.floats(0, 600)),
)


@given(SETTINGS, st.integers(0, 12), st.integers(0, 12), LEVELS, LEVELS, LEVELS, LEVELS)
def test_more_load_or_a_longer_line_never_needs_fewer(
    scaling, replicas, running, drain_s, load, longer_s, more
):
    less = needed(Seen(replicas, running, drain_s, load), scaling)
    assert needed(Seen(replicas, running, drain_s + longer_s, load + more), scaling) >= less


MOMENTS = st.lists(
    st.tuples(
        st.floats(0, 40),
        st.sampled_from([0.0, 0.001, 0.04, 0.2, 3.0]),
        st.sampled_from([0.0, 0.01, 0.5, 1.0, 1.7, 3.0, 9.0]),
    ),
    max_size=80,
)


@given(SETTINGS, MOMENTS, st.data())
def test_what_always_holds(scaling, steps, data):
    first = data.draw(st.integers(scaling.min_replicas, scaling.max_replicas))
    now_s, moments = 0.0, []
    for step_s, drain_s, load in steps:
        now_s += step_s
        moments.append((now_s, drain_s, load))
    history = follow(scaling, moments, first)
    before = first
    last_change_s, begin = None, 0
    for index, (now_s, _, asked) in enumerate(history):
        assert scaling.min_replicas <= asked <= scaling.max_replicas
        if asked != before:
            if asked > before:
                delay_s = scaling.upscale_delay_s
            else:
                delay_s = (
                    scaling.downscale_to_zero_delay_s if asked == 0 else scaling.downscale_delay_s
                )
            # All through the delay, this change or a larger one was called for.
            since = [
                called for at, called, _ in history[begin : index + 1] if at >= now_s - delay_s
            ]
            if asked > before:
                assert min(since) >= asked
            else:
                assert max(since) <= asked
            if last_change_s is not None:
                assert now_s - last_change_s >= delay_s
            if asked == 0:
                assert scaling.min_replicas == 0
                assert moments[index][1:] == (0, 0)
            last_change_s, begin = now_s, index + 1
        before = asked


# What is measured


def test_texts_that_were_refused_count_as_those_that_were_served():
    meter = DemandMeter(0.0)
    stats = EngineStats(joined=100, texts=100, work_s=2.0)
    assert meter.measure(stats, 10.0)["load"] == pytest.approx(0.2)
    stats = EngineStats(joined=200, texts=200, work_s=4.0, shed=50)
    assert meter.measure(stats, 20.0)["load"] == pytest.approx(0.3)
    meter.refused(30)
    meter.held_back(HeldBack("a", 0, 20), 25.0)
    stats = EngineStats(joined=300, texts=300, work_s=6.0, shed=50)
    assert meter.measure(stats, 30.0)["load"] == pytest.approx(0.3)


def test_texts_that_came_and_were_not_served_count_at_what_the_last_ones_took():
    meter = DemandMeter(0.0)
    meter.measure(EngineStats(joined=10, texts=10, work_s=1.0), 10.0)
    assert meter.measure(EngineStats(joined=60, texts=10, work_s=1.0), 20.0)["load"] == 0.5


def test_what_ingresses_hold_back_is_the_latest_that_each_told_and_fades():
    meter = DemandMeter(0.0)
    meter.held_back(HeldBack("a", 500, 0), 1.0)
    meter.held_back(HeldBack("b", 10, 0), 1.0)
    meter.held_back(HeldBack("a", 40, 0), 2.0)
    stats = EngineStats(joined=10, texts=10, work_s=1.0)
    assert meter.measure(stats, 3.0)["held_s"] == pytest.approx(5.0)
    assert meter.measure(stats, 60.0)["held_s"] == 0


def test_an_idle_replica_measures_nothing_at_all():
    meter = DemandMeter(0.0)
    meter.measure(EngineStats(joined=10, texts=10, work_s=1.0), 10.0)
    idle = meter.measure(EngineStats(joined=10, texts=10, work_s=1.0), 20.0)
    assert idle == {"drain_s": 0, "held_s": 0, "load": 0}


def test_what_replicas_measured_is_one_line_and_one_load():
    metrics = {
        "drain_s": {"a": 1.0, "b": 3.0},
        "load": {"a": 0.5, "b": 0.7},
        "held_s": {"a": 2.0, "b": 1.0},
    }
    assert seen_by(3, metrics) == Seen(3, 2, 3.0, 1.2)
    assert seen_by(3, {}) == Seen(3, 0, 0.0, 0.0)


# On simulated traffic. Loads are in replicas at the widest N.


def rate(load: float) -> float:
    return load * ONE_AT_WIDEST


def changes(result: Simulated) -> list[int]:
    return [replicas for _, replicas in result.replicas]


def test_steady_light_load_is_one_replica_at_narrow_n():
    result, _ = scaled([Phase(rate(0.1), 1800)])
    assert changes(result) == [1]
    assert result.mean_num_instances < 2


def test_steady_load_widens_first_and_then_adds():
    result, scaler = scaled([Phase(rate(0.1), 300), Phase(rate(2.5), 1500)])
    assert result.shed == 0
    first_s = result.replicas[1][0]
    widest_s = next(now_s for now_s, widths in scaler.widths if 5 in widths)
    assert widest_s < first_s - 20, "width is spent before replicas"
    added = changes(result)
    assert added == sorted(added), "nothing that was added was taken back"
    assert 3 <= added[-1] <= 5
    assert len(added) <= 4
    late = [
        latency_s
        for arrival_s, latency_s in zip(result.arrivals_s, result.latencies_s, strict=True)
        if arrival_s > 1200
    ]
    assert sorted(late)[len(late) * 9 // 10] < 10, "within twice the target, once they run"


def test_a_load_that_width_alone_can_serve_adds_nothing():
    """0.7 of a replica at N=5 is three replicas' worth at N=1."""
    result, _ = scaled([Phase(rate(0.7), 1800)])
    assert changes(result) == [1]
    assert result.mean_num_instances > 3


def test_a_burst_that_is_over_before_a_replica_could_start_is_served_by_width():
    result, _ = scaled([Phase(rate(0.2), 300), Phase(rate(1.2), 15), Phase(rate(0.2), 900)])
    assert changes(result) == [1]
    assert result.shed == 0


def test_after_a_long_burst_replicas_go_again_one_delay_later():
    result, scaler = scaled([Phase(rate(0.2), 300), Phase(rate(3), 600), Phase(rate(0.2), 1500)])
    most = max(changes(result))
    assert 4 <= most <= 6
    falls_s = [
        now_s
        for (_, before), (now_s, after) in zip(result.replicas, result.replicas[1:], strict=False)
        if after < before
    ]
    assert falls_s[0] >= 900 + scaler.scaling.downscale_delay_s - LATE_S
    assert changes(result)[-1] == 1


#: A lull may be seen a little before the phase ends, where arrivals are few by chance.
LATE_S = 30


def test_a_day_is_followed_with_few_changes():
    """A sine of 0.2 to 4 replicas' worth in two hours, in steps of two minutes; twice."""
    day = [2.1 - 1.9 * math.cos(2 * math.pi * step / 60) for step in range(60)]
    result, _ = scaled([Phase(rate(load), 120) for load in day * 2])
    assert result.shed == 0
    counts = changes(result)
    assert 5 <= max(counts) <= 7
    turns = sum(
        (b - a) * (c - b) < 0 for a, b, c in zip(counts, counts[1:], counts[2:], strict=False)
    )
    assert turns <= 3, counts
    assert len(counts) <= 20, counts


def test_recorded_days_are_followed_with_few_changes():
    """What a real load test of two pressed days offered, each second of it as a minute.

    The recording's days of a minute are shorter than any delay, and one engine served them all;
    so they are stretched, and their noon is four replicas' worth.
    """
    with (Path(__file__).parent / "recorded" / "diurnal.csv").open() as file:
        due = [int(row["due_per_s"]) for row in csv.DictReader(file)]
    assert len(due) == 120
    result, _ = scaled([Phase(rate(4 * one / max(due)), 60) for one in due])
    assert result.shed == 0
    counts = changes(result)
    first_noon, night, second_noon = (running_at(result, 60 * minute) for minute in (35, 65, 95))
    assert 5 <= first_noon <= 7, counts
    assert night <= 3, counts
    assert 5 <= second_noon <= 7, counts
    assert counts[-1] <= 3, "it comes back"
    turns = sum(
        (b - a) * (c - b) < 0 for a, b, c in zip(counts, counts[1:], counts[2:], strict=False)
    )
    assert turns == 3, f"noon, night, noon: {counts}"
    assert len(counts) <= 20, counts


def running_at(result: Simulated, at_s: float) -> int:
    """Replicas that are asked for at that time."""
    return [replicas for since_s, replicas in result.replicas if since_s <= at_s][-1]


@pytest.mark.parametrize("period_s", [40, 120, 240])
def test_load_that_comes_and_goes_faster_than_the_delay_is_not_followed_down(period_s):
    half = [Phase(rate(2.2), period_s / 2), Phase(rate(0.1), period_s / 2)]
    result, _ = scaled(half * (3600 // period_s))
    counts = changes(result)
    assert counts == sorted(counts), counts
    assert len(counts) <= 4


def test_load_at_the_edge_does_not_flap():
    for load in (BUSY, 2 * BUSY, 3 * BUSY_WITH_FEWER):
        result, _ = scaled([Phase(rate(load), 3600)])
        counts = changes(result)
        assert counts == sorted(counts), (load, counts)


def test_a_full_line_does_not_look_like_one_that_is_just_long_enough():
    """64 texts wait at most, which drain within the target; the rest is refused, and counts."""
    result, _ = scaled([Phase(rate(3), 1800)], max_waiting=64)
    assert result.shed > 0
    assert 4 <= max(changes(result)) <= 6


def test_nobody_is_lost_where_replicas_come_and_go():
    phases = [Phase(rate(load), 400) for load in (0.1, 3, 0.1, 2, 0.0, 1.5)]
    result, _ = scaled(
        phases, max_waiting=10**6, settings=lambda one: replace(one, downscale_delay_s=60.0)
    )
    assert len(set(changes(result))) > 2
    alone, _ = scaled(phases, count=8, settings=lambda one: replace(one, min_replicas=8))
    assert len(result.latencies_s) == len(alone.latencies_s)
    assert result.shed == alone.shed == 0


def test_nothing_is_left_where_nothing_comes_and_none_is_allowed():
    phases = [Phase(rate(2), 600), Phase(0.0, 1800)]
    counts = changes(scaled(phases, settings=lambda one: replace(one, min_replicas=0))[0])
    assert counts[-2:] == [1, 0]
    assert changes(scaled(phases)[0])[-1] == 1


# As Ray gets it


def test_the_policy_reaches_the_controller_without_muxserve_or_torch():
    """Ray pickles it by value; a controller must not load torch to target_replicas on a number."""
    options = _scaling(ReplicasConfig(max_replicas=4, upscale_delay_s=0), EngineConfig())
    policy = options["autoscaling_config"].policy
    script = f"""
import sys
import ray.cloudpickle

class NoMuxserve:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("muxserve", "torch"):
            raise ModuleNotFoundError(f"no {{name}} here")

sys.meta_path.insert(0, NoMuxserve())
from types import SimpleNamespace
policy = ray.cloudpickle.loads({policy.get_serialized_policy_def()!r})(**{policy.policy_kwargs!r})
context = SimpleNamespace(
    target_num_replicas=1,
    capacity_adjusted_min_replicas=1,
    capacity_adjusted_max_replicas=4,
    aggregated_metrics={{"load": {{"a": 2.0}}, "drain_s": {{"a": 1.0}}, "held_s": {{"a": 0.0}}}},
    policy_state={{}},
    current_time=1.0,
)
print(policy(context)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "3", done.stderr


def test_the_policys_delays_are_not_waited_for_twice():
    replicas = ReplicasConfig(min_replicas=0, max_replicas=4, downscale_delay_s=90)
    options = _scaling(replicas, EngineConfig(latency_target_ms=20))["autoscaling_config"]
    delays = {
        "upscale_delay_s": 30.0,
        "downscale_delay_s": 90.0,
        "downscale_to_zero_delay_s": 90.0,
    }
    assert options.policy.policy_kwargs == {"target_drain_s": 0.02, **delays}
    assert all(getattr(options, name) == 0 for name in delays)
    assert (options.min_replicas, options.initial_replicas, options.max_replicas) == (0, 1, 4)


def test_without_an_engine_rays_own_policy_scales():
    options = _scaling(ReplicasConfig(max_replicas=4), None)["autoscaling_config"]
    assert options.policy.is_default_policy_function()
    assert options.upscale_delay_s == 30
    assert options.target_ongoing_requests == 64, "Ray's 2 would make 8 ingresses for 16 clients"
    options = _scaling(ReplicasConfig(max_replicas=4, target_ongoing_requests=20), None)
    assert options["autoscaling_config"].target_ongoing_requests == 20
    fixed = _scaling(ReplicasConfig(num_replicas=3), EngineConfig())
    assert fixed["num_replicas"] == 3
    assert "autoscaling_config" not in fixed
