"""The policy: accuracy first, width when the line asks for it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.engine import policy
from muxserve.engine.policy import DRAIN_SHARE, Choice, decide
from muxserve.engine.slots import plan
from tests.engine.simulated_times import linear_times
from tests.engine.texts import Text, lists_of_texts

WIDTHS = [1, 2, 5]
TIMES = linear_times()
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=300)
TEXTS = lists_of_texts([None, None, 1, 2, 3, 5], [None, None, *"abcdefgh"], max_size=200)


def choose(lengths: list[int], *args, **options) -> Choice:
    """For texts without keys and caps."""
    return policy.choose([Text(length) for length in lengths], *args, **options)


def test_a_lone_text_is_served_at_one():
    assert choose([20], TIMES, WIDTHS, target_s=0.05).num_instances == 1


def test_a_lone_text_is_served_at_one_even_where_no_width_meets_the_target():
    assert choose([20], TIMES, WIDTHS, target_s=1e-9).num_instances == 1


def test_a_long_line_takes_the_widest():
    assert choose([32] * 1000, TIMES, WIDTHS, target_s=0.01).num_instances == 5


def test_between_them_the_smallest_width_that_meets_the_target_is_taken():
    line = [32] * 64
    at_one, at_two = (choose(line, TIMES, [n], 0).drain_s for n in (1, 2))
    assert at_two < at_one
    assert choose(line, TIMES, WIDTHS, target_s=(at_one + at_two) / 2).num_instances == 2


@given(LENGTHS, st.floats(1e-4, 1.0))
def test_a_looser_target_never_widens(lengths, target_s):
    tight = choose(lengths, TIMES, WIDTHS, target_s)
    loose = choose(lengths, TIMES, WIDTHS, 2 * target_s)
    assert loose.num_instances <= tight.num_instances


@given(LENGTHS, st.floats(1e-4, 1.0))
def test_a_narrower_choice_than_the_one_taken_would_have_missed(lengths, target_s):
    taken = choose(lengths, TIMES, WIDTHS, target_s)
    for n in WIDTHS:
        if n < taken.num_instances:
            assert choose(lengths, TIMES, [n], target_s).drain_s > target_s


def test_a_width_that_measured_faster_by_chance_does_not_take_a_lone_text():
    """What a noisy first measurement looks like: the same group, cheaper at N=2 than at N=1."""
    noisy = linear_times(noise={1: 1.3, 2: 0.7})
    for target_s in (1e-9, noisy.predict(2, 32, 1) * 1.01):
        assert choose([20], noisy, WIDTHS, target_s).num_instances == 1


def decide_now(waiting, running=(), in_flight=2, target_s=0.05, max_groups=32, widths=WIDTHS):
    texts, others = (
        [one if isinstance(one, Text) else Text(one) for one in some] for some in (waiting, running)
    )
    return decide(
        texts, others, TIMES, widths, target_s, in_flight=in_flight, max_groups=max_groups
    )


def test_what_waits_goes_at_once_while_nothing_runs():
    assert decide_now([20]).enough == 1
    assert decide_now([20] * 40).enough == 1


def test_beside_another_forward_a_few_texts_gather_first():
    beside = decide_now([20], running=[20] * 40, widths=[5])
    assert beside.enough > 1


def test_texts_in_forwards_that_run_count_as_load():
    alone = decide_now([20], target_s=0.01)
    beside = decide_now([20], running=[20] * 1000, target_s=0.01)
    assert alone.num_instances == 1
    assert beside.num_instances == 5


def test_forwards_that_run_at_once_share_what_waits():
    one, two = (decide_now([20] * 40, in_flight=k, widths=[5]) for k in (1, 2))
    assert (one.max_groups, two.max_groups) == (8, 4)


@given(LENGTHS, LENGTHS, st.integers(1, 4), st.floats(1e-4, 1.0), st.integers(1, 32))
def test_a_decision_can_always_come_true(waiting, running, in_flight, target_s, max_groups):
    """With all of the load in the line, it is enough; so nobody gathers for ever."""
    decision = decide_now(
        waiting + running, (), in_flight=in_flight, target_s=target_s, max_groups=max_groups
    )
    assert decision.enough == 1
    beside = decide_now(
        waiting, running, in_flight=in_flight, target_s=target_s, max_groups=max_groups
    )
    assert 1 <= beside.enough <= len(waiting) + len(running)
    assert 1 <= beside.max_groups <= max_groups
    assert beside.num_instances in WIDTHS


def test_what_waits_behind_the_texts_that_were_looked_at_counts_as_load():
    looked = decide_now([32] * 100, target_s=0.05)
    behind = decide(
        [Text(32)] * 100, (), TIMES, WIDTHS, 0.05, in_flight=2, max_groups=32, behind=3000
    )
    assert (looked.num_instances, behind.num_instances) == (1, 5)


@given(LENGTHS, st.integers(0, 5000), st.floats(1e-4, 1.0))
def test_texts_behind_never_narrow_the_choice(lengths, behind, target_s):
    alone = choose(lengths, TIMES, WIDTHS, target_s)
    more = choose(lengths, TIMES, WIDTHS, target_s, behind=behind)
    assert more.drain_s >= alone.drain_s or more.num_instances > alone.num_instances


def test_texts_with_a_key_each_are_not_taken_to_share_groups():
    """No width makes fewer groups of them, so none is worth its accuracy."""
    decision = decide_now([Text(20, isolation_key=str(i)) for i in range(40)], target_s=1e-9)
    assert (decision.num_instances, decision.max_groups) == (1, 20)


def test_a_key_with_many_texts_widens_no_further_than_its_texts_fill():
    line = [Text(20, isolation_key=str(i % 20)) for i in range(40)]
    decision = decide_now(line, target_s=1e-9)
    assert (decision.num_instances, decision.max_groups) == (2, 10)


def test_keys_behind_the_texts_that_were_looked_at_make_groups_of_their_own():
    line = [Text(20, isolation_key=str(i)) for i in range(40)]
    behind = decide(line, (), TIMES, WIDTHS, 1e-9, in_flight=2, max_groups=32, behind=400)
    assert (behind.num_instances, behind.max_groups) == (1, 32)


@pytest.mark.parametrize(("running", "groups"), [(0, 20), (20, 30), (40, 32)])
def test_groups_are_of_the_width_that_the_oldest_text_allows(running, groups):
    capped = [Text(20, 1)] * 40
    decision = decide_now(capped, running=capped[:running], target_s=1e-9)
    assert (decision.num_instances, decision.max_groups) == (1, groups)
    mixed = [Text(20, 2), *[Text(20)] * 119]
    assert decide_now(mixed, target_s=1e-9).num_instances == 2
    assert decide_now(mixed, target_s=1e-9).max_groups == 30


def test_texts_that_allow_less_are_not_counted_into_a_wider_batch():
    line = [*[Text(20)] * 40, *[Text(20, 1)] * 10]
    decision = decide_now(line, target_s=1e-9)
    assert (decision.num_instances, decision.max_groups) == (5, 4)


@given(TEXTS, TEXTS, st.integers(1, 4), st.floats(1e-6, 1.0), st.integers(1, 32))
def test_a_decision_comes_true_with_keys_and_caps(waiting, running, in_flight, target_s, groups):
    decision = decide_now(
        waiting, running, in_flight=in_flight, target_s=target_s, max_groups=groups
    )
    assert 1 <= decision.enough <= len(waiting) + len(running)
    assert 1 <= decision.max_groups <= groups
    batch = plan(waiting, decision.num_instances, TIMES, WIDTHS, decision.max_groups)
    assert batch.num_instances == decision.num_instances, "the cap of the oldest is in it"
    assert batch.groups <= decision.max_groups


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), TEXTS, st.floats(1e-9, 1.0))
def test_keys_of_one_text_each_never_widen(lengths, running, target_s):
    """Whatever a wider N promises: each of these takes a group at every N."""
    waiting = [Text(length, None, f"own {place}") for place, length in enumerate(lengths)]
    assert decide_now(waiting, target_s=target_s).num_instances == 1


@given(TEXTS, st.floats(1e-9, 1.0))
def test_no_n_is_wider_than_a_key_or_all_without_one_could_fill(texts, target_s):
    """Where a narrower N holds each key's texts in one group, no wider one is chosen."""
    decision = decide_now(texts, target_s=target_s)
    largest = max(Counter(text.isolation_key for text in texts).values())
    enough = next((n for n in WIDTHS if n >= largest), WIDTHS[-1])
    assert decision.num_instances <= enough


@given(LENGTHS, st.floats(1e-6, 1.0), st.integers(1, 3))
def test_caps_that_allow_every_width_change_nothing(lengths, target_s, in_flight):
    free = decide_now(lengths, target_s=target_s, in_flight=in_flight)
    capped = decide_now([Text(length, 5) for length in lengths], (), in_flight, target_s)
    assert capped == free
    assert (
        free.num_instances
        == choose(lengths, TIMES, WIDTHS, DRAIN_SHARE * target_s * in_flight).num_instances
    )


@given(LENGTHS)
def test_one_key_for_all_makes_batches_as_none_does(lengths):
    shared = decide_now(lengths, target_s=1e-9, widths=[5])
    keyed = decide_now([Text(length, None, "a") for length in lengths], target_s=1e-9, widths=[5])
    assert keyed == shared
