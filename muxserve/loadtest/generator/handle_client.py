"""The gevent side of ``handle_bridge``: one connection, many requests under way."""

import itertools
import socket
from typing import Any
from urllib.parse import urlsplit

import gevent
import orjson
from gevent.event import AsyncResult

from muxserve.loadtest.generator.requests import Answer, Request
from muxserve.loadtest.generator.tally import OK
from muxserve.loadtest.scenario.texts import Labels, Text


class HandleSpeaker:
    """Calls a deployment's handle; latency includes the way through the bridge."""

    name = "handle.classify"

    def __init__(self, url: str) -> None:
        """Connect to the bridge.

        Args:
            url: host:port of the bridge.
        """
        parts = urlsplit(url if "://" in url else f"tcp://{url}")
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0))
        self._numbers = itertools.count()
        self._waiting: dict[int, AsyncResult] = {}
        self._reader = gevent.spawn(self._read)

    def prepare(self, texts: list[Text]) -> Request:
        return Request(texts, [one.text for one in texts])

    def ask(self, request: Request) -> Answer:
        number, answered = next(self._numbers), AsyncResult()
        self._waiting[number] = answered
        try:
            self._socket.sendall(orjson.dumps({"id": number, "texts": request.content}) + b"\n")
            answer: dict[str, Any] = answered.get()
        finally:
            del self._waiting[number]
        if answer["status"] != OK:
            return Answer(answer["status"], message=answer["message"])
        labels: list[Labels] = []
        widths: list[int] = []
        for one in answer["answers"]:
            of_words = "word" in one[0]
            labels.append([entry["label"] for entry in one] if of_words else one[0]["label"])
            widths.append(one[0]["num_instances"])
        return Answer(OK, labels, widths)

    def close(self) -> None:
        self._reader.kill(block=False)
        self._socket.close()

    def _read(self) -> None:
        lines = self._socket.makefile("rb")
        try:
            for line in lines:
                answer = orjson.loads(line)
                if (waiting := self._waiting.get(answer["id"])) is not None:
                    waiting.set(answer)
        except OSError:
            pass
        for waiting in list(self._waiting.values()):
            waiting.set_exception(ConnectionResetError("the bridge to the handle has ended"))
