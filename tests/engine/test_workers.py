"""Forwards at once: who runs beside whom, that nobody is lost, and what an error ends."""

import threading
import time

import numpy as np
import pytest
import torch

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.forward import TorchExecutor, default_in_flight, make_executor
from muxserve.engine.request import Prediction, Request, RequestOptions
from muxserve.errors import ForwardFailed, NotReady
from muxserve.models.family import Family

BOUND_S = 30


@pytest.fixture(scope="module")
def family(tiny_family) -> Family:
    return Family.load(tiny_family)


class Recorder(TorchExecutor):
    """A real executor of two forwards at once that notes what runs together, and can be held."""

    def __init__(self, family: Family, threads: int = 2) -> None:
        super().__init__(
            family.models, pad_id=family.pad_id, padded_length=None, threads=threads, in_flight=2
        )
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running = 0
        self.seen: list[tuple[int, bool, str]] = []

    def run(self, n, rows, *, alone=False):
        with self.lock:
            self.running += 1
            self.seen.append((self.running, alone, threading.current_thread().name))
        self.entered.release()
        assert self.open.wait(BOUND_S)
        try:
            return super().run(n, rows, alone=alone)
        finally:
            with self.lock:
                self.running -= 1


@pytest.fixture
def recorder(family):
    return Recorder(family)


@pytest.fixture
def engine(family, recorder):
    config = EngineConfig(warm_up_s=0.3, num_instances=1)
    with Engine(family, config, executor=recorder) as engine:
        recorder.seen.clear()
        while recorder.entered.acquire(blocking=False):
            pass
        yield engine
        recorder.open.set()


def texts(engine: Engine, *some: str) -> Request:
    request = Request(engine.encoder.encode(list(some)))
    engine.submit(request)
    return request


def pretend_spreading(engine: Engine, *, pays: bool) -> None:
    """What the warm-up measured on a machine with cores to spare, or on a busy one."""
    engine._workers._gain.start(0.5 if pays else 4.0)


def pretend_that_large_batches_pay(engine: Engine) -> None:
    """A forward costs most before its first group, so as much as may go together does."""
    for n in engine.widths:
        for length in engine.times.lengths:
            engine.times.set(n, length, [1e-3 + 1e-4 * groups for groups in engine.times.groups])


def test_a_lone_text_has_every_core_and_the_next_ones_wait_for_it(engine, recorder):
    pretend_spreading(engine, pays=True)
    recorder.open.clear()
    first = texts(engine, "good")
    assert recorder.entered.acquire(timeout=BOUND_S)
    second = texts(engine, "bad", "film")
    assert not recorder.entered.acquire(timeout=0.05), "nothing starts beside it"
    recorder.open.set()
    assert first.wait(BOUND_S)
    assert second.wait(BOUND_S)
    assert recorder.seen[0][:2] == (1, True)


def test_where_every_core_does_not_pay_a_second_forward_starts_beside_the_first(engine, recorder):
    pretend_spreading(engine, pays=False)
    recorder.open.clear()
    first = texts(engine, "good")
    assert recorder.entered.acquire(timeout=BOUND_S)
    second = texts(engine, "bad", "bad film", "not good")
    assert recorder.entered.acquire(timeout=BOUND_S)
    assert [alone for _, alone, _ in recorder.seen] == [False, False]
    assert recorder.seen[1][0] == 2, "at once"
    recorder.open.set()
    assert first.wait(BOUND_S)
    assert second.wait(BOUND_S)


def test_lone_texts_are_always_the_first_threads(engine, recorder):
    pretend_spreading(engine, pays=True)
    for number in range(8):
        assert texts(engine, f"good {'film ' * number}").wait(BOUND_S)
    assert {name for _, _, name in recorder.seen} == {"muxserve-forward-0"}


def test_a_text_that_gathers_goes_when_the_other_forward_ends(family):
    recorder = Recorder(family)
    config = EngineConfig(warm_up_s=0.3, num_instances=5)
    with Engine(family, config, executor=recorder) as engine:
        pretend_spreading(engine, pays=False)
        while recorder.entered.acquire(blocking=False):
            pass
        recorder.open.clear()
        first = texts(engine, *(f"good {'film ' * i}" for i in range(5)))
        assert recorder.entered.acquire(timeout=BOUND_S)
        second = texts(engine, "bad")
        assert not recorder.entered.acquire(timeout=0.05), "one text of five slots gathers"
        recorder.open.set()
        assert first.wait(BOUND_S)
        assert second.wait(BOUND_S)


