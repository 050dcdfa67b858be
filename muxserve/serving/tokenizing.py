"""Texts of many requests in, token ids out, in batches on a thread beside the event loop.

There is no timer. A request alone is tokenized at once; requests that come while a batch is being
tokenized are the next batch. A batch is bounded in characters: the request with the next turn goes
first, then the shortest ones. While one caller floods, batches are small and go by turns, so that
the others wait little. A bad text is an error of its own request only.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from muxserve.engine.request import RequestOptions, Tokens
from muxserve.engine.room import Holdings
from muxserve.engine.tokens import TextEncoder, Truncate
from muxserve.engine.turns import Turns
from muxserve.errors import MuxserveError
from muxserve.serving.errors import Internal

log = logging.getLogger(__name__)

#: Up to so many texts a hop to the thread and back costs more than it saves.
_AT_ONCE_TEXTS = 2
#: The same in characters: a millisecond, in which nothing else is answered.
_AT_ONCE_CHARACTERS = 4000
#: Characters of one batch: some tens of milliseconds, for which the next one waits.
_BATCH_CHARACTERS = 200_000
#: The same where one caller floods: some milliseconds.
_TURN_CHARACTERS = 20_000

_NOBODY = RequestOptions()
_Request = tuple[Sequence[str], Truncate]


@dataclass(eq=False, slots=True)
class _Asked:
    """Texts of a caller that wait, and how many characters they have."""

    texts: Sequence[str]
    truncate: Truncate
    caller: str
    characters: int
    answer: "asyncio.Future[list[Tokens]]"


class Tokenizing:
    """Tokenizes for the requests of one event loop."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="muxserve-tokens")
        self._asked: Turns[_Asked] = Turns()
        self._holdings = Holdings(_TURN_CHARACTERS)
        self._is_due = False
        self._runs = False

    async def encode(
        self,
        texts: Sequence[str],
        *,
        truncate: Truncate,
        options: RequestOptions = _NOBODY,
    ) -> list[Tokens]:
        """Token ids of each text.

        Args:
            texts: of one request.
            truncate: as of the encoder.
            options: whose request it is, and the caller's weight.

        Raises:
            InvalidInput: for a text without content, or one that has no UTF-8.
            TextTooLong: for a text that is too long when ``truncate`` is false.
        """
        caller, characters = options.caller, sum(map(len, texts))
        self._holdings.add(caller, characters)
        try:
            if characters <= _TURN_CHARACTERS:  # nearly always
                return await self._encode(texts, truncate, options)
            most = _TURN_CHARACTERS if caller in self._holdings.floods else _BATCH_CHARACTERS
            return await self._encode_parts(_parts(texts, most), truncate, options)
        finally:
            self._holdings.remove(caller, characters)

    async def _encode_parts(
        self, parts: Sequence[Sequence[str]], truncate: Truncate, options: RequestOptions
    ) -> list[Tokens]:
        found: list[Tokens] = []
        for part in parts:
            try:
                found += await self._encode(part, truncate, options)
            except MuxserveError as error:
                if len(parts) > 1:
                    # It names the text within its part.
                    within = error.field.strip("inputs[]") if error.field else ""
                    error.field = f"inputs[{len(found) + int(within or 0)}]"
                raise
        return found

    async def _encode(
        self, texts: Sequence[str], truncate: Truncate, options: RequestOptions
    ) -> list[Tokens]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Tokens]] = loop.create_future()
        asked = _Asked(texts, truncate, options.caller, sum(map(len, texts)), answer)
        self._asked.add(asked, options.caller, asked.characters, options.weight)
        if not self._is_due and not self._runs:
            # After the callbacks that are due: requests that came together are one batch.
            self._is_due = True
            loop.call_soon(self._start, loop)
        try:
            return await answer
        finally:
            # An error's traceback holds this frame, which would hold the error: a cycle.
            del answer, asked

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_due = False
        asked = self._take()
        if not asked:
            return
        requests = [(one.texts, one.truncate) for one in asked]
        if _is_small(requests):
            self._settle(asked, self._outcomes(requests))
            self._start_later(loop)
            return
        try:
            running = loop.run_in_executor(self._thread, self._outcomes, requests)
        except RuntimeError:
            log.exception("no thread to tokenize on")
            self._settle(asked, [Internal() for _ in asked])
            self._start_later(loop)
            return
        self._runs = True
        running.add_done_callback(lambda done: self._finish(loop, asked, done))

    def _take(self) -> list[_Asked]:
        """The next batch, without requests that were given up."""
        waiting: list[_Asked] = []
        for one in list(self._asked.order(by_turns=self._holdings.contended)):
            if one.answer.done():
                self._asked.remove(one, one.caller)
            else:
                waiting.append(one)
        floods = self._holdings.floods
        batch = _turn(waiting, floods) if floods else _batch(waiting)
        self._asked.take(batch, [one.caller for one in batch])
        return batch

    def _start_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start again, for requests that the batch had no room for."""
        if self._asked and not self._is_due:
            self._is_due = True
            loop.call_soon(self._start, loop)

    def _outcomes(self, requests: Sequence[_Request]) -> list[list[Tokens] | MuxserveError]:
        """The encoder's outcomes; where it fails, only the request at fault gets the error."""
        try:
            return self._encoder.encode_each(requests)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of the tokenizer's Rust is no Exception
            if len(requests) > 1:
                return [outcome for one in requests for outcome in self._outcomes([one])]
            log.exception("tokenizing failed")
            return [Internal()]

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        asked: Sequence[_Asked],
        done: "asyncio.Future[list[list[Tokens] | MuxserveError]]",
    ) -> None:
        self._runs = False
        if done.cancelled() or done.exception():
            self._settle(asked, [Internal() for _ in asked])
        else:
            self._settle(asked, done.result())
        if self._asked:
            self._start(loop)

    @staticmethod
    def _settle(asked: Sequence[_Asked], outcomes: Sequence[list[Tokens] | MuxserveError]) -> None:
        for one, outcome in zip(asked, outcomes, strict=True):
            answer = one.answer
            if answer.done():
                continue  # its request was cancelled or is late
            if isinstance(outcome, MuxserveError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)


