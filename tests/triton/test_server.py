"""A real Triton server with exported families, queried over HTTP and gRPC by the stock clients."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.engine.forward import TorchExecutor
from muxserve.engine.request import Request, RequestOptions, Tokens
from muxserve.models.family import Family
from tests.conftest import MAX_LENGTH, PIECES
from tests.triton.asking import CLIENTS, Asker, batch_sizes, ids_array

pytestmark = pytest.mark.triton

TOLERANCE = 1e-4
CLIENTS_AT_ONCE = 64


@pytest.fixture(params=list(CLIENTS))
def ask(server, request) -> Iterator[Asker]:
    asker = Asker(server, request.param)
    yield asker
    asker.close()


@pytest.fixture(scope="module")
def family(tiny_family) -> Family:
    return Family.load(tiny_family)


@pytest.fixture(scope="module")
def engine(family) -> Iterator[Engine]:
    config = EngineConfig(num_instances=5, warm_up_s=0.2, torch_threads=1)
    with Engine(family, config) as running:
        yield running


@pytest.fixture(scope="module")
def plain(family) -> Iterator[Engine]:
    config = EngineConfig(num_instances=1, warm_up_s=0.2, torch_threads=1)
    with Engine(family, config) as running:
        yield running


def text(seed: int, length: int | None = None) -> list[int]:
    """The ids of one text; its length is random unless given."""
    rng = np.random.default_rng(seed)
    own = length or int(rng.integers(3, MAX_LENGTH + 1))
    return [2, *rng.integers(4, len(PIECES), own - 2).tolist(), 3]


def answers(engine: Engine, texts, **options) -> np.ndarray:
    """The engine's logits for one request, whose texts share groups only with each other."""
    tokens = [Tokens(np.array(one, dtype=np.int64)) for one in texts]
    request = Request(tokens, RequestOptions(**options))
    engine.submit(request)
    assert request.wait(60)
    return np.stack([outcome.logits for outcome in request.outcomes])


def grouped(family: Family, n: int, texts) -> np.ndarray:
    """The logits of texts in groups of N in order; the last group also fills its free slots."""
    groups = [list(range(at, min(at + n, len(texts)))) for at in range(0, len(texts), n)]
    slots = [group[i % len(group)] for group in groups for i in range(n)]
    executor = TorchExecutor(family.models, pad_id=0, padded_length=None, threads=1)
    logits = executor.run(n, [np.array(texts[i]) for i in slots])
    means = [
        logits[[at for at, i in enumerate(slots) if i == row]].mean(0) for row in range(len(texts))
    ]
    return np.stack(means)


# The same answers as the engine


def test_a_lone_text_is_answered_as_by_the_engine(ask, engine, plain):
    for seed in range(5):
        ids = text(seed)
        for model, other in (("tiny_n5", engine), ("tiny_n1", plain)):
            given = ask.ids(model, ids_array([ids]))
            assert np.abs(given["logits"] - answers(other, [ids])).max() < TOLERANCE
            assert given["num_instances"].tolist() == [[other.widths[0]]]


def test_a_group_of_mixed_lengths_is_answered_as_by_the_engine(ask, engine):
    texts = [text(seed, length) for seed, length in enumerate((4, 16, 9, 5, 12))]
    given = ask.ids("tiny_n5", ids_array(texts))["logits"]
    assert np.abs(given - answers(engine, texts)).max() < TOLERANCE
    # They did share a group: alone, each has a different answer.
    alone = np.concatenate([answers(engine, [one]) for one in texts])
    assert np.abs(given - alone).max() > TOLERANCE


@pytest.mark.parametrize("count", [2, 3, 4, 6, 7, 11])
def test_rows_that_are_not_a_multiple_of_n(ask, family, count):
    texts = [text(seed, 8) for seed in range(count)]
    given = ask.ids("tiny_n5", ids_array(texts))["logits"]
    assert np.abs(given - grouped(family, 5, texts)).max() < TOLERANCE


def test_the_elastic_model_says_which_n_served(ask, family):
    texts = [text(seed, 8) for seed in range(7)]
    given = ask.ids("tiny", ids_array(texts))
    served = set(given["num_instances"].ravel().tolist())
    assert len(served) == 1
    assert np.abs(given["logits"] - grouped(family, served.pop(), texts)).max() < TOLERANCE


def test_a_cap_on_n_is_kept(ask, plain):
    texts = [text(seed, 8) for seed in range(20)]
    given = ask.ids("tiny", ids_array(texts), max_num_instances=1)
    assert set(given["num_instances"].ravel().tolist()) == {1}
    assert np.abs(given["logits"] - answers(plain, texts)).max() < TOLERANCE


