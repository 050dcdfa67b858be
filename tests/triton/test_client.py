"""muxserve's client for Triton, against real servers: alive, killed, slow and wrong ones."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from muxserve.engine.request import Prediction
from muxserve.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from muxserve.loadtest.servers.muxserve import free_port
from muxserve.loadtest.servers.triton import TritonServer
from muxserve.models.family import Family
from muxserve.triton.client import TritonModel
from muxserve.triton.config import TritonConfig
from tests.conftest import PIECES

pytestmark = pytest.mark.triton

BOUND_S = 60


def texts(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [
        np.array([2, *rng.integers(4, len(PIECES), rng.integers(1, 20)), 3]) for _ in range(count)
    ]


def talk(
    family: Family, config: TritonConfig, conversation: Callable[[TritonModel], Awaitable[None]]
) -> None:
    """Run a conversation with a model; it must end within a time limit."""

    async def run() -> None:
        model = TritonModel(family, config)
        try:
            async with asyncio.timeout(BOUND_S):
                await conversation(model)
        finally:
            await model.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def family(tiny_family) -> Family:
    return Family.load(tiny_family, widths=[])


@pytest.fixture
def own_server(triton_environment, exported, tmp_path):
    """A server with one model, for tests to kill."""
    (tmp_path / "models").mkdir()
    for name in ("tiny_n5",):
        (tmp_path / "models" / name).symlink_to(exported.folder / name)
    server = TritonServer(tmp_path / "models", environment=triton_environment).start()
    yield server
    server.stop()


def test_texts_are_answered_in_order_in_as_many_calls_as_triton_takes(server, family, plain_logits):
    asked = texts(2100)  # Triton takes 1024 of them at once

    async def conversation(model: TritonModel) -> None:
        outcomes = await model.predict(asked)
        assert {outcome.num_instances for outcome in outcomes} == {1}
        logits = np.stack([outcome.logits for outcome in outcomes])
        assert np.abs(logits - plain_logits(asked)).max() < 1e-4
        assert model.counters.calls == 3
        stats = await model.stats()
        assert stats["ready"]
        assert stats["texts"] >= 2100
        assert stats["batches"] >= 3

    talk(family, TritonConfig(url=server.grpc, model="tiny_n1"), conversation)


@pytest.fixture(scope="module")
def plain_logits(tiny_family):
    from muxserve.engine.forward import TorchExecutor

    executor = TorchExecutor(
        Family.load(tiny_family, [1]).models, pad_id=0, padded_length=None, threads=1
    )
    return lambda rows: executor.run(1, rows)


def test_tokens_come_without_padding(server, tiny_token_family):
    asked = texts(5)

    async def conversation(model: TritonModel) -> None:
        for one, outcome in zip(asked, await model.predict(asked), strict=True):
            assert outcome.logits.shape == (len(one), 3)
            assert outcome.num_instances == 5

    family = Family.load(tiny_token_family, widths=[])
    talk(family, TritonConfig(url=server.grpc, model="tiny-tokens_n5"), conversation)


def test_options_reach_the_planner(server, family):
    async def conversation(model: TritonModel) -> None:
        outcomes = await model.predict(texts(30), max_num_instances=2, isolation_key="x")
        assert {outcome.num_instances for outcome in outcomes} <= {1, 2}

    talk(family, TritonConfig(url=server.grpc, model="tiny"), conversation)


def test_a_text_that_triton_refuses_fails_alone(server, family):
    asked = texts(9)
    asked[4] = np.array([2, 9999, 3])

    async def conversation(model: TritonModel) -> None:
        outcomes = await model.predict(asked)
        assert [isinstance(one, Prediction) for one in outcomes] == [True] * 4 + [False] + [
            True
        ] * 4
        assert isinstance(outcomes[4], InvalidInput)
        assert "is 9999" in outcomes[4].message

    talk(family, TritonConfig(url=server.grpc, model="tiny_n5"), conversation)


def test_a_full_line_is_overloaded_and_not_unreachable(server, family):
    async def conversation(model: TritonModel) -> None:
        answers = await asyncio.gather(
            *(model.predict([one], isolation_key=str(i)) for i, one in enumerate(texts(200)))
        )
        outcomes = [outcome for (outcome,) in answers]
        refused = [one for one in outcomes if not isinstance(one, Prediction)]
        assert refused
        assert {type(one) for one in refused} == {Overloaded}
        assert "the line is full" in refused[0].message
        assert model.counters.refused == len(refused)
        assert isinstance((await model.predict(texts(1)))[0], Prediction)

    talk(family, TritonConfig(url=server.grpc, model="short_line"), conversation)


def test_a_model_of_another_family_is_not_asked(server, tiny_token_family, family):
    async def conversation(model: TritonModel) -> None:
        (outcome,) = await model.predict(texts(1))
        assert isinstance(outcome, NotReady)
        assert "is not of this family: its labels" in outcome.message
        assert not await model.ready()

    config = TritonConfig(url=server.grpc, model="tiny-tokens_n5", wait_s=0.5)
    talk(family, config, conversation)


def test_an_unknown_model_is_told(server, family):
    async def conversation(model: TritonModel) -> None:
        (outcome,) = await model.predict(texts(1))
        assert isinstance(outcome, NotReady)
        assert "the model nothing of Triton at" in outcome.message
        assert not (await model.stats())["ready"]

    talk(family, TritonConfig(url=server.grpc, model="nothing", wait_s=0.5), conversation)


def test_a_deadline_is_kept(server, family):
    async def conversation(model: TritonModel) -> None:
        assert await model.ready()
        (late,) = await model.predict(texts(1), deadline_s=time.monotonic() - 1)
        assert isinstance(late, DeadlineExceeded)
        (fine,) = await model.predict(texts(1), deadline_s=time.monotonic() + BOUND_S)
        assert isinstance(fine, Prediction)

    talk(family, TritonConfig(url=server.grpc, model="tiny_n5"), conversation)


def test_without_a_server_texts_are_refused_in_bounded_time(family):
    async def conversation(model: TritonModel) -> None:
        for _ in range(2):
            started = time.monotonic()
            (outcome,) = await model.predict(texts(1))
            assert isinstance(outcome, NotReady)
            assert outcome.retry_after_s > 0
            assert time.monotonic() - started < 10
        assert model.counters.unreachable == 2

    talk(family, TritonConfig(url=f"127.0.0.1:{free_port()}", wait_s=0.3), conversation)


def test_service_resumes_by_itself_when_a_killed_server_is_back(own_server, family):
    async def conversation(model: TritonModel) -> None:
        assert isinstance((await model.predict(texts(1)))[0], Prediction)
        own_server.kill()
        outcomes = []
        for _ in range(20):
            outcomes += await model.predict(texts(3))
        assert {type(one) for one in outcomes} == {NotReady}
        assert not await model.ready()
        own_server.start(wait=False)
        while not isinstance((await model.predict(texts(1)))[0], Prediction):
            await asyncio.sleep(0.05)
        assert await model.ready()

    config = TritonConfig(url=own_server.grpc, model="tiny_n5", wait_s=0.3)
    talk(family, config, conversation)


def test_a_call_is_sent_again_when_the_server_is_back_soon(own_server, family):
    async def conversation(model: TritonModel) -> None:
        assert await model.ready()
        own_server.kill()
        asking = asyncio.create_task(model.predict(texts(3)))
        await asyncio.to_thread(own_server.start)
        assert all(isinstance(one, Prediction) for one in await asking)

    config = TritonConfig(url=own_server.grpc, model="tiny_n5", wait_s=30)
    talk(family, config, conversation)


def test_the_death_of_a_model_s_process_is_told_until_the_server_is_restarted(own_server, family):
    """Triton 24.10 does not restart a killed process, and still calls its model ready."""

    async def conversation(model: TritonModel) -> None:
        assert await model.ready()
        os.kill(stub_of(own_server), signal.SIGKILL)
        (outcome,) = await model.predict(texts(1))
        assert isinstance(outcome, NotReady)
        assert "is not healthy" in outcome.message
        assert not await model.ready()
        own_server.kill()
        await asyncio.to_thread(own_server.start)
        while not isinstance((await model.predict(texts(1)))[0], Prediction):
            await asyncio.sleep(0.05)
        assert await model.ready()

    config = TritonConfig(url=own_server.grpc, model="tiny_n5", wait_s=0.5)
    talk(family, config, conversation)


def test_a_server_that_hangs_is_given_up(own_server, family):
    async def conversation(model: TritonModel) -> None:
        assert await model.ready()
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            (late,) = await model.predict(texts(1), deadline_s=time.monotonic() + 0.2)
            assert isinstance(late, DeadlineExceeded)
            (outcome,) = await model.predict(texts(1))
            assert isinstance(outcome, NotReady)
            assert "no answer within 0.5 s" in outcome.message
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        while not isinstance((await model.predict(texts(1)))[0], Prediction):
            await asyncio.sleep(0.05)

    config = TritonConfig(url=own_server.grpc, model="tiny_n5", wait_s=0.3, call_timeout_s=0.5)
    talk(family, config, conversation)


def stub_of(server: TritonServer) -> int:
    """The process in which Triton runs the model's Python."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parent = int(status.rsplit(")", 1)[1].split()[1])
        if parent == server.pid and b"triton_python_backend_stub" in command:
            return int(folder.name)
    raise AssertionError("the server has no model process")
