"""The engine with a real model: answers, load, failures, deadlines, closing."""

import asyncio
import threading
import time

import numpy as np
import pytest
import torch

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.forward import TorchExecutor
from muxserve.engine.request import Prediction, Request, RequestOptions, Tokens
from muxserve.errors import (
    DeadlineExceeded,
    FamilyError,
    ForwardFailed,
    InvalidInput,
    NotReady,
    Overloaded,
)
from muxserve.models.family import Family

WARM = {"warm_up_s": 0.5, "torch_threads": 1}
TEXTS = [f"good film {'bad ' * i}" for i in range(12)]


@pytest.fixture(scope="module")
def family(tiny_family) -> Family:
    return Family.load(tiny_family)


class Gate:
    """A real executor that can be held, and that fails for texts with a poisonous id."""

    POISON = 10  # "very"
    in_flight, spreads = 1, False

    def __init__(self, family: Family) -> None:
        self.real = TorchExecutor(
            family.models, pad_id=family.pad_id, padded_length=None, threads=1
        )
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.ran: list[tuple[int, int]] = []

    def prepare(self) -> None:
        self.real.prepare()

    def run(self, n, rows, *, alone=False):
        self.entered.set()
        assert self.open.wait(30)
        self.ran.append((n, len(rows)))
        if any(self.POISON in row for row in rows):
            raise RuntimeError("poison")
        return self.real.run(n, rows)


@pytest.fixture
def gate(family):
    return Gate(family)


@pytest.fixture
def gated(family, gate):
    """An engine whose next forward waits until ``gate.open`` is set."""
    with Engine(family, EngineConfig(max_waiting_texts=20, **WARM), executor=gate) as engine:
        gate.ran.clear()
        yield engine
        gate.open.set()


def hold(engine: Engine, gate: Gate) -> Request:
    """Close the gate with one text in the forward, so that what comes next waits."""
    gate.open.clear()
    gate.entered.clear()
    first = Request(engine.encoder.encode(["good"]))
    engine.submit(first)
    assert gate.entered.wait(30)
    return first


