"""Room of callers: one alone may have all, and one that floods leaves some to the others."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from muxserve.engine.room import Holdings, Room

BULK = 32


class Clock:
    """Seconds, as set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def filled(capacity: int, caller: str = "flood", amount: int = 1) -> Room:
    room = Room(capacity, BULK)
    while room.admits(caller, amount):
        room.add(caller, amount)
    return room


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 1000))
def test_one_alone_may_have_all(capacity):
    assert filled(capacity).total == capacity


def test_beside_a_flood_there_is_room_for_others():
    room = filled(4096)
    assert room.admits("quiet", 512)
    for number in range(256):
        caller = str(number)
        assert room.admits(caller, 1)
        room.add(caller, 1)
    assert not room.admits("flood", 1)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40))
def test_many_floods_leave_room_for_one_more_text(floods):
    room = Room(4096, BULK)
    grew = True
    while grew:
        grew = False
        for number in range(floods):
            if room.admits(str(number), 8):
                room.add(str(number), 8)
                grew = True
    assert room.admits("quiet", 1)
    assert room.total <= 5120


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-60, 60)), max_size=200),
)
def test_sums_are_conserved_and_no_limit_is_passed(capacity, changes):
    room = Room(capacity, BULK)
    held: Counter[str] = Counter()
    for caller, amount in changes:
        if amount > 0 and room.admits(caller, amount):
            room.add(caller, amount)
            held[caller] += amount
        elif amount < 0 and held[caller] >= -amount:
            room.remove(caller, -amount)
            held[caller] += amount
        assert room.total == sum(held.values())
        assert 4 * room.total <= 5 * capacity
        assert all(room.held(one) == held[one] <= capacity for one in "abcd")


def test_what_a_flood_gives_back_it_may_have_again():
    room = filled(100)
    room.remove("flood", 30)
    assert room.admits("flood", 30)
    assert not room.admits("flood", 31)


def holding(**held: int) -> Holdings:
    holdings = Holdings(BULK, Clock())
    for caller, amount in held.items():
        holdings.add(caller, amount)
    return holdings


def test_a_flood_beside_somebody_who_asks_for_little_is_told():
    holdings = holding(flood=500, quiet=2)
    assert holdings.floods == {"flood"}


def test_a_second_flood_does_not_pass_for_little_beside_the_first():
    assert holding(first=4096, second=900, third=33, quiet=2).floods == {"first", "second", "third"}


def test_one_alone_is_no_flood_however_much_it_asks_for():
    assert not holding(flood=5000).floods


def test_many_that_ask_for_little_are_no_flood():
    assert not holding(**{f"c{number}": 1 + number % 8 for number in range(256)}).contended


def test_callers_that_ask_for_as_much_as_each_other_are_no_flood():
    holdings = holding(a=500, b=400, c=130)
    assert not holdings.floods
    assert holdings.contended, "they have their turns"


def test_what_was_asked_for_is_remembered_for_a_while_only():
    clock = Clock()
    holdings = Holdings(BULK, clock)
    holdings.add("flood", 500)
    holdings.remove("flood", 500)
    holdings.add("quiet", 1)
    assert holdings.floods == {"flood"}
    clock.now_s += 20
    assert not holdings.floods
    assert holdings.held("flood") == 0


def test_callers_that_hold_nothing_are_forgotten():
    clock = Clock()
    holdings = Holdings(BULK, clock)
    for number in range(5000):
        clock.now_s += 0.1
        holdings.add(str(number), 1)
        holdings.remove(str(number), 1)
    assert len(holdings._callers) < 400