def test_nobody_is_lost_or_answered_by_another_text_among_many_senders(family, recorder):
    config = EngineConfig(warm_up_s=0.3, latency_target_ms=1)
    wrong: list[str] = []
    with Engine(family, config, executor=recorder) as engine:
        some = [f"{a} {b} {'film ' * i}" for a in ("good", "bad") for b in "bcd" for i in range(4)]
        alone = {t: engine.classify([t], raw_scores=True)[0].labels for t in some}

        def send(own: list[str]) -> None:
            for text in own * 5:
                request = texts(engine, text)
                if not request.wait(BOUND_S) or not isinstance(request.outcomes[0], Prediction):
                    wrong.append(text)
                elif request.outcomes[0].num_instances == 1:
                    best = request.outcomes[0].logits.max()
                    if abs(best - alone[text][0].score) > 1e-3:
                        wrong.append(text)

        senders = [threading.Thread(target=send, args=(some[i::8],)) for i in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(BOUND_S)
        assert not any(sender.is_alive() for sender in senders)
        stats = engine.stats()
    assert not wrong
    assert stats.waiting == 0
    assert stats.texts == len(some) * 6


def test_an_error_of_the_second_thread_ends_the_engine_for_everybody(family, monkeypatch):
    recorder = Recorder(family)
    engine = Engine(family, EngineConfig(warm_up_s=0.3, num_instances=1), executor=recorder)
    pretend_spreading(engine, pays=False)
    while recorder.entered.acquire(blocking=False):
        pass
    recorder.open.clear()
    first = texts(engine, "good")
    assert recorder.entered.acquire(timeout=BOUND_S)
    monkeypatch.setattr("muxserve.engine.workers.next_batch", lambda *_, **__: 1 / 0)
    second = texts(engine, "bad", "bad film", "not good")
    assert second.wait(BOUND_S)
    assert all(isinstance(outcome, NotReady) for outcome in second.outcomes)
    recorder.open.set()
    assert first.wait(BOUND_S)
    assert isinstance(first.outcomes[0], Prediction), "its forward was under way, and well"
    with pytest.raises(NotReady):
        engine.classify(["good"])
    engine.close()
    assert not engine.alive


class Failing(Recorder):
    """Fails for texts with a poisonous id, and for everything once it is broken."""

    POISON = 10  # "very"

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.broken = False
        self.breaks_at_poison = False

    def run(self, n, rows, *, alone=False):
        logits = super().run(n, rows, alone=alone)
        poisoned = any(self.POISON in row for row in rows)
        self.broken |= poisoned and self.breaks_at_poison
        if self.broken or poisoned:
            raise RuntimeError("an illegal memory access was encountered")
        return logits


@pytest.mark.parametrize("some", [["good"], ["good", "bad", "not good", "bad film", "film"]])
@pytest.mark.parametrize("pays", [True, False])
def test_where_every_forward_fails_the_engine_ends(family, some, pays):
    failing = Failing(family)
    engine = Engine(family, EngineConfig(warm_up_s=0.3, num_instances=1), executor=failing)
    pretend_spreading(engine, pays=pays)
    assert len(engine.classify(some)) == len(some)
    assert engine.alive
    failing.broken = True
    request = texts(engine, *some)
    assert request.wait(BOUND_S)
    assert all(isinstance(outcome, NotReady) for outcome in request.outcomes), "nobody is to blame"
    with pytest.raises(NotReady):
        engine.classify(["good"])
    engine.close()
    assert not engine.alive


def test_where_a_text_breaks_the_device_for_good_the_engine_ends(family):
    failing = Failing(family)
    failing.breaks_at_poison = True
    engine = Engine(family, EngineConfig(warm_up_s=0.3, num_instances=1), executor=failing)
    request = texts(engine, "good", "bad", "very good", "not good")
    assert request.wait(BOUND_S)
    assert NotReady in map(type, request.outcomes)
    engine.close()
    assert not engine.alive


def test_a_text_that_fails_by_itself_does_not_end_the_engine(family):
    with Engine(family, EngineConfig(warm_up_s=0.3), executor=Failing(family)) as engine:
        for some in (["very"], ["very good", "very bad"], ["good", "very", "bad"]):
            request = texts(engine, *some)
            assert request.wait(BOUND_S)
            assert [type(outcome) for outcome in request.outcomes] == [
                ForwardFailed if "very" in text else Prediction for text in some
            ]
        assert engine.alive
        assert len(engine.classify(["good film"])) == 1


@pytest.mark.parametrize("step", ["unplan", "work_s"])
def test_texts_that_ran_are_not_lost_by_an_error_before_they_are_settled(
    family, recorder, monkeypatch, step
):
    engine = Engine(family, EngineConfig(warm_up_s=0.3, num_instances=1), executor=recorder)
    monkeypatch.setattr(f"muxserve.engine.workers.{step}", lambda *_: 1 / 0)
    request = texts(engine, "good", "bad film")
    assert request.wait(BOUND_S)
    assert all(isinstance(outcome, NotReady) for outcome in request.outcomes)
    engine.close()
    assert not engine.alive


def test_who_was_answered_before_an_error_keeps_the_answer(family, recorder, monkeypatch):
    engine = Engine(family, EngineConfig(warm_up_s=0.3, num_instances=1), executor=recorder)
    made: list[int] = []

    def second_fails(*args):
        made.append(1)
        return Prediction(*args) if len(made) == 1 else 1 / 0

    monkeypatch.setattr("muxserve.engine.workers.Prediction", second_fails)
    request = texts(engine, "good", "bad film")
    assert request.wait(BOUND_S)
    assert sorted(type(outcome).__name__ for outcome in request.outcomes) == [
        "NotReady",
        "Prediction",
    ]
    engine.close()


def test_nothing_takes_every_core_while_another_thread_runs_a_batch_in_halves(family):
    class Halves(Recorder):
        """Once it has ``slow`` fails for two texts together, and holds the one retried last."""

        slow = ()
        held = threading.Event()
        reached = threading.Event()

        def run(self, n, rows, *, alone=False):
            logits = super().run(n, rows, alone=alone)
            if self.slow and len(rows) == 2:
                raise RuntimeError("two at once")
            if self.slow and np.array_equal(rows[0], self.slow[1].ids):
                self.reached.set()
                assert self.held.wait(BOUND_S)
            return logits

    halves = Halves(family)
    with Engine(family, EngineConfig(warm_up_s=0.3, num_instances=1), executor=halves) as engine:
        pretend_spreading(engine, pays=False)
        pretend_that_large_batches_pay(engine)  # so that two texts go together
        slow = Request(engine.encoder.encode(["bad film", "bad film film film"]))
        halves.slow = slow.tokens
        while halves.entered.acquire(blocking=False):
            pass
        halves.open.clear()
        first = texts(engine, "good")
        assert halves.entered.acquire(timeout=BOUND_S)
        engine.submit(slow)
        assert halves.entered.acquire(timeout=BOUND_S), "beside the first"
        halves.open.set()
        assert first.wait(BOUND_S)
        assert halves.reached.wait(BOUND_S)
        pretend_spreading(engine, pays=True)
        halves.seen.clear()
        beside = texts(engine, "not good")
        assert beside.wait(BOUND_S)
        assert [alone for _, alone, _ in halves.seen] == [False]
        halves.held.set()
        assert slow.wait(BOUND_S)
    assert all(isinstance(outcome, Prediction) for outcome in slow.outcomes)


def test_who_asks_again_at_once_finds_the_thread_free(engine, recorder):
    """Each answer's text is asked for before the thread goes on: the first thread serves it."""
    pretend_spreading(engine, pays=True)
    asked: list[Request] = []
    done = threading.Event()

    def again(request: Request) -> None:
        running.append(len(engine._workers._running))
        if len(asked) == 20:
            done.set()
            return
        asked.append(Request(request.tokens, RequestOptions(), again))
        engine.submit(asked[-1])

    running: list[int] = []
    engine.submit(Request(engine.encoder.encode(["good"]), RequestOptions(), again))
    assert done.wait(BOUND_S)
    assert set(running) == {0}
    assert {name for _, _, name in recorder.seen} == {"muxserve-forward-0"}


def test_forty_texts_that_allow_only_one_go_in_two_forwards(family, recorder):
    """And not in two of as many groups as the widest N would make of them."""
    config = EngineConfig(warm_up_s=0.3, latency_target_ms=0.001)
    with Engine(family, config, executor=recorder) as engine:
        pretend_spreading(engine, pays=False)
        pretend_that_large_batches_pay(engine)
        while recorder.entered.acquire(blocking=False):
            pass
        recorder.open.clear()
        some = [f"{word} {'film ' * i}" for word in ("good", "bad") for i in range(20)]
        request = Request(engine.encoder.encode(some), RequestOptions(max_num_instances=1))
        engine.submit(request)
        for _ in range(2):
            assert recorder.entered.acquire(timeout=BOUND_S)
        recorder.open.set()
        assert request.wait(BOUND_S)
        stats = engine.stats()
    assert stats.texts_by_num_instances == {1: 40}
    assert (stats.batches, stats.slots) == (2, 40)


def test_texts_with_a_key_each_are_served_at_one(family, recorder):
    config = EngineConfig(warm_up_s=0.3, latency_target_ms=0.001)
    with Engine(family, config, executor=recorder) as engine:
        pretend_spreading(engine, pays=False)
        recorder.open.clear()
        requests = []
        for number in range(40):
            options = RequestOptions(isolation_key=str(number))
            requests.append(
                Request(engine.encoder.encode([f"good {'film ' * (number % 9)}"]), options)
            )
            engine.submit(requests[-1])
        recorder.open.set()
        assert all(request.wait(BOUND_S) for request in requests)
    assert {request.outcomes[0].num_instances for request in requests} == {1}


class Shared(Recorder):
    """Forwards of two threads share what computes, as on a GPU; only the seconds are made up."""

    PER_FORWARD_S = 0.002

    def __init__(self, family: Family) -> None:
        super().__init__(family, threads=1)
        assert (self.in_flight, self.spreads) == (2, False)
        self.device = threading.Lock()

    def run(self, n, rows, *, alone=False):
        with self.device:
            time.sleep(self.PER_FORWARD_S)
            return super().run(n, rows, alone=alone)


def test_where_forwards_share_a_device_the_warm_up_runs_them_beside_each_other(family):
    shared = Shared(family)
    with Engine(family, EngineConfig(warm_up_s=0.3), executor=shared) as engine:
        warmed_up = {name for _, _, name in shared.seen}
        assert len(warmed_up) == 2, "a thread beside the first one"
        # Two forwards, one after the other on the device, take this long; so each is said to.
        assert engine.times.predict(1, 16, 1) > 2 * Shared.PER_FORWARD_S
        before = engine.times.predict(1, 16, 1)
        for _ in range(20):
            engine.classify(["good"])
        assert engine.times.predict(1, 16, 1) == before, "a lone one says nothing of two"


def test_a_gpu_has_two_forwards_in_flight_whatever_the_number_of_cpu_threads():
    assert [default_in_flight("cuda", threads) for threads in (1, 2, 8)] == [2, 2, 2]
    assert [default_in_flight("cpu", threads) for threads in (1, 2, 8)] == [1, 2, 2]


@pytest.mark.parametrize(("threads", "set_to", "expected"), [(1, None, 1), (2, None, 2), (1, 3, 3)])
def test_an_executor_runs_as_many_at_once_as_is_set_or_as_suits_the_device(
    family, threads, set_to, expected
):
    made = make_executor(family, "torch", threads=threads, in_flight=set_to)
    assert made.in_flight == expected


def test_closing_serves_what_waits_behind_both_forwards(family):
    recorder = Recorder(family)
    engine = Engine(family, EngineConfig(warm_up_s=0.3, num_instances=5), executor=recorder)
    pretend_spreading(engine, pays=False)
    while recorder.entered.acquire(blocking=False):
        pass
    recorder.open.clear()
    requests = [texts(engine, f"good {'film ' * i}") for i in range(12)]
    assert recorder.entered.acquire(timeout=BOUND_S)
    closing = threading.Thread(target=engine.close)
    closing.start()
    time.sleep(0.05)
    recorder.open.set()
    closing.join(BOUND_S)
    assert not closing.is_alive()
    assert all(request.wait(0) for request in requests)


def test_a_share_of_the_threads_and_all_of_them_compute_the_same(family):
    executor = TorchExecutor(
        family.models, pad_id=family.pad_id, padded_length=None, threads=2, in_flight=2
    )
    results = []

    def compute() -> None:  # in a thread of its own: the setting of threads is each thread's
        executor.prepare()
        ids = [torch.arange(4, 12).numpy()] * 5
        results.extend(executor.run(5, ids, alone=alone) for alone in (False, True))
        results.append(torch.get_num_threads())

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join(BOUND_S)
    share, every, threads_after = results
    assert share == pytest.approx(every, abs=1e-6)
    assert threads_after == 1, "back to its share"


def test_a_forward_that_does_not_end_is_ill_health(family):
    """The replica still answers its health checks from its event loop; nobody else would notice."""
    executor = Recorder(family)
    config = EngineConfig(warm_up_s=0.01, forward_timeout_s=0.3)
    with Engine(family, config, executor=executor) as engine:
        engine.check_health()
        executor.open.clear()
        executor.entered = threading.Semaphore(0)  # those of the warm-up are of no interest
        request = Request(engine.encoder.encode(["good film"]), RequestOptions(), lambda _: None)
        engine.submit(request)
        assert executor.entered.acquire(timeout=BOUND_S)
        time.sleep(0.35)
        with pytest.raises(RuntimeError, match=r"over engine\.forward_timeout_s 0\.3"):
            engine.check_health()
        assert engine.alive
        executor.open.set()
        request.wait()
        engine.check_health()