def test_a_lone_text_is_answered_at_one_and_as_the_model_says(family):
    with Engine(family, EngineConfig(**WARM)) as engine:
        (answer,) = engine.classify(["good film"], raw_scores=True)
        ids = torch.from_numpy(engine.encoder.encode(["good film"])[0].ids).unsqueeze(0)
    with torch.inference_mode():
        expected = family.models[1](ids, num_instances=1).logits[0]
    assert answer.num_instances == 1
    for score in answer.labels:
        index = family.spec.labels.index(score.label)
        assert score.score == pytest.approx(float(expected[index]), abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_pinned_engine_serves_every_text_at_its_width(family, n):
    with Engine(family, EngineConfig(num_instances=n, **WARM)) as engine:
        answers = engine.classify(TEXTS)
    assert {answer.num_instances for answer in answers} == {n}


def test_a_free_slot_is_an_ensemble_member_and_not_random(family):
    with Engine(family, EngineConfig(num_instances=5, **WARM)) as engine:
        (answer,) = engine.classify(["good film"], raw_scores=True)
        ids = torch.from_numpy(engine.encoder.encode(["good film"])[0].ids)
    with torch.inference_mode():
        five = family.models[5](ids.expand(5, -1), num_instances=5).logits.mean(dim=0)
    assert answer.labels[0].score == pytest.approx(float(five.max()), abs=1e-5)


def test_answers_keep_the_order_of_many_texts(family):
    with Engine(family, EngineConfig(num_instances=1, **WARM)) as engine:
        together = engine.classify(TEXTS * 100, raw_scores=True)
        alone = [engine.classify([text], raw_scores=True)[0] for text in TEXTS]
    for index, answer in enumerate(together):
        expected = alone[index % len(TEXTS)]
        assert answer.labels[0].label == expected.labels[0].label
        assert answer.labels[0].score == pytest.approx(expected.labels[0].score, abs=1e-4)


def test_texts_that_wait_together_share_forwards_and_equal_ones_are_computed_once(gated, gate):
    hold(gated, gate)
    requests = [Request(gated.encoder.encode(["bad film", text])) for text in TEXTS[:8]]
    for request in requests:
        gated.submit(request)
    gate.open.set()
    assert all(request.wait(30) for request in requests)
    stats = gated.stats()
    assert stats.texts == 17
    assert sum(stats.texts_by_num_instances.values()) == 1 + 8 + 1, "8 texts, and one for all"
    assert stats.batches < 17


def test_only_the_culprit_of_a_failed_batch_fails(gated, gate):
    first = hold(gated, gate)
    good = [Request(gated.encoder.encode([text])) for text in TEXTS[:7]]
    bad = Request([Tokens(np.array([2, Gate.POISON, 4]))])
    for request in [*good[:3], bad, *good[3:]]:
        gated.submit(request)
    gate.open.set()
    assert all(request.wait(30) for request in [first, *good, bad])
    assert isinstance(bad.outcomes[0], ForwardFailed)
    assert all(isinstance(request.outcomes[0], Prediction) for request in good)
    assert gated.stats().failed == 1
    assert len(gated.classify(["good film"])) == 1, "the engine goes on"


def test_a_full_line_refuses_and_goes_on_with_the_others(gated, gate):
    first = hold(gated, gate)
    waiting = Request(gated.encoder.encode([f"good {'film ' * i}" for i in range(1, 21)]))
    gated.submit(waiting)
    with pytest.raises(Overloaded):
        gated.submit(Request(gated.encoder.encode(["one more"])))
    gate.open.set()
    assert first.wait(30)
    assert waiting.wait(30)
    assert gated.stats().shed == 1


def test_expired_and_cancelled_texts_never_run(gated, gate):
    first = hold(gated, gate)
    late = Request(gated.encoder.encode(["bad bad"]), RequestOptions(deadline_s=time.monotonic()))
    gone = Request(gated.encoder.encode(["bad bad bad"]))
    kept = Request(gated.encoder.encode(["good good"]))
    for request in (late, gone, kept):
        gated.submit(request)
    gone.cancel()
    gate.open.set()
    assert all(request.wait(30) for request in (first, late, gone, kept))
    assert isinstance(late.outcomes[0], DeadlineExceeded)
    stats = gated.stats()
    assert (stats.expired, stats.cancelled) == (1, 1)
    assert sum(stats.texts_by_num_instances.values()) == 2


def test_an_awaited_answer_obeys_its_deadline_while_a_forward_runs(gated, gate):
    hold(gated, gate)
    options = RequestOptions(deadline_s=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(gated.classify_async(["good film"], options=options))


def test_a_cancelled_task_takes_its_text_out_of_the_line(gated, gate):
    first = hold(gated, gate)

    async def ask_and_leave() -> None:
        task = asyncio.create_task(gated.classify_async(["bad film"]))
        while gated.stats().waiting == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask_and_leave())
    gate.open.set()
    assert first.wait(30)
    gated.classify(["good good good"])
    assert gated.stats().cancelled == 1


def test_a_request_may_cap_its_width_also_in_a_crowd(family):
    with Engine(family, EngineConfig(latency_target_ms=0.001, **WARM)) as engine:

        async def crowd():
            capped = RequestOptions(max_num_instances=2)
            asks = [engine.classify_async([f"{text} {i}"]) for i, text in enumerate(TEXTS * 4)]
            narrow = [engine.classify_async([text], options=capped) for text in TEXTS]
            return await asyncio.gather(*narrow, *asks)

        answers = asyncio.run(crowd())
    assert all(answer[0].num_instances <= 2 for answer in answers[: len(TEXTS)])


def test_a_cap_below_the_narrowest_width_is_refused(family):
    with (
        Engine(family, EngineConfig(num_instances=5, **WARM)) as engine,
        pytest.raises(InvalidInput, match="narrowest N here is 5"),
    ):
        engine.classify(["good"], options=RequestOptions(max_num_instances=2))


def test_a_closed_engine_serves_what_waits_and_refuses_the_rest(family, gate):
    engine = Engine(family, EngineConfig(**WARM), executor=gate)
    first = hold(engine, gate)
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.open.set()
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert first.wait(0)
    with pytest.raises(NotReady):
        engine.classify(["good"])
    engine.close()


def test_a_warm_up_that_fails_says_so_at_once(family):
    class Broken(Gate):
        def run(self, n, rows, *, alone=False):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        Engine(family, EngineConfig(**WARM), executor=Broken(family))


@pytest.mark.parametrize("setting", [{"num_instances": 3}, {"max_num_instances": 0}])
def test_a_width_that_the_family_lacks_is_refused(family, setting):
    with pytest.raises((FamilyError, ValueError), match="num_instances"):
        Engine(family, EngineConfig(**setting, **WARM))


def test_a_score_that_is_not_finite_fails_alone(family, gate):
    class NotANumber(Gate):
        def run(self, n, rows, *, alone=False):
            logits = self.real.run(n, rows)
            logits[[self.POISON in row for row in rows]] = np.nan
            return logits

    with Engine(family, EngineConfig(**WARM), executor=NotANumber(family)) as engine:
        request = Request([Tokens(np.array([2, Gate.POISON, 4])), *engine.encoder.encode(["good"])])
        engine.submit(request)
        assert request.wait(30)
    assert isinstance(request.outcomes[0], ForwardFailed)
    assert isinstance(request.outcomes[1], Prediction)


def test_a_caller_whose_callback_raises_disturbs_nobody(family):
    def explode(_: Request) -> None:
        raise RuntimeError("the caller's mistake")

    with Engine(family, EngineConfig(**WARM)) as engine:
        request = Request(engine.encoder.encode(["good"]), on_done=explode)
        engine.submit(request)
        assert request.wait(30)
        assert len(engine.classify(["bad film"])) == 1


def test_nobody_waits_for_an_engine_that_died(family, gate, monkeypatch):
    engine = Engine(family, EngineConfig(**WARM), executor=gate)
    hold(engine, gate)
    left = Request(engine.encoder.encode(["bad film"]))
    engine.submit(left)
    monkeypatch.setattr("muxserve.engine.workers.next_batch", lambda *_, **__: 1 / 0)
    gate.open.set()
    assert left.wait(30)
    assert isinstance(left.outcomes[0], NotReady)
    engine.close()
    assert not engine.alive
    with pytest.raises(NotReady):
        engine.classify(["good"])


def test_in_bfloat16_the_scores_are_close_to_those_in_float32(tiny_family):
    texts = ["good film", "a very bad film", "not good"]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        config = EngineConfig(warm_up_s=0.1, num_instances=5, dtype=dtype)
        with Engine.from_family(tiny_family, config) as engine:
            assert str(engine.family.models[5].dtype) == f"torch.{dtype}"
            answers = engine.classify(texts)
            scores[dtype] = [
                {entry.label: entry.score for entry in answer.labels}["positive"]
                for answer in answers
            ]
    assert scores["bfloat16"] != scores["float32"]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], abs=0.02)
