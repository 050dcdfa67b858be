"""Each request has one fate, whatever became of it."""

import asyncio
import contextlib

import pytest

from muxserve.errors import DeadlineExceeded, ForwardFailed, InvalidInput, Overloaded
from muxserve.serving.fates import Fates

ERRORS = [
    (InvalidInput("x"), "refused"),
    (Overloaded("x"), "refused"),
    (DeadlineExceeded("x"), "expired"),
    (ForwardFailed("x"), "failed"),
    (ValueError("x"), "failed"),
    (asyncio.CancelledError(), "cancelled"),
]


@pytest.mark.parametrize(("error", "fate"), ERRORS, ids=[type(one).__name__ for one, _ in ERRORS])
def test_an_error_of_a_call_tells_its_fate(error: BaseException, fate: str):
    fates = Fates()
    under_way: list[tuple[int, dict[str, int]]] = []

    def fail():
        under_way.append(_counted(fates))
        raise error

    with pytest.raises(type(error)), fates.call():
        fail()
    assert under_way == [(1, {})]
    assert _counted(fates) == (1, {fate: 1})


@pytest.mark.parametrize(
    ("status", "fate"),
    [(200, "answered"), (422, "refused"), (503, "refused"), (504, "expired"), (500, "failed")],
)
def test_a_status_tells_the_fate(status: int, fate: str):
    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert _called(app) == (1, {fate: 1})


def test_a_client_that_went_before_its_answer_has_cancelled():
    async def silent(*_):
        return

    async def cancelled(*_):
        raise asyncio.CancelledError

    async def answered_first(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    assert _called(silent) == (1, {"cancelled": 1})
    assert _called(cancelled) == (1, {"cancelled": 1})
    assert _called(answered_first) == (1, {"answered": 1})


def _called(app) -> tuple[int, dict[str, int]]:
    fates = Fates()

    async def send(_):
        return

    async def main():
        with contextlib.suppress(asyncio.CancelledError):
            await fates.through(app, {"type": "http"}, None, send)

    asyncio.run(main())
    return _counted(fates)


def _counted(fates: Fates) -> tuple[int, dict[str, int]]:
    stats = fates.stats()
    return stats["received"], {fate: count for fate, count in stats["fates"].items() if count}
