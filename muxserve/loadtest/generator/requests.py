"""Texts as requests of each kind, and answers as labels: what every protocol's user shares.

A request carries one or more texts. An answer says a status, and where that is good, the N and the
label (or the labels of the words) of each text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from muxserve.loadtest.generator.http_client import BadAnswer, HttpClient
from muxserve.loadtest.generator.tally import OK
from muxserve.loadtest.scenario.texts import Labels, Text


@dataclass(slots=True)
class Answer:
    """What came back.

    Attributes:
        status: ``200``, another status, or a word.
        labels: of each text; empty where the protocol tells none.
        widths: N of each text; empty where it is not told.
        message: what a failure said.
        length: bytes.
    """

    status: str
    labels: Sequence[Labels] = ()
    widths: Sequence[int] = ()
    message: str = ""
    length: int = 0


@dataclass(slots=True)
class Request:
    """What is sent, prepared, and the texts in it."""

    texts: list[Text]
    content: Any = field(repr=False)


class Speaker(Protocol):
    """Speaks one protocol to one server."""

    #: As Locust's tables name it.
    name: str

    def prepare(self, texts: list[Text]) -> Request:
        """A request of these texts."""

    def ask(self, request: Request) -> Answer:
        """Send it, and read the answer. Raises OSError where nothing answers."""

    def close(self) -> None:
        """End its connections."""


class PredictSpeaker:
    """``POST /predict``, or any route that takes a prepared body."""

    def __init__(
        self,
        url: str,
        path: str,
        headers: dict[str, str],
        timeout_s: float,
        *,
        single: bool,
        source: str | None = None,
    ) -> None:
        """Prepare for one route.

        Args:
            url, path: of the route.
            headers: more of them.
            timeout_s: of connections.
            single: each request has one text, given as a text and not as a list.
            source: address to connect from.
        """
        self.name = path
        self._path = path
        self._single = single
        self._client = HttpClient(url, headers, timeout_s, source)

    def prepare(self, texts: list[Text]) -> Request:
        (first, *_) = texts
        if first.body is not None:
            body = first.body.encode()
        else:
            inputs = first.text if self._single else [one.text for one in texts]
            body = orjson.dumps({"inputs": inputs})
        return Request(texts, self._client.prepare("POST", self._path, body))

    def ask(self, request: Request) -> Answer:
        response = self._client.send(request.content)
        if response.status != 200:
            return failure(str(response.status), response.body)
        if request.texts[0].body is not None:  # a peer's; its labels mean nothing to us
            return Answer(OK, length=len(response.body))
        answers = orjson.loads(response.body)
        answers = [answers] if self._single else answers
        labels: list[Labels] = []
        widths: list[int] = []
        try:
            for answer in answers:
                of_words = "word" in answer[0]
                labels.append([one["label"] for one in answer] if of_words else answer[0]["label"])
                if "num_instances" in answer[0]:
                    widths.append(answer[0]["num_instances"])
        except (LookupError, TypeError):
            raise BadAnswer(f"no labels in {response.body[:80]!r}") from None
        return Answer(OK, labels, widths, length=len(response.body))

    def close(self) -> None:
        self._client.close()


class ReadySpeaker:
    """``GET /ready``: the way to a server and back, with nothing to classify."""

    name = "/ready"

    def __init__(self, url: str, headers: dict[str, str], timeout_s: float) -> None:
        self._client = HttpClient(url, headers, timeout_s)

    def prepare(self, texts: list[Text]) -> Request:
        return Request(texts, self._client.prepare("GET", self.name))

    def ask(self, request: Request) -> Answer:
        response = self._client.send(request.content)
        if response.status != 200:
            return failure(str(response.status), response.body)
        return Answer(OK, length=len(response.body))

    def close(self) -> None:
        self._client.close()


def failure(status: str, body: bytes) -> Answer:
    """An answer that is none, with what it said."""
    return Answer(status, message=body[:300].decode(errors="replace"), length=len(body))


def requests_of(
    speaker: Speaker, kind: str, texts: list[Text], texts_per_request: int, seed: int
) -> list[Request]:
    """Every request that a user of a kind sends, in order; it starts again when they are through.

    Args:
        speaker: prepares them.
        kind: ``texts`` has ``texts_per_request`` in each; ``mixed`` has the shortest and the
            longest third of the texts, so that lengths near each other seldom meet.
        texts: of the scenario.
        texts_per_request: of ``texts``.
        seed: of the order.
    """
    order = list(texts)
    random.Random(seed).shuffle(order)
    if kind == "mixed":
        order.sort(key=lambda one: len(one.text))
        third = max(1, len(order) // 3)
        ends = zip(order[:third], reversed(order[-third:]), strict=False)
        order = [text for pair in ends for text in pair]
        random.Random(seed).shuffle(order)
    size = texts_per_request if kind == "texts" else 1
    return [speaker.prepare(order[at : at + size]) for at in range(0, len(order), size)]
