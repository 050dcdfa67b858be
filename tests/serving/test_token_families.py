"""Families that label words, over HTTP and in bundles: a real engine, in this process."""

import asyncio
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from huggingface_hub import TokenClassificationOutputElement
from hypothesis import given
from hypothesis import strategies as st

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.request import Prediction, RequestOptions
from muxserve.errors import ForwardFailed
from muxserve.serving.backend import LocalBackend
from muxserve.serving.bundles import pack, pack_answer, unpack_answer
from muxserve.serving.config import LimitsConfig
from muxserve.serving.protocols.http import create_app
from muxserve.serving.ray.replica import predict_bundle
from muxserve.serving.service import TextService

TEXT = "The good film, not bad!"
WORDS = ["The", "good", "film", ",", "not", "bad", "!"]


@pytest.fixture(scope="module")
def engine(tiny_token_family) -> Iterator[Engine]:
    with Engine.from_family(tiny_token_family, EngineConfig(warm_up_s=0.3)) as running:
        yield running


def ask(engine: Engine, path: str, body: object) -> httpx.Response:
    service = TextService(
        engine.family.spec, engine.encoder, LocalBackend(engine), LimitsConfig(), most_texts=512
    )

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://muxserve") as client:
            return await client.post(path, json=body)

    return asyncio.run(one())


def test_predict_answers_with_a_label_for_each_word(engine):
    reply = ask(engine, "/predict", {"inputs": TEXT})
    assert reply.status_code == 200
    entries = reply.json()
    assert [entry["word"] for entry in entries] == WORDS
    assert all(TEXT[entry["start"] : entry["end"]] == entry["word"] for entry in entries)
    (tagging,) = engine.tag([TEXT])
    assert [entry["label"] for entry in entries] == [one.label for one in tagging.words]
    assert {entry["num_instances"] for entry in entries} == {1}
    assert reply.headers["x-muxserve-num-instances"] == "1"


def test_a_list_of_texts_gets_a_list_of_lists(engine):
    entries = ask(engine, "/predict", {"inputs": [TEXT, "bad"]}).json()
    assert [len(one) for one in entries] == [len(WORDS), 1]


def test_the_hugging_face_client_reads_the_answer(engine):
    body = {"inputs": TEXT, "parameters": {"aggregation_strategy": "first"}}
    reply = ask(engine, "/", body)
    elements = TokenClassificationOutputElement.parse_obj_as_list(reply.json())
    assert [element.word for element in elements] == WORDS
    assert all(element.entity_group and 0 <= element.score <= 1 for element in elements)


def test_labels_can_be_left_out(engine):
    (tagging,) = engine.tag([TEXT])
    ignored = tagging.words[0].label
    body = {"inputs": TEXT, "parameters": {"ignore_labels": [ignored]}}
    found = [entry["entity_group"] for entry in ask(engine, "/", body).json()]
    assert found == [one.label for one in tagging.words if one.label != ignored]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"aggregation_strategy": "simple"}, "parameters.aggregation_strategy"),
        ({"top_k": 1}, "parameters.top_k"),
        ({"ignore_labels": "NOUN"}, "parameters.ignore_labels"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(engine, parameters, field):
    reply = ask(engine, "/", {"inputs": TEXT, "parameters": parameters})
    assert reply.status_code == 422
    assert reply.json()["field"] == field


def test_truncation_is_said_at_every_word(engine):
    reply = ask(engine, "/predict", {"inputs": "good " * 60})
    assert all(entry["truncated"] is True for entry in reply.json())
    assert reply.headers["x-muxserve-truncated"] == "1"


def test_a_bundle_brings_every_token_back(engine):
    requests = [
        (engine.encoder.encode(texts), options)
        for texts, options in (([TEXT], RequestOptions()), (["bad", "good film"], RequestOptions()))
    ]
    outcomes = unpack_answer(asyncio.run(predict_bundle(engine, pack(requests, 0.0))))
    lengths = [len(one.ids) for tokens, _ in requests for one in tokens]
    assert [outcome.logits.shape for outcome in outcomes] == [(length, 3) for length in lengths]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_what_is_packed_of_tokens_comes_out_again(lengths):
    """A length of 0 stands for a text that failed."""
    outcomes = [
        Prediction(np.full((length, 3), index, np.float32), 2) if length else ForwardFailed("no")
        for index, length in enumerate(lengths)
    ]
    again = unpack_answer(pack_answer(outcomes, 3, of_tokens=True))
    for index, (length, outcome) in enumerate(zip(lengths, again, strict=True)):
        if length:
            assert outcome.logits.shape == (length, 3)
            assert (outcome.logits == index).all()
        else:
            assert isinstance(outcome, ForwardFailed)