def _parts(texts: Sequence[str], most: int) -> list[Sequence[str]]:
    """The texts of one request, in parts that fit a batch, as far as one text does."""
    if sum(map(len, texts)) <= most:
        return [texts]
    parts: list[Sequence[str]] = []
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and characters + len(text) > most:
            parts.append(texts[start:index])
            start, characters = index, 0
        characters += len(text)
    return [*parts, texts[start:]]


def _batch(waiting: list[_Asked]) -> list[_Asked]:
    """The next batch: nobody waits for ever, and small requests do not wait long."""
    if sum(one.characters for one in waiting) <= _BATCH_CHARACTERS:
        return waiting
    room = _BATCH_CHARACTERS - waiting[0].characters
    taken = {0}
    for index in sorted(range(1, len(waiting)), key=lambda index: waiting[index].characters):
        room -= waiting[index].characters
        if room < 0:
            break
        taken.add(index)
    return [one for index, one in enumerate(waiting) if index in taken]


def _turn(waiting: Sequence[_Asked], floods: Collection[str]) -> list[_Asked]:
    """The next turns, either of callers who flood or of the others, who alone are soon done."""
    batch: list[_Asked] = []
    room = _TURN_CHARACTERS
    for one in waiting:
        if (one.caller in floods) != (waiting[0].caller in floods):
            continue
        room -= one.characters
        if batch and room < 0:
            break
        batch.append(one)
    return batch


def _is_small(requests: Sequence[_Request]) -> bool:
    """Whether it is little enough to tokenize on the event loop."""
    texts = characters = 0
    for one, _ in requests:
        texts += len(one)
        characters += sum(map(len, one))
        if texts > _AT_ONCE_TEXTS or characters > _AT_ONCE_CHARACTERS:
            return False
    return True
