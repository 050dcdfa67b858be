"""Turns of callers: shares are kept, lent where unused, and nobody waits for ever."""

import itertools
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxserve.engine.turns import Turns

CALLERS = st.sampled_from("abcde")
#: (caller, cost) of texts that come, or how many are served.
EVENTS = st.lists(st.tuples(CALLERS, st.integers(1, 128)) | st.integers(1, 16), max_size=120)


def added(turns: Turns[int], texts: list[tuple[str, float]], first: int = 0) -> None:
    for number, (caller, cost) in enumerate(texts, start=first):
        turns.add(number, caller, cost)


def serve(turns: Turns[int], owners: dict[int, str], items: list[int], cost: float) -> None:
    charges: Counter[str] = Counter()
    for item in items:
        charges[owners[item]] += cost
    turns.charge(charges)
    for item in items:
        turns.remove(item, owners[item])


def test_of_one_caller_they_go_as_they_came():
    turns: Turns[int] = Turns()
    added(turns, [("a", cost) for cost in (5, 1, 3)])
    assert list(turns.order()) == [0, 1, 2]
    assert not turns.shared


def test_callers_who_had_nothing_lately_go_as_they_came():
    turns: Turns[int] = Turns()
    added(turns, [("a", 9), ("b", 1), ("c", 5)])
    assert list(turns.order()) == [0, 1, 2]


def test_where_nobody_asks_for_much_all_go_as_they_came():
    turns: Turns[int] = Turns()
    added(turns, [("a", 1.0), ("a", 1.0), ("b", 1.0)])
    assert list(turns.order()) == [0, 2, 1]
    assert list(turns.order(by_turns=False)) == [0, 1, 2]


def test_a_flood_waits_for_whoever_comes_later():
    turns: Turns[int] = Turns()
    added(turns, [("flood", 1.0)] * 1000)
    owners = dict.fromkeys(range(1000), "flood")
    serve(turns, owners, [0, 1, 2, 3], 1.0)
    turns.add(1000, "quiet", 1.0)
    assert next(turns.order()) == 1000


def test_what_costs_more_has_fewer_turns():
    turns: Turns[int] = Turns()
    added(turns, [("whole", 10.0)] * 100 + [("shared", 1.0)] * 100)
    first = list(islice(turns.order(), 44))
    assert [item < 100 for item in first].count(True) == 4


def test_a_weight_of_two_has_twice_the_turns():
    turns: Turns[int] = Turns()
    for number in range(100):
        turns.add(number, "heavy", 1.0, weight=2.0)
        turns.add(100 + number, "light", 1.0)
    first = list(islice(turns.order(), 60))
    assert [item < 100 for item in first].count(True) == 40


@settings(deadline=None, max_examples=25)
@given(EVENTS)
def test_everything_that_waits_is_in_order_once_and_nothing_else(events):
    turns: Turns[int] = Turns()
    owners: dict[int, str] = {}
    waiting: set[int] = set()
    for number, event in enumerate(events):
        if isinstance(event, tuple):
            caller, cost = event
            turns.add(number, caller, cost)
            owners[number] = caller
            waiting.add(number)
        else:
            items = list(islice(turns.order(), event))
            if items:
                serve(turns, owners, items, 1.0)
            waiting -= set(items)
        ordered = list(turns.order())
        assert len(ordered) == len(turns) == len(waiting)
        assert set(ordered) == waiting
        for caller in set(owners.values()):
            own = [item for item in ordered if owners[item] == caller]
            assert own == sorted(own), "a caller's own go as they came"


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=6),
    st.integers(1, 16),
    st.randoms(use_true_random=False),
)
def test_callers_that_always_wait_get_their_shares(weights, batch, chance):
    """Whatever near the next turn a batch takes beside it, as the planner does for lengths."""
    turns: Turns[int] = Turns()
    owners: dict[int, str] = {}
    served: Counter[str] = Counter()
    numbers = itertools.count()

    def come(caller: str) -> None:
        number = next(numbers)
        owners[number] = caller
        turns.add(number, caller, 1.0, names[caller])

    names = {str(index): weight for index, weight in enumerate(weights)}
    for caller in names:
        for _ in range(3 * batch):
            come(caller)
    for _ in range(25):
        near = list(islice(turns.order(), 2 * batch))
        taken = [near[0], *chance.sample(near[1:], batch - 1)]
        serve(turns, owners, taken, 1.0)
        for item in taken:
            served[owners[item]] += 1
            come(owners[item])
    shares = [served[caller] / weight for caller, weight in names.items()]
    # No more than what the look at the next turns may be ahead, at the smallest weight.
    assert max(shares) - min(shares) <= 3 * batch / min(weights)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 20), st.integers(1, 8))
def test_nobody_waits_longer_than_a_turn_of_each(callers, batch):
    turns: Turns[int] = Turns()
    owners: dict[int, str] = {}
    for number in range(callers * 50):
        owners[number] = str(number % callers)
        turns.add(number, owners[number], 1.0)
    last_served = dict.fromkeys(set(owners.values()), 0)
    for round_ in range(1, 20):
        items = list(islice(turns.order(), batch))
        if not items:
            break
        serve(turns, owners, items, 1.0)
        for item in items:
            last_served[owners[item]] = round_
        assert round_ - min(last_served.values()) <= -(-callers // batch) + 1


def test_an_unused_share_is_lent_and_not_saved_up():
    turns: Turns[int] = Turns()
    added(turns, [("a", 1.0)] * 300)
    owners = dict.fromkeys(range(300), "a")
    serve(turns, owners, list(range(200)), 1.0)  # everything, while b asks for nothing
    added(turns, [("b", 1.0)] * 100, first=300)
    first = list(islice(turns.order(), 80))
    # b goes first once, for what a has just been given; then both have their turns: b does not
    # catch up with what it did not ask for.
    assert list(turns.order()).index(200) <= 200
    serve(turns, {**owners, 300: "b"}, [300], 200.0)
    assert [item >= 300 for item in islice(turns.order(), 40)].count(True) == 20
    assert len(first) == 80


def test_callers_that_are_gone_are_forgotten():
    turns: Turns[int] = Turns()
    for number in range(2000):
        turns.add(number, str(number), 1.0)
        turns.add(-1, "always", 1.0)
        turns.charge({str(number): 1.0, "always": 1.0})
        turns.remove(number, str(number))
        turns.remove(-1, "always")
    assert len(turns._accounts) < 300


def test_a_caller_that_only_withdraws_is_charged_nothing():
    turns: Turns[int] = Turns()
    added(turns, [("a", 1.0), ("b", 1.0)])
    turns.remove(0, "a")
    assert list(turns.order()) == [1]
    turns.add(2, "a", 1.0)
    assert list(turns.order()) == [1, 2]
    with pytest.raises(KeyError):
        turns.remove(0, "a")
