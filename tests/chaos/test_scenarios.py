"""Every scenario, in its short form: other clients see no more of a failure than is promised."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.chaos.harness import SHORT, Server
from tests.chaos.scenarios import SCENARIOS, Scenario

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]


class Places:
    """The server that is being broken; only one at a time, because servers share the cores."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._place: Any = None
        self._server: Server | None = None

    def server(self, scenario: Scenario) -> Server:
        if self._server is None or self._place is not scenario.place:
            self.close()
            self._server = self._stack.enter_context(scenario.place())
            self._place = scenario.place
        return self._server

    def close(self) -> None:
        self._server = None
        self._stack.close()


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    places = Places()
    yield places
    places.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_others_get_what_is_promised(scenario: Scenario, places: Places):
    server = places.server(scenario)
    try:
        figures = asyncio.run(scenario.run(server, SHORT))
    except BaseException:
        places.close()  # the next scenario gets a new server
        raise
    assert figures["right"]
