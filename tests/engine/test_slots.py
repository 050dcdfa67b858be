"""The planner: the oldest goes, near lengths join, free slots repeat, keys keep apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.engine.slots import allowed_width, plan, unplan
from tests.engine.simulated_times import linear_times
from tests.engine.texts import Text, lists_of_texts

WIDTHS = [1, 2, 5]
TIMES = linear_times()
TEXTS = lists_of_texts([None, None, 1, 2, 5], [None, None, "a", "b"], max_size=80)
N = st.sampled_from(WIDTHS)


def plan_for(texts, n, max_groups=8):
    return plan(texts, n, TIMES, WIDTHS, max_groups)


@given(TEXTS, N)
def test_the_oldest_text_is_always_in_the_next_batch(texts, n):
    assert any(text is texts[0] for text in plan_for(texts, n).texts)


@given(TEXTS, N)
def test_every_slot_holds_a_text_and_every_text_a_slot(texts, n):
    batch = plan_for(texts, n)
    assert len(batch.slots) == batch.groups * batch.num_instances
    assert 1 <= batch.groups <= 8
    assert set(batch.slots) == set(range(len(batch.texts)))
    assert len({id(text) for text in batch.texts}) == len(batch.texts)


@given(TEXTS, N)
def test_texts_with_different_isolation_keys_never_share_a_group(texts, n):
    batch = plan_for(texts, n)
    for group in range(batch.groups):
        slots = batch.slots[group * batch.num_instances : (group + 1) * batch.num_instances]
        assert len({batch.texts[i].isolation_key for i in slots}) == 1


@given(TEXTS, N)
def test_no_text_is_served_wider_than_it_allows(texts, n):
    batch = plan_for(texts, n)
    assert batch.num_instances <= n
    for text in batch.texts:
        assert text.max_num_instances is None or batch.num_instances <= text.max_num_instances


@given(TEXTS, N)
def test_everything_is_served_after_as_many_plans_as_texts(texts, n):
    left = list(texts)
    for _ in texts:
        if not left:
            break
        done = {id(text) for text in plan_for(left, n).texts}
        left = [text for text in left if id(text) not in done]
    assert left == []


def test_neighbours_of_near_length_are_preferred():
    texts = [Text(10), *(Text(60) for _ in range(20)), *(Text(11) for _ in range(20))]
    batch = plan_for(texts, 1)
    assert batch.length == 11


def test_a_long_text_takes_long_neighbours_and_leaves_the_short_ones_to_a_batch_of_their_own():
    texts = [Text(60), *(Text(10) for _ in range(20)), *(Text(62) for _ in range(4))]
    batch = plan(texts, 5, linear_times(fixed=0.0), WIDTHS, 8)
    assert sorted(text.length for text in batch.texts) == [60, 62, 62, 62, 62]


def test_few_groups_of_near_lengths_go_before_many_that_pad_more():
    per_token = linear_times(fixed=0.0)
    texts = [Text(20), *(Text(20) for _ in range(4)), *(Text(length) for length in range(40, 64))]
    batch = plan(texts, 5, per_token, WIDTHS, 8)
    assert [text.length for text in batch.texts] == [20] * 5


def test_all_whole_groups_go_and_not_only_half_of_them():
    per_group = linear_times(fixed=1e-4)
    batch = plan([Text(32) for _ in range(23)], 5, per_group, WIDTHS, 8)
    assert len(batch.texts) == 20


def test_each_key_s_texts_fill_their_groups_although_others_are_nearer_in_length():
    texts = [Text(10 + i // 10, None, "abcdefghij"[i % 10]) for i in range(100)]
    batch = plan(texts, 5, linear_times(fixed=1e-4), WIDTHS, 8)
    assert batch.groups > 1
    assert len(batch.texts) == 5 * batch.groups, "no slot is filled twice"


def test_a_group_of_a_key_that_is_not_full_is_one_of_its_short_texts():
    texts = [Text(length, None, key) for length in (10, 20, 30) for key in "ab"]
    batch = plan(texts, 2, TIMES, WIDTHS, 8)
    groups = [batch.slots[i : i + 2] for i in range(0, len(batch.slots), 2)]
    lengths = [sorted({batch.texts[i].length for i in group}) for group in groups]
    assert sorted(lengths) == [[10], [10], [20, 30], [20, 30]]


def test_free_slots_repeat_the_texts_of_their_group():
    batch = plan_for([Text(10), Text(11), Text(12)], 5)
    assert batch.slots == [0, 1, 2, 0, 1]


def test_a_full_batch_repeats_nothing():
    batch = plan_for([Text(10) for _ in range(10)], 5)
    assert batch.slots == list(range(10))


@given(st.integers(1, 40), st.integers(1, 64))
def test_more_than_a_group_goes_in_whole_groups_where_a_group_costs_the_same(texts, length):
    """At a cost per group alone, one that is not full has the worst rate."""
    per_group = linear_times(fixed=0.0)
    batch = plan([Text(length) for _ in range(texts)], 5, per_group, WIDTHS, 8)
    assert len(batch.texts) == texts if texts < 5 else len(batch.texts) % 5 == 0


def test_a_group_that_is_not_full_goes_where_a_forward_costs_more_than_its_groups():
    """What a forward costs before its first group is better spent on one more text."""
    mostly_fixed = linear_times(fixed=1.0)
    batch = plan([Text(10) for _ in range(23)], 5, mostly_fixed, WIDTHS, 8)
    assert len(batch.texts) == 23


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.data())
def test_whole_groups_never_leave_the_oldest_behind(lengths, data):
    texts = [Text(length) for length in lengths]
    oldest = data.draw(st.sampled_from(texts))
    texts.remove(oldest)
    batch = plan([oldest, *texts], 5, linear_times(fixed=0.0), WIDTHS, 8)
    assert oldest in batch.texts


def test_a_capped_text_alone_is_served_at_its_cap():
    assert plan_for([Text(10, 2)], 5).num_instances == 2
    assert plan_for([Text(10, 4)], 5).num_instances == 2
    assert allowed_width(5, None, WIDTHS) == 5


@given(st.integers(1, 12), N, st.randoms(use_true_random=False))
def test_unplanning_averages_the_slots_of_each_text(texts, n, rng):
    batch = plan_for([Text(10) for _ in range(texts)], n)
    answers = np.array([[rng.random(), rng.random()] for _ in batch.texts], dtype=np.float32)
    noise = np.zeros((len(batch.slots), 2), dtype=np.float32)
    back = unplan(answers[batch.slots] + noise, batch.slots, len(batch.texts))
    np.testing.assert_allclose(back, answers, rtol=1e-6)


def test_unplanning_takes_the_mean():
    back = unplan(np.array([[1.0], [2.0], [3.0]], dtype=np.float32), [0, 1, 0], 2)
    assert back.tolist() == [[2.0], [2.0]]
    assert back.dtype == np.float32


def test_an_empty_line_cannot_be_planned():
    with pytest.raises(IndexError):
        plan_for([], 1)
