"""The drain time that autoscaling goes by: of the line at the widest N that each text allows."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.policy import choose, widest_drain_s, work_s
from muxserve.engine.request import Request, RequestOptions
from muxserve.models.family import Family
from tests.engine.simulated_times import linear_times
from tests.engine.test_workers import BOUND_S, Recorder
from tests.engine.texts import Text, lists_of_texts

WIDTHS = [1, 2, 5]
TIMES = linear_times()
TEXTS = lists_of_texts([None, 1, 2, 5], [None, None, "a", "b", "c"], min_size=0, max_size=100)


def test_an_empty_line_takes_no_time():
    assert widest_drain_s([], TIMES, WIDTHS) == work_s([], TIMES, WIDTHS) == 0


def test_texts_that_allow_every_width_drain_as_the_policy_predicts_at_the_widest():
    line = [Text(20)] * 200 + [Text(60)] * 31
    predicted = choose(line, TIMES, [5], 0).drain_s
    assert widest_drain_s(line, TIMES, WIDTHS) == pytest.approx(predicted)


def test_a_text_that_caps_n_is_counted_at_its_cap():
    capped, free = ([Text(20, cap)] * 100 for cap in (1, None))
    assert widest_drain_s(capped, TIMES, WIDTHS) > 2 * widest_drain_s(free, TIMES, WIDTHS)
    assert work_s(capped, TIMES, WIDTHS) > 2 * work_s(free, TIMES, WIDTHS)
    assert work_s([Text(20, 3)], TIMES, WIDTHS) == work_s([Text(20, 2)], TIMES, WIDTHS)


def test_a_lone_text_is_one_slot_of_work_and_one_forward_of_drain():
    assert widest_drain_s([Text(20)], TIMES, WIDTHS) == TIMES.predict(5, 32, 1)
    assert work_s([Text(20)] * 1000, TIMES, WIDTHS) == pytest.approx(
        1000 * work_s([Text(20)], TIMES, WIDTHS)
    )
    assert work_s([Text(20)], TIMES, WIDTHS) < TIMES.predict(5, 32, 1) / 2


def test_a_key_s_texts_share_groups_with_none_but_each_other():
    keys = [Text(20, None, str(i)) for i in range(40)]
    at_one = [Text(20, 1)] * 40
    assert widest_drain_s(keys, TIMES, WIDTHS) == pytest.approx(
        widest_drain_s(at_one, TIMES, WIDTHS)
    ), "a group each, as at N=1"
    assert work_s(keys, TIMES, WIDTHS) == pytest.approx(work_s(at_one, TIMES, WIDTHS))
    few = [Text(20, None, str(i % 4)) for i in range(40)]
    free = [Text(20)] * 40
    assert widest_drain_s(few, TIMES, WIDTHS) == pytest.approx(widest_drain_s(free, TIMES, WIDTHS))
    assert work_s(few, TIMES, WIDTHS) == pytest.approx(work_s(free, TIMES, WIDTHS))


def test_a_key_s_texts_of_several_lengths_are_one_group_of_the_longest():
    mixed = [Text(length, None, "a") for length in (10, 20, 60)]
    assert widest_drain_s(mixed, TIMES, WIDTHS) == TIMES.predict(5, 64, 1)


@given(TEXTS)
def test_keys_never_make_less_of_the_texts(texts):
    """Of one length: then a group is a group, whoever is in it."""
    keyed = [Text(20, text.max_num_instances, text.isolation_key) for text in texts]
    free = [Text(20, text.max_num_instances) for text in texts]
    assert widest_drain_s(keyed, TIMES, WIDTHS) >= widest_drain_s(free, TIMES, WIDTHS) - 1e-12
    assert work_s(keyed, TIMES, WIDTHS) >= work_s(free, TIMES, WIDTHS) - 1e-12


@given(TEXTS, TEXTS)
def test_more_texts_take_no_less(some, more):
    # Of one key, a long text may lift a short one's group to the length of another group, and both
    # then share a forward: so this holds where no text has a key.
    some, more = ([replace(text, isolation_key=None) for text in one] for one in (some, more))
    assert widest_drain_s(some + more, TIMES, WIDTHS) >= widest_drain_s(some, TIMES, WIDTHS)
    assert work_s(some + more, TIMES, WIDTHS) >= work_s(some, TIMES, WIDTHS)


def test_an_engine_tells_what_waits_and_what_runs(tiny_family):
    family = Family.load(tiny_family)
    recorder = Recorder(family)
    with Engine(family, EngineConfig(warm_up_s=0.3), executor=recorder) as engine:
        assert engine.stats().drain_s == 0
        while recorder.entered.acquire(blocking=False):
            pass
        recorder.open.clear()
        done: list[threading.Event] = []

        def submit(texts: list[str], options: RequestOptions) -> None:
            event = threading.Event()
            done.append(event)
            tokens = engine.encoder.encode(texts)
            engine.submit(Request(tokens, options, lambda _: event.set()))

        submit(["good"], RequestOptions())
        assert recorder.entered.acquire(timeout=BOUND_S)
        running = engine.stats().drain_s
        assert running > 0, "what runs counts"
        submit([f"good {'film ' * i}" for i in range(20)], RequestOptions(1))
        waiting = engine.stats()
        assert waiting.drain_s > running
        assert waiting.joined == 21
        before_s = waiting.work_s
        recorder.open.set()
        assert all(event.wait(BOUND_S) for event in done)
        after = engine.stats()
    assert after.drain_s == 0
    assert after.work_s > before_s
