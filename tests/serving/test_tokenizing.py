"""Tokenizing in batches beside the event loop: the same ids, each request its own errors."""

import asyncio
import threading

import pytest

from muxserve.engine.tokens import TextEncoder
from muxserve.errors import InvalidInput, TextTooLong
from muxserve.serving.tokenizing import Tokenizing
from tests.conftest import MAX_LENGTH, tiny_tokenizer

LONG = "good " * 2 * MAX_LENGTH


class Watched(TextEncoder):
    """The real encoder, noting its batches; it can be held."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer(), MAX_LENGTH)
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def encode_each(self, requests):
        self.batches.append(sum(len(texts) for texts, _ in requests))
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(20)
        return super().encode_each(requests)


def test_a_request_alone_is_tokenized_at_once():
    async def ask() -> None:
        encoder = Watched()
        (tokens,) = await Tokenizing(encoder).encode(["good film"], truncate=True)
        assert tokens.ids.tolist() == encoder.encode(["good film"])[0].ids.tolist()
        assert encoder.threads == {threading.current_thread().name}

    asyncio.run(ask())


def test_requests_that_came_together_are_one_batch_on_another_thread():
    texts = [f"good {'film ' * i}" for i in range(20)]

    async def ask() -> None:
        encoder = Watched()
        tokenizing = Tokenizing(encoder)
        answers = await asyncio.gather(*(tokenizing.encode([t], truncate=True) for t in texts))
        assert encoder.batches == [20]
        assert threading.current_thread().name not in encoder.threads
        for text, (tokens,) in zip(texts, answers, strict=True):
            assert tokens.ids.tolist() == encoder.encode([text])[0].ids.tolist()

    asyncio.run(ask())


def test_what_comes_meanwhile_is_the_next_batch_and_the_loop_goes_on():
    async def ask() -> None:
        encoder = Watched()
        tokenizing = Tokenizing(encoder)
        encoder.open.clear()
        first = [asyncio.create_task(tokenizing.encode(["good"], truncate=True)) for _ in range(5)]
        await asyncio.sleep(0.05)
        second = [asyncio.create_task(tokenizing.encode(["bad"], truncate=True)) for _ in range(7)]
        await asyncio.sleep(0.05)
        assert encoder.batches == [5]
        encoder.open.set()
        await asyncio.gather(*first, *second)
        assert encoder.batches == [5, 7]

    asyncio.run(ask())


def test_a_bad_text_is_the_error_of_its_own_request():
    async def ask() -> None:
        tokenizing = Tokenizing(Watched())
        fine, empty, long, cut = await asyncio.gather(
            tokenizing.encode(["good", "film"], truncate=True),
            tokenizing.encode(["good", "  "], truncate=True),
            tokenizing.encode([LONG], truncate=False),
            tokenizing.encode([LONG], truncate=True),
            return_exceptions=True,
        )
        assert len(fine) == 2
        assert isinstance(empty, InvalidInput)
        assert empty.field == "inputs[1]"
        assert isinstance(long, TextTooLong)
        assert cut[0].truncated

    asyncio.run(ask())


def test_a_request_that_was_cancelled_is_left_out():
    async def ask() -> None:
        encoder = Watched()
        tokenizing = Tokenizing(encoder)
        encoder.open.clear()
        first = [asyncio.create_task(tokenizing.encode(["good"], truncate=True)) for _ in range(3)]
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(tokenizing.encode(["bad"], truncate=True))
        kept = [asyncio.create_task(tokenizing.encode(["film"], truncate=True)) for _ in range(3)]
        await asyncio.sleep(0.05)
        gone.cancel()
        encoder.open.set()
        await asyncio.gather(*first, *kept)
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert encoder.batches == [3, 3]

    asyncio.run(ask())
