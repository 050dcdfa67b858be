"""OpenVINO's forward: torch's numbers, one of several in flight, and what is said without it."""

import sys
import threading

import numpy as np
import pytest
import torch

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.forward import TorchExecutor, load_to_serve
from muxserve.engine.openvino import OpenVinoExecutor
from muxserve.errors import InvalidInput
from muxserve.models.family import Family


def executor_of(family: Family, in_flight: int = 1, threads: int = 2) -> OpenVinoExecutor:
    return OpenVinoExecutor(
        family.models,
        pad_id=family.pad_id,
        padded_length=family.padded_length,
        max_length=family.spec.max_length,
        threads=threads,
        in_flight=in_flight,
    )


def rows_of(family: Family, lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, family.tokenizer.get_vocab_size(), length) for length in lengths]


def torch_logits(family: Family, n: int, rows: list[np.ndarray]) -> np.ndarray:
    one = TorchExecutor(
        family.models, pad_id=family.pad_id, padded_length=family.padded_length, threads=1
    )
    one.prepare()
    return one.run(n, rows)


@pytest.fixture(scope="module")
def tiny(tiny_family):
    family = Family.load(tiny_family)
    ours = executor_of(family, in_flight=2)
    ours.prepare()
    return family, ours


@pytest.mark.parametrize("groups", [1, 2, 7])
def test_logits_are_torchs_for_any_number_of_groups_and_any_lengths(tiny, groups):
    family, ours = tiny
    for n in family.widths:
        lengths = [2 + (3 * i) % (family.spec.max_length - 2) for i in range(groups * n)]
        rows = rows_of(family, lengths)
        np.testing.assert_allclose(ours.run(n, rows), torch_logits(family, n, rows), atol=1e-4)


def test_the_answer_of_a_batch_does_not_change_with_the_next(tiny):
    family, ours = tiny
    n = family.widths[-1]
    first = ours.run(n, rows_of(family, [5] * n))
    kept = first.copy()
    ours.run(n, rows_of(family, [5] * n, seed=1))
    assert (first == kept).all()


def test_forwards_of_several_threads_do_not_mix(tiny):
    family, ours = tiny
    batches = [rows_of(family, [4 + i] * 2, seed=i) for i in range(8)]
    expected = [torch_logits(family, 2, rows) for rows in batches]
    wrong: list[int] = []

    def serve(offset: int) -> None:
        ours.prepare()
        for index in range(offset, 80, 2):
            logits = ours.run(2, batches[index % 8])
            if not np.allclose(logits, expected[index % 8], atol=1e-4):
                wrong.append(index)

    threads = [threading.Thread(target=serve, args=(offset,)) for offset in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


def test_a_family_of_token_labels_gives_logits_of_each_token():
    family = load_to_serve("part-of-speech", "float32", [2], runtime="openvino")
    rows = rows_of(family, [6, 9])
    expected = torch_logits(family, 2, rows)
    ours = executor_of(family)
    ours.prepare()
    logits = ours.run(2, rows)
    assert logits.shape == expected.shape
    for row, length in enumerate([6, 9]):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], atol=1e-3)


def test_bfloat16_weights_are_multiplied_as_such_where_the_processor_can(tiny_family):
    family = Family.load(tiny_family, [2], dtype=torch.bfloat16)
    rows = rows_of(family, [7] * 2)
    ours = executor_of(family)
    ours.prepare()
    exact = torch_logits(Family.load(tiny_family), 2, rows)
    np.testing.assert_allclose(ours.run(2, rows), exact, atol=0.1)


def test_an_engine_serves_with_it_as_with_torch(tiny_family):
    texts = ["a good film", "bad", "not very good at all"]
    answers = []
    for runtime in ("torch", "openvino"):
        # At one N: which one is chosen follows the measured times, and those the machine.
        config = EngineConfig(runtime=runtime, dtype="float32", warm_up_s=0.3, num_instances=1)
        with Engine.from_family(tiny_family, config) as engine:
            answers.append(engine.classify(texts, raw_scores=True))
    for one, other in zip(*answers, strict=True):
        assert [entry.label for entry in one.labels] == [entry.label for entry in other.labels]
        np.testing.assert_allclose(
            [entry.score for entry in one.labels],
            [entry.score for entry in other.labels],
            atol=1e-3,
        )


def test_without_openvino_the_error_says_what_to_install(tiny_family, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InvalidInput, match=r"pip install 'muxserve\[openvino\]'"):
        Engine.from_family(tiny_family, EngineConfig(runtime="openvino"))


def test_nothing_is_reported_to_the_makers_of_openvino(tiny):
    assert tiny  # OpenVINO is loaded
    assert sys.modules["openvino_telemetry"] is None
