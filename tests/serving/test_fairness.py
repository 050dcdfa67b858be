"""Beside a flood: room, tokenizing and calls for whoever asks for little."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from muxserve.engine.request import Outcome, Prediction, RequestOptions, Tokens
from muxserve.engine.tokens import TextEncoder
from muxserve.errors import Overloaded
from muxserve.models.family import Family
from muxserve.serving.access.callers import Caller
from muxserve.serving.bundles import Bundle, BundleAnswer, pack_answer
from muxserve.serving.bundling import BundlingBackend
from muxserve.serving.config import IngressConfig, LimitsConfig
from muxserve.serving.service import TextService
from muxserve.serving.tokenizing import Tokenizing
from tests.conftest import MAX_LENGTH, tiny_tokenizer

BOUND_S = 20
FLOOD, QUIET = "flood", "quiet"


def tokens(*ids: int) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int64))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0)


class Replicas:
    """Holds every bundle until its callers are let go."""

    def __init__(self) -> None:
        self.bundles: list[set[str]] = []
        self.let_go = {FLOOD: asyncio.Event(), QUIET: asyncio.Event()}

    async def predict_bundle(self, bundle: Bundle) -> BundleAnswer:
        callers = {request.caller for request in bundle.requests}
        self.bundles.append(callers)
        for caller in callers:
            await self.let_go[caller].wait()
        outcomes: list[Outcome] = [Prediction(np.zeros(2, np.float32), 1)] * len(bundle.lengths)
        return pack_answer(outcomes, 2, of_tokens=False)

    async def ready(self) -> bool:
        return True

    async def stats(self) -> list[dict[str, object]]:
        return []


def asked(backend: BundlingBackend, caller: str, texts: int) -> "asyncio.Task[list[Outcome]]":
    options = RequestOptions(caller=caller)
    return asyncio.create_task(backend.predict([tokens(1, 2)] * texts, options))


def test_a_quiet_caller_waits_for_no_call_that_a_flood_has():
    async def run() -> None:
        replicas = Replicas()
        backend = BundlingBackend(replicas, IngressConfig(max_calls_in_flight=2))
        flood = [asked(backend, FLOOD, 256) for _ in range(12)]
        await until(lambda: len(replicas.bundles) == 2)
        replicas.let_go[QUIET].set()
        for _ in range(3):
            async with asyncio.timeout(BOUND_S):
                await asked(backend, QUIET, 1)
        assert replicas.bundles == [{FLOOD}] * 2 + [{QUIET}] * 3
        replicas.let_go[FLOOD].set()
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*flood)
        assert replicas.bundles.count({FLOOD}) == 12

    asyncio.run(run())


def test_callers_who_ask_for_about_as_much_share_calls_by_turns():
    async def run() -> None:
        replicas = Replicas()
        backend = BundlingBackend(
            replicas, IngressConfig(max_calls_in_flight=1, max_texts_per_bundle=128)
        )
        waiting = [asked(backend, FLOOD, 64) for _ in range(4)]
        await until(lambda: len(replicas.bundles) == 1)
        waiting += [asked(backend, QUIET, 64) for _ in range(4)]
        await until(lambda: backend._waiting_texts == 64 * 6)
        for event in replicas.let_go.values():
            event.set()
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*waiting)
        assert replicas.bundles[1:3] == [{FLOOD, QUIET}] * 2

    asyncio.run(run())


class Held(TextEncoder):
    """The real encoder; each batch waits for its permit, and its texts are noted."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer(), MAX_LENGTH)
        self.batches: list[Counter[str]] = []
        self.permits = threading.Semaphore(0)

    def encode_each(self, requests):
        self.batches.append(Counter(text[:4] for texts, _ in requests for text in texts))
        assert self.permits.acquire(timeout=BOUND_S)
        return super().encode_each(requests)


def test_a_quiet_callers_text_is_tokenized_after_one_small_batch_of_a_flood():
    async def run() -> None:
        encoder = Held()
        tokenizing = Tokenizing(encoder)

        def ask(caller: str, texts: list[str]) -> "asyncio.Task[list[Tokens]]":
            options = RequestOptions(caller=caller)
            return asyncio.create_task(tokenizing.encode(texts, truncate=True, options=options))

        quiet = [ask(QUIET, ["good"] * 3)]
        await until(lambda: len(encoder.batches) == 1)
        flood = [ask(FLOOD, ["film " * 20] * 512) for _ in range(6)]
        await until(lambda: len(tokenizing._asked) == 6)
        encoder.permits.release()
        await until(lambda: len(encoder.batches) == 2)
        quiet.append(ask(QUIET, ["good"] * 3))
        await until(lambda: len(tokenizing._asked) >= 6)
        encoder.permits.release()
        await until(lambda: len(encoder.batches) == 3)
        assert encoder.batches[1]["film"] <= 512, "no batch of all that waits"
        assert encoder.batches[2] == {"good": 3}
        encoder.permits.release(1000)
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*quiet, *flood)
        assert sum(batch["film"] for batch in encoder.batches) == 6 * 512

    asyncio.run(run())


class Stuck:
    """Answers the quiet caller only."""

    async def predict(self, tokens: Sequence[Tokens], options: RequestOptions) -> list[Outcome]:
        if options.caller == FLOOD:
            await asyncio.Event().wait()
        return [Prediction(np.zeros(2, np.float32), 1)] * len(tokens)

    def refused(self, texts: int) -> None:
        pass

    async def ready(self) -> bool:
        return True

    async def stats(self) -> dict[str, object]:
        return {"engines": []}


@pytest.mark.parametrize("others", [1, 64])
def test_a_flood_takes_no_room_that_others_need(tiny_family, others):
    async def run() -> None:
        family = Family.load(tiny_family, [])
        encoder = TextEncoder.of_family(family)
        limits = LimitsConfig(max_texts_per_request=512)
        service = TextService(family.spec, encoder, Stuck(), limits, most_texts=4096)
        flood = [
            asyncio.create_task(service.classify(["good"] * 512, caller=Caller(FLOOD)))
            for _ in range(12)
        ]
        await until(lambda: sum(one.done() for one in flood) == 4)
        assert all(isinstance(one.exception(), Overloaded) for one in flood if one.done())
        for number in range(others):
            answered = await service.classify(["good film"], caller=Caller(f"quiet {number}"))
            assert len(answered.predictions) == 1
        asked_s = time.monotonic()
        with pytest.raises(Overloaded, match="4096 texts of this caller"):
            await service.check_room(Caller(FLOOD))
        assert time.monotonic() - asked_s >= 0.05, "or asking again would take others' time"
        for one in flood:
            one.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        assert service.own_stats()["ingress"]["texts_under_way"] == 0

    asyncio.run(run())
