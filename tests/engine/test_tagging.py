"""Families that label words: from a text's characters to a label for each of its words."""

import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.engine.forward import TorchExecutor
from muxserve.engine.request import Request
from muxserve.engine.slots import unplan
from muxserve.engine.tokens import TextEncoder
from muxserve.errors import FamilyError, InvalidInput
from muxserve.models.family import Family, FamilySpec, member_logits
from tests.conftest import MAX_LENGTH, TAGS, tiny_tokenizer

CONFIG = {"warm_up_s": 0.3, "torch_threads": 1}
TEXT = "The good film, not bad!"


@pytest.fixture(scope="module")
def family(tiny_token_family) -> Family:
    return Family.load(tiny_token_family)


@pytest.fixture(scope="module")
def engine(family):
    with Engine(family, EngineConfig(**CONFIG)) as running:
        yield running


def test_every_word_has_its_place_in_the_text(engine):
    (answer,) = engine.tag([TEXT])
    words = [one.word for one in answer.words]
    assert [word.text for word in words] == ["The", "good", "film", ",", "not", "bad", "!"]
    assert all(TEXT[word.start : word.end] == word.text for word in words)
    assert {one.label for one in answer.words} <= set(TAGS)
    assert answer.num_instances == 1


def test_the_labels_are_the_models_own(engine, family):
    (answer,) = engine.tag([TEXT])
    ids = torch.tensor([family.tokenizer.encode(TEXT).ids])
    with torch.inference_mode():
        logits = member_logits(family.models[1], ids, torch.ones_like(ids), 1)[0]
    for one in answer.words:
        scores = logits[one.word.first].softmax(dim=-1)
        assert one.label == TAGS[int(scores.argmax())]
        assert one.score == pytest.approx(float(scores.max()), abs=1e-5)


def test_texts_of_several_lengths_in_one_batch_keep_their_own_words(family):
    texts = ["good " * count for count in (1, 7, 3, 12, 5)]
    with Engine(family, EngineConfig(**CONFIG, num_instances=5)) as wide:
        answers = wide.tag(texts)
    assert [len(answer.words) for answer in answers] == [1, 7, 3, 12, 5]
    assert {answer.num_instances for answer in answers} == {5}


def test_a_text_that_takes_every_slot_has_the_mean_of_them(family):
    """A lone text at N=5 fills all five slots; its logits are their mean, token by token."""
    with Engine(family, EngineConfig(**CONFIG, num_instances=5)) as wide:
        (answer,) = wide.tag([TEXT], raw_scores=True)
    ids = torch.tensor([family.tokenizer.encode(TEXT).ids] * 5)
    with torch.inference_mode():
        logits = member_logits(family.models[5], ids, torch.ones_like(ids), 5).mean(dim=0)
    for one in answer.words:
        assert one.score == pytest.approx(float(logits[one.word.first].max()), abs=1e-5)


def test_a_long_text_is_cut_and_says_so(engine):
    (answer,) = engine.tag(["good " * 60])
    assert answer.truncated
    assert len(answer.words) == MAX_LENGTH - 2  # [CLS] and [SEP]


def test_who_calls_for_the_other_task_is_told_the_name(engine, tiny_family):
    with pytest.raises(InvalidInput, match=r"labels words; call tag\(\)"):
        engine.classify([TEXT])
    with (
        Engine.from_family(tiny_family, EngineConfig(**CONFIG)) as texts,
        pytest.raises(InvalidInput, match=r"labels texts; call classify\(\)"),
    ):
        texts.tag([TEXT])


def test_a_failed_text_fails_alone(family):
    class Poisoned:
        in_flight, spreads = 1, False

        def __init__(self) -> None:
            self.real = TorchExecutor(
                family.models, pad_id=family.pad_id, padded_length=None, threads=1
            )

        def prepare(self) -> None:
            self.real.prepare()

        def run(self, n, rows, *, alone=False):
            if any(10 in row for row in rows):  # "very"
                raise RuntimeError("poison")
            return self.real.run(n, rows)

    with Engine(family, EngineConfig(**CONFIG), executor=Poisoned()) as running:
        done = threading.Event()
        tokens = running.encoder.encode(["good film", "very", "bad"])
        request = Request(tokens, on_done=lambda _: done.set())
        running.submit(request)
        assert done.wait(20)
    kinds = [type(outcome).__name__ for outcome in request.outcomes]
    assert kinds == ["Prediction", "ForwardFailed", "Prediction"]
    assert request.outcomes[0].logits.shape == (len(tokens[0].ids), len(TAGS))


@given(
    st.lists(st.sampled_from(["good", "bad", "qwerty", "Film", ",", "!", "a"]), min_size=1),
    st.sampled_from([" ", "  ", "\t"]),
)
def test_words_cover_what_stands_between_spaces(pieces, space):
    text = space.join(pieces)
    (tokens,) = TextEncoder(tiny_tokenizer(), 512, words=True).encode([text])
    assert "".join(word.text for word in tokens.words) == "".join(pieces)
    assert all(text[word.start : word.end] == word.text for word in tokens.words)
    firsts = [word.first for word in tokens.words]
    assert firsts == sorted(set(firsts))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_the_mean_over_slots_is_taken_token_by_token(texts, tokens, seed):
    rng = np.random.default_rng(seed)
    slots = list(range(texts)) + rng.integers(texts, size=3).tolist()
    logits = rng.normal(size=(len(slots), tokens, 2)).astype(np.float32)
    answers = unplan(logits, slots, texts)
    for text in range(texts):
        of_text = logits[[slot == text for slot in slots]]
        np.testing.assert_allclose(answers[text], of_text.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_words_have_one_label_each():
    with pytest.raises(ValueError, match="one label each"):
        FamilySpec(
            name="x",
            task="token-classification",
            problem_type="multi_label_classification",
            labels=TAGS,
            max_length=8,
            members=[{"num_instances": 1, "path": "w"}],
        )


def test_weights_of_the_other_task_are_refused(tiny_family, tiny_token_family, tmp_path):
    spec = (tiny_token_family / "family.json").read_text()
    (tmp_path / "family.json").write_text(spec.replace('"ADJ",', "").replace('"VERB"', '"X"'))
    (tmp_path / "tokenizer.json").write_bytes((tiny_family / "tokenizer.json").read_bytes())
    shutil.copytree(tiny_family / "weights", tmp_path / "weights")
    with pytest.raises(FamilyError, match=r"tensor classifier\.(weight|bias) is missing"):
        Family.load(tmp_path)
