"""The line: bounded, fair, computes equal texts once, and lets nobody wait for nothing."""

import threading
import time

import numpy as np
import pytest

from muxserve.engine.line import Line
from muxserve.engine.request import Prediction, Request, RequestOptions, Tokens
from muxserve.errors import DeadlineExceeded, NotReady, Overloaded

ANSWER = Prediction(np.zeros(2, dtype=np.float32), 1)


def request(*texts: list[int], **options) -> Request:
    return Request([Tokens(np.array(ids)) for ids in texts], RequestOptions(**options))


def test_texts_wait_in_the_order_they_came():
    line = Line(10)
    line.join(request([1], [2]), 1)
    line.join(request([3]), 1)
    assert [entry.ids.tolist() for entry in line.waiting()] == [[1], [2], [3]]


def test_a_look_goes_no_further_than_asked_and_drops_what_it_passes():
    line = Line(10)
    gone, late, wanted = request([1]), request([2], deadline_s=0.0), request([3], [4], [5])
    for one in (gone, late, wanted):
        line.join(one, 1)
    gone.cancel()
    assert [entry.ids.tolist() for entry in line.waiting(2)] == [[3], [4]]
    assert (line.texts, line.distinct) == (3, 3)
    assert (line.cancelled, line.expired) == (1, 1)
    assert isinstance(late.outcomes[0], DeadlineExceeded)


def test_equal_texts_are_one_entry_and_all_are_answered():
    line = Line(10)
    first, second = request([1, 2], [1, 2]), request([1, 2])
    line.join(first, 1)
    line.join(second, 1)
    (entry,) = line.waiting()
    assert line.texts == 3
    line.take([entry])
    entry.settle(ANSWER)
    assert first.outcomes == [ANSWER, ANSWER]
    assert second.wait(0)
    assert line.texts == 0


def test_equal_texts_of_different_isolation_keys_stay_apart():
    line = Line(10)
    line.join(request([1], isolation_key="a"), 1)
    line.join(request([1], isolation_key="b"), 1)
    assert len(line.waiting()) == 2


def test_equal_texts_of_different_caps_stay_apart():
    line = Line(10)
    for cap in (None, 2, 5, 2):
        line.join(request([1], max_num_instances=cap), 1)
    assert [entry.max_num_instances for entry in line.waiting()] == [None, 2, 5]
    assert line.texts == 4


def test_an_equal_text_that_joins_while_a_batch_is_planned_keeps_its_cap():
    line = Line(10)
    free, strict, as_free = request([1]), request([1], max_num_instances=1), request([1])
    line.join(free, 1)
    looked = line.waiting()
    assert [entry.max_num_instances for entry in looked] == [None], "so any N is planned for it"
    line.join(strict, 1)
    line.join(as_free, 1)
    line.take(looked)
    for entry in looked:
        entry.settle(Prediction(np.zeros(2, dtype=np.float32), 10))
    assert free.wait(0)
    assert as_free.wait(0)
    assert strict.outcomes == [None]
    assert [(entry.max_num_instances, entry.waiters) for entry in line.waiting()] == [
        (1, [(strict, 0)])
    ]


def test_a_request_that_does_not_fit_is_refused_whole():
    line = Line(3)
    line.join(request([1], [2]), 1)
    with pytest.raises(Overloaded) as refused:
        line.join(request([3], [4]), retry_after_s=2.5)
    assert refused.value.retry_after_s == 2.5
    assert len(line.waiting()) == 2
    assert line.shed == 2
    line.join(request([5]), 1)


def test_cancelled_and_expired_texts_leave_before_they_take_a_slot():
    line = Line(10)
    gone = request([1])
    late = request([2], deadline_s=time.monotonic() - 1)
    line.join(gone, 1)
    line.join(late, 1)
    line.join(request([3]), 1)
    gone.cancel()
    assert [entry.ids.tolist() for entry in line.waiting()] == [[3]]
    assert (line.cancelled, line.expired, line.texts) == (1, 1, 1)
    assert isinstance(late.outcomes[0], DeadlineExceeded)


def test_a_text_that_somebody_still_wants_stays_when_another_cancels():
    line = Line(10)
    gone, kept = request([1]), request([1])
    line.join(gone, 1)
    line.join(kept, 1)
    gone.cancel()
    (entry,) = line.waiting()
    assert entry.waiters == [(kept, 0)]


def test_a_closed_line_refuses_but_hands_out_what_waits():
    line = Line(10)
    line.join(request([1]), 1)
    line.close()
    with pytest.raises(NotReady):
        line.join(request([2]), 1)
    waiting = line.waiting()
    assert len(waiting) == 1
    line.take(waiting)
    assert line.waiting() == []


def in_another_thread(line: Line, texts: float) -> threading.Thread:
    """Gathers from now on; the caller's next change is what it sees."""
    gathering = threading.Thread(target=line.gather, args=(texts, line.wakes), daemon=True)
    gathering.start()
    return gathering


def test_who_gathers_goes_on_when_there_is_enough():
    line = Line(10)
    gathering = in_another_thread(line, 2)
    line.join(request([7]), 1)
    gathering.join(timeout=0.05)
    assert gathering.is_alive(), "one text is not enough"
    line.join(request([8]), 1)
    gathering.join(timeout=10)
    assert not gathering.is_alive()


@pytest.mark.parametrize("event", ["wake", "close"])
def test_who_gathers_goes_on_when_woken_or_when_the_line_closes(event):
    line = Line(10)
    gathering = in_another_thread(line, float("inf"))
    getattr(line, event)()
    gathering.join(timeout=10)
    assert not gathering.is_alive()


def test_a_wake_between_deciding_and_gathering_is_not_lost():
    line = Line(10)
    before = line.wakes
    line.wake()
    line.gather(5, before)


def test_equal_texts_of_different_callers_stay_apart():
    line = Line(10)
    for caller in ("a", "b", "a"):
        line.join(request([1], caller=caller), 1)
    waiting = line.waiting()
    assert [len(entry.waiters) for entry in waiting] == [2, 1]
    line.take(waiting)
    assert (line.texts, line.distinct) == (0, 0)