def test_tokens_are_labelled_as_by_the_engine(ask, tiny_token_family):
    config = EngineConfig(num_instances=5, warm_up_s=0.2, torch_threads=1)
    texts = [text(seed, length) for seed, length in enumerate((4, 9, 16))]
    given = ask.ids("tiny-tokens_n5", ids_array(texts))["logits"]
    with Engine(Family.load(tiny_token_family), config) as engine:
        tokens = [Tokens(np.array(one, dtype=np.int64)) for one in texts]
        request = Request(tokens)
        engine.submit(request)
        assert request.wait(60)
    for row, outcome in zip(given, request.outcomes, strict=True):
        own = outcome.logits
        assert np.abs(row[: len(own)] - own).max() < TOLERANCE
        assert not row[len(own) :].any()


# Many clients


@pytest.mark.parametrize("protocol", list(CLIENTS))
def test_many_clients_share_executions_and_each_gets_its_own_answer(server, protocol, engine):
    """Each request has groups of its own, so its answer equals the engine's for it alone."""
    before = batch_sizes(server, "tiny_n5")
    texts = [text(seed) for seed in range(4 * CLIENTS_AT_ONCE)]
    together = threading.Barrier(CLIENTS_AT_ONCE)
    local = threading.local()
    opened: list[Asker] = []

    def ask(index: int) -> np.ndarray:
        if not hasattr(local, "asker"):
            local.asker = Asker(server, protocol)
            opened.append(local.asker)
            together.wait(60)
        ids = ids_array([texts[index]])
        return local.asker.ids("tiny_n5", ids, isolation_key=str(index))["logits"]

    with ThreadPoolExecutor(CLIENTS_AT_ONCE) as pool:
        given = list(pool.map(ask, range(len(texts))))
    for asker in opened:
        asker.close()
    for ids, logits in zip(texts, given, strict=True):
        assert np.abs(logits - answers(engine, [ids])).max() < TOLERANCE
    after = batch_sizes(server, "tiny_n5")
    new = {size: count - before.get(size, 0) for size, count in after.items()}
    assert sum(size * count for size, count in new.items()) == len(texts)
    # Mixed lengths shared executions; how many depends on how fast this machine sends.
    assert sum(new.values()) < len(texts) * 3 / 4
    assert max(size for size, count in new.items() if count) > 5


def test_a_bad_request_fails_alone_among_many(server, ask, plain):
    """Good and bad requests at once, in the same executions."""
    bad = {1: [[2, 999, 3]], 5: [[2] * (MAX_LENGTH + 1)], 9: [[0, 0]]}
    said = {1: "is 999, expected a token id from 0 to", 5: "takes at most 32", 9: "no tokens"}
    good = [text(seed, 8) for seed in range(16)]

    def one(index: int):
        asker = Asker(server, "grpc")
        try:
            return asker.ids("tiny_n1", ids_array(bad.get(index, [good[index]])))["logits"]
        except InferenceServerException as error:
            return error
        finally:
            asker.close()

    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(one, range(16)))
    for index, answer in enumerate(given):
        if index in bad:
            assert said[index] in answer.message()
            assert "INVALID_ARGUMENT" in str(answer.status())
            with pytest.raises(InferenceServerException, match=r"input_ids\[0"):
                ask.ids("tiny_n1", ids_array(bad[index]))
        else:
            assert np.abs(answer - answers(plain, [good[index]])).max() < TOLERANCE


@pytest.mark.parametrize(
    ("ids", "dtype", "said"),
    [
        (np.array([[2, 5, 3]], dtype=np.int32), "INT32", "data-type"),
        (np.array([2, 5, 3], dtype=np.int64), "INT64", "shape"),
        (np.ones((1, 2, 3), dtype=np.int64), "INT64", "shape"),
        (np.full((2000, 3), 5, dtype=np.int64), "INT64", "batch-size"),
    ],
    ids=["dtype", "one dimension", "three dimensions", "too many rows"],
)
def test_a_wrong_type_or_shape_is_refused(ask, ids, dtype, said):
    with pytest.raises(InferenceServerException, match=said):
        ask.ids("tiny_n5", ids, dtype=dtype)
    assert ask.ids("tiny_n5", ids_array([text(0)]))["logits"].shape == (1, 2)


@pytest.mark.parametrize("parameters", [{"max_num_instances": 2}, {"isolation_key": 7}])
def test_a_bad_parameter_is_refused(ask, parameters):
    with pytest.raises(InferenceServerException, match="parameter"):
        ask.ids("tiny_n5", ids_array([text(0)]), **parameters)


