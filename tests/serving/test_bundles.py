"""Bundles: what is packed comes out again, when requests gather, and who gets which outcome."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from muxserve import Engine, Family
from muxserve.engine.config import EngineConfig
from muxserve.engine.request import Prediction, RequestOptions, Tokens
from muxserve.errors import DeadlineExceeded, ForwardFailed, MuxserveError, NotReady, Overloaded
from muxserve.serving.bundles import (
    Bundle,
    BundleAnswer,
    pack,
    pack_answer,
    unpack,
    unpack_answer,
)
from muxserve.serving.bundling import BundlingBackend
from muxserve.serving.config import IngressConfig
from muxserve.serving.ray.replica import predict_bundle

BOUND_S = 20


def tokens(*ids: int) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int64))


class Replicas:
    """Answers a bundle with logits [first id, number of ids], once released."""

    def __init__(self) -> None:
        self.bundles: list[Bundle] = []
        self.released = asyncio.Event()
        self.cancelled = 0

    async def predict_bundle(self, bundle: Bundle) -> BundleAnswer:
        self.bundles.append(bundle)
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        texts = [one for tokens, _ in unpack(bundle, 0.0) for one in tokens]
        outcomes = [
            Prediction(np.array([one.ids[0], len(one.ids)], np.float32), 5) for one in texts
        ]
        return pack_answer(outcomes, 2, of_tokens=False)

    async def ready(self) -> bool:
        return True

    async def stats(self) -> list[dict[str, object]]:
        return []

    @property
    def sizes(self) -> list[int]:
        return [len(bundle.lengths) for bundle in self.bundles]


def run(test, **config: int) -> None:
    """Run ``test(backend, replicas)`` on a loop, in bounded time."""

    async def bounded() -> None:
        replicas = Replicas()
        backend = BundlingBackend(replicas, IngressConfig(**config))
        async with asyncio.timeout(BOUND_S):
            await test(backend, replicas)
            await until(lambda: not backend._in_flight)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def ask(backend: BundlingBackend, *texts: Tokens, **options) -> asyncio.Task:
    return asyncio.create_task(backend.predict(texts, RequestOptions(**options)))


def test_what_is_packed_comes_out_again():
    requests = [
        ([tokens(2, 9, 3), tokens(2, 3)], RequestOptions(2, 100.0, "a")),
        ([tokens(2, 8, 7, 3)], RequestOptions()),
    ]
    bundle = pack(requests, now_s=90.0)
    assert bundle.ids.dtype == np.int32
    assert bundle.requests[0].remaining_s == 10.0
    bundle.ids.flags.writeable = False  # as Ray hands it over
    unpacked = unpack(bundle, now_s=5.0)
    assert [options for _, options in unpacked] == [RequestOptions(2, 15.0, "a"), RequestOptions()]
    for (before, _), (after, _) in zip(requests, unpacked, strict=True):
        for one, other in zip(before, after, strict=True):
            assert other.ids.tolist() == one.ids.tolist()
            assert other.ids.dtype == np.int64
            assert other.ids.flags.writeable


def test_an_answer_keeps_every_outcome():
    failure = ForwardFailed("no")
    outcomes = [Prediction(np.array([1.0, 2.0], np.float32), 5), failure]
    first, second = unpack_answer(pack_answer(outcomes, 2, of_tokens=False))
    assert (first.logits.tolist(), first.num_instances) == ([1.0, 2.0], 5)
    assert second is failure


def test_requests_that_come_together_travel_together():
    async def test(backend, replicas):
        asked = [ask(backend, tokens(index, 1)) for index in range(5)]
        await until(lambda: replicas.bundles)
        replicas.released.set()
        answers = await asyncio.gather(*asked)
        assert replicas.sizes == [5]
        assert [answer[0].logits.tolist() for answer in answers] == [[i, 2] for i in range(5)]

    run(test)


def test_requests_gather_while_every_call_is_under_way():
    async def test(backend, replicas):
        first = ask(backend, tokens(1))
        await until(lambda: len(replicas.bundles) == 1)
        second = ask(backend, tokens(2))
        await until(lambda: len(replicas.bundles) == 2)
        rest = [ask(backend, tokens(3), tokens(4, 4)) for _ in range(6)]
        await until(lambda: backend._waiting_texts == 12)
        assert len(replicas.bundles) == 2
        replicas.released.set()
        await asyncio.gather(first, second, *rest)
        assert replicas.sizes == [1, 1, 12]
        stats = await backend.stats()
        counted = {
            "missing_engines": 0,
            "waiting": 0,
            "calls_in_flight": 0,
            "bundles": 3,
            "texts": 14,
            "cancelled": 0,
        }
        assert stats["ingress"] == counted

    run(test, max_calls_in_flight=2)


def test_a_bundle_is_bounded_and_a_longer_request_travels_alone():
    async def test(backend, replicas):
        long = ask(backend, *[tokens(1)] * 7)
        rest = [ask(backend, tokens(2), tokens(3)) for _ in range(3)]
        await until(lambda: len(replicas.bundles) == 3)
        replicas.released.set()
        await asyncio.gather(long, *rest)
        assert replicas.sizes == [7, 4, 2]

    run(test, max_texts_per_bundle=5)


def test_a_cancelled_request_is_not_sent():
    async def test(backend, replicas):
        first = ask(backend, tokens(1))
        await until(lambda: replicas.bundles)
        gone, kept = ask(backend, tokens(2)), ask(backend, tokens(3))
        await until(lambda: backend._waiting_texts == 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert backend._waiting_texts == 1
        replicas.released.set()
        await asyncio.gather(first, kept)
        assert replicas.bundles[1].ids.tolist() == [3]
        assert replicas.cancelled == 0

    run(test, max_calls_in_flight=1)


def test_a_bundle_is_cancelled_once_nobody_waits_for_it():
    async def test(backend, replicas):
        asked = [ask(backend, tokens(1)), ask(backend, tokens(2))]
        await until(lambda: replicas.bundles)
        asked[0].cancel()
        await asyncio.gather(asked[0], return_exceptions=True)
        assert replicas.cancelled == 0
        asked[1].cancel()
        await asyncio.gather(asked[1], return_exceptions=True)
        await until(lambda: replicas.cancelled == 1)

    run(test)


def test_requests_that_are_cancelled_as_they_are_sent_hold_no_call():
    async def test(backend, replicas):
        for _ in range(3):
            gone = [ask(backend, tokens(1)) for _ in range(2)]
            await asyncio.sleep(0)  # they stand in line, and sending is due next
            for one in gone:
                one.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
        replicas.released.set()
        assert len(await backend.predict([tokens(2)], RequestOptions())) == 1
        assert replicas.sizes == [1]
        assert (await backend.stats())["ingress"]["cancelled"] == 6

    run(test, max_calls_in_flight=2)


def test_a_call_that_is_cancelled_before_its_first_step_is_over():
    async def test(backend, replicas):
        for _ in range(3):
            asked = ask(backend, tokens(1))
            await until(lambda: backend._in_flight)
            (sent,) = backend._in_flight
            sent.task.cancel()
            with pytest.raises(NotReady):
                await asked
        replicas.released.set()
        assert len(await backend.predict([tokens(2)], RequestOptions())) == 1

    run(test, max_calls_in_flight=2)


def test_a_late_request_is_told_so_and_not_sent():
    async def test(backend, replicas):
        first = ask(backend, tokens(1))
        await until(lambda: replicas.bundles)
        late = ask(backend, tokens(2), deadline_s=time.monotonic() - 1)
        await until(lambda: backend._waiting_texts == 1)
        replicas.released.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
        assert replicas.sizes == [1]

    run(test, max_calls_in_flight=1)


def test_an_error_of_a_call_is_everybodys_in_it_and_nobody_elses():
    async def test(backend, replicas):
        real = replicas.predict_bundle

        async def broken(bundle):
            raise Overloaded("no replica", retry_after_s=3)

        replicas.predict_bundle = broken
        asked = [ask(backend, tokens(1)), ask(backend, tokens(2))]
        for one in asked:
            with pytest.raises(Overloaded):
                await one
        replicas.predict_bundle = real
        replicas.released.set()
        assert len(await backend.predict([tokens(3)], RequestOptions())) == 1

    run(test)


def test_an_unexpected_error_of_a_call_is_internal(caplog):
    async def test(backend, replicas):
        async def broken(bundle):
            raise ZeroDivisionError("a secret")

        replicas.predict_bundle = broken
        with pytest.raises(MuxserveError) as caught:
            await backend.predict([tokens(1)], RequestOptions())
        assert caught.value.code == "internal"

    run(test)
    assert "a secret" in caplog.text


# The replica's side, with a real engine


@pytest.fixture(scope="module")
def engine(tiny_family):
    with Engine(Family.load(tiny_family), EngineConfig(warm_up_s=0.5, max_waiting_texts=3)) as one:
        yield one


def test_a_bundle_is_answered_like_its_texts_alone(engine):
    texts = engine.encoder.encode(["a good film", "bad", "not very good"])
    narrow = RequestOptions(max_num_instances=1)
    bundle = pack([(texts[:1], narrow), (texts[1:], narrow)], time.monotonic())
    outcomes = unpack_answer(asyncio.run(predict_bundle(engine, bundle)))
    for outcome, text in zip(outcomes, ["a good film", "bad", "not very good"], strict=True):
        alone = engine.classify([text], options=narrow, raw_scores=True)[0]
        scores = {one.label: one.score for one in alone.labels}
        expected = [scores[label] for label in engine.family.spec.labels]
        assert outcome.logits.tolist() == pytest.approx(expected, abs=1e-4)
        assert outcome.num_instances == 1


def test_a_request_that_is_refused_does_not_harm_its_bundle(engine):
    texts = engine.encoder.encode(["good", "bad", "film", "very"])
    bundle = pack([(texts, RequestOptions()), (texts[:1], RequestOptions())], time.monotonic())
    *refused, answered = unpack_answer(asyncio.run(predict_bundle(engine, bundle)))
    assert [outcome.code for outcome in refused] == ["overloaded"] * 4
    assert isinstance(answered, Prediction)


def test_a_deadline_is_kept_across_clocks(engine):
    texts = engine.encoder.encode(["good"])
    bundle = pack([(texts, RequestOptions(deadline_s=99.0))], now_s=100.0)
    (outcome,) = unpack_answer(asyncio.run(predict_bundle(engine, bundle)))
    assert isinstance(outcome, DeadlineExceeded)


def test_a_bundle_tells_once_what_was_refused_and_always_what_waits():
    async def test(backend, replicas):
        backend.refused(7)
        asked = [ask(backend, tokens(0))]
        await until(lambda: len(replicas.bundles) == 1)
        asked += [ask(backend, tokens(index), tokens(index, 1)) for index in range(1, 4)]
        await asyncio.sleep(0)
        replicas.released.set()
        await asyncio.gather(*asked)
        told = [bundle.held_back for bundle in replicas.bundles]
        assert [(one.waiting, one.refused) for one in told] == [(0, 7), (4, 0), (2, 0), (0, 0)]
        assert len({one.ingress for one in told}) == 1

    run(test, max_calls_in_flight=1, max_texts_per_bundle=2)
