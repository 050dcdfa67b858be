"""Tokenizing in batches beside the event loop: the same ids, each request its own errors."""

import asyncio
import threading

import pytest

from muxserve.engine.tokens import TextEncoder
from muxserve.errors import InvalidInput, MuxserveError, TextTooLong
from muxserve.serving.tokenizing import Tokenizing
from tests.conftest import MAX_LENGTH, tiny_tokenizer

LONG = "good " * 2 * MAX_LENGTH
BROKEN = "broken"


class Panic(BaseException):
    """As a panic of the tokenizer's Rust arrives."""


class Watched(TextEncoder):
    """The real encoder, noting its batches; it can be held."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer(), MAX_LENGTH)
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def encode_each(self, requests):
        if any(text == BROKEN for texts, _ in requests for text in texts):
            raise Panic
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


def test_a_long_text_is_tokenized_beside_the_loop_which_goes_on():
    async def ask() -> None:
        encoder = Watched()
        # Without a space it has no part that would be enough.
        asked = asyncio.create_task(Tokenizing(encoder).encode(["a-film." * 70_000], truncate=True))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert asked.result()[0].truncated
        assert threading.current_thread().name not in encoder.threads
        # It takes a hundred of them and more, and one where the tokenizer holds the interpreter.
        assert turns > 10

    asyncio.run(ask())


@pytest.mark.parametrize("others", [0, 1, 10], ids=["alone", "at-once", "on-the-thread"])
@pytest.mark.parametrize("text", ["\ud800", BROKEN], ids=["no-utf8", "panic"])
def test_what_the_tokenizer_does_not_take_is_one_requests_error(text, others):
    async def ask() -> None:
        tokenizing = Tokenizing(Watched())
        async with asyncio.timeout(20):
            bad, *fine = await asyncio.gather(
                tokenizing.encode([text], truncate=True),
                *(tokenizing.encode(["good"], truncate=True) for _ in range(others)),
                return_exceptions=True,
            )
            assert isinstance(bad, MuxserveError)
            assert bad.code == ("internal" if text == BROKEN else "invalid_input")
            assert [len(one) for one in fine] == [1] * others
            assert len(await tokenizing.encode(["good"], truncate=True)) == 1

    asyncio.run(ask())


def test_without_a_thread_every_request_is_told():
    async def ask() -> None:
        tokenizing = Tokenizing(Watched())
        tokenizing._thread.shutdown()
        async with asyncio.timeout(20):
            with pytest.raises(MuxserveError) as caught:
                await tokenizing.encode(["good"] * 10, truncate=True)
            assert caught.value.code == "internal"
            assert len(await tokenizing.encode(["good"], truncate=True)) == 1

    asyncio.run(ask())