def test_overload_is_refused_and_not_stalled(server):
    """A line of 4 texts and 64 clients: some are refused at once, and all get a reply."""
    refused, answered, slowest = [], [], []
    together = threading.Barrier(CLIENTS_AT_ONCE)

    def client(index: int) -> None:
        asker = Asker(server, "grpc")
        ids = ids_array([text(index)])
        together.wait(60)
        for _ in range(8):
            started = time.monotonic()
            try:
                asker.ids("short_line", ids, isolation_key=str(index))
                answered.append(index)
            except InferenceServerException as error:
                refused.append(f"{error.status()}: {error.message()}")
            slowest.append(time.monotonic() - started)
        asker.close()

    with ThreadPoolExecutor(CLIENTS_AT_ONCE) as pool:
        list(pool.map(client, range(CLIENTS_AT_ONCE)))
    assert len(refused) + len(answered) == 8 * CLIENTS_AT_ONCE
    assert set(refused) == {
        "StatusCode.UNAVAILABLE: the line is full: 4 texts wait; try again later"
    }
    assert answered
    # Far above the time of these tiny forwards, far below that of an unbounded line.
    assert max(slowest) < 10
    body = {
        "inputs": [{"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [2, 5, 3]}]
    }
    later = httpx.post(f"http://{server.http}/v2/models/short_line/infer", json=body, timeout=30)
    assert later.status_code == 200


# The text front


def classes(row) -> dict[str, float]:
    """Labels and scores from the classification extension's ``score:index:label``."""
    parts = [one.decode().split(":") for one in row]
    return {label: float(score) for score, _, label in parts}


def test_texts_get_labels_with_scores(ask, engine):
    texts = ["a good film", "not very good"]
    outputs = ("scores", "truncated", "num_instances")
    given = ask.texts("tiny_n5_text", texts, outputs)
    assert given["num_instances"].ravel().tolist() == [5, 5]
    assert given["truncated"].ravel().tolist() == [False, False]
    for row, answer in zip(given["scores"], engine.classify(texts), strict=True):
        expected = {one.label: one.score for one in answer.labels}
        found = classes(row)
        assert list(found) == [one.label for one in answer.labels]  # best first
        assert all(abs(found[label] - expected[label]) < TOLERANCE for label in expected)


def test_a_long_text_is_cut_and_that_is_said(ask, plain):
    long = "good " * 50
    given = ask.texts("tiny_text", [long], ("scores", "truncated"), max_num_instances=1)
    assert given["truncated"].tolist() == [[True]]
    (answer,) = plain.classify([long])
    assert abs(classes(given["scores"][0])[answer.labels[0].label] - answer.labels[0].score) < 1e-4
    with pytest.raises(InferenceServerException, match=r"text\[0\] has 52 tokens"):
        ask.texts("tiny_text", [long], ("scores",), truncate=False)


@pytest.mark.parametrize(
    ("bad", "said"), [("", "is empty"), (" \n", "is empty"), (b"\xff", "UTF-8")]
)
def test_a_text_that_is_none_is_refused(ask, bad, said):
    with pytest.raises(InferenceServerException, match=rf"text\[1\].*{said}"):
        ask.texts("tiny_text", ["good", bad], ("scores",))


def test_texts_of_many_clients_share_executions(server):
    before = batch_sizes(server, "tiny_n5")
    together = threading.Barrier(32)

    def client(index: int) -> None:
        asker = Asker(server, "grpc")
        together.wait(60)
        asker.texts("tiny_n5_text", ["good " * (index % 7 + 1)], ("scores",))
        asker.close()

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))
    after = batch_sizes(server, "tiny_n5")
    new = {size: count - before.get(size, 0) for size, count in after.items()}
    assert sum(size * count for size, count in new.items()) == 32
    assert sum(new.values()) <= 16


def test_words_get_labels(ask, tiny_token_family):
    texts = ["a good film", "not", "very bad a the"]
    outputs = ("words", "labels", "word_scores", "num_instances")
    given = ask.texts("tiny-tokens_n5_text", texts, outputs)
    config = EngineConfig(num_instances=5, warm_up_s=0.2, torch_threads=1)
    with Engine(Family.load(tiny_token_family), config) as engine:
        taggings = engine.tag(texts)
    for row, tagging in enumerate(taggings):
        count = len(tagging.words)
        assert [one.decode() for one in given["words"][row][:count]] == [
            one.word.text for one in tagging.words
        ]
        assert [one.decode() for one in given["labels"][row][:count]] == [
            one.label for one in tagging.words
        ]
        expected = [one.score for one in tagging.words]
        assert np.abs(given["word_scores"][row][:count] - expected).max() < TOLERANCE
        assert all(one == b"" for one in given["labels"][row][count:])


def test_the_readme_s_request_works_with_nothing_but_http(server):
    body = {
        "inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a good film"]}],
        "outputs": [{"name": "scores", "parameters": {"classification": 1}}],
    }
    url = f"http://{server.http}/v2/models/tiny_text/infer"
    answer = httpx.post(url, content=json.dumps(body), timeout=30)
    assert answer.status_code == 200
    score, _, label = answer.json()["outputs"][0]["data"][0].split(":")
    assert label in {"negative", "positive"}
    assert 0.5 <= float(score) <= 1
