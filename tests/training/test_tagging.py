"""Words with tags: read, encoded, learnt and measured."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muxserve.models import MuxBertForTokenClassification
from muxserve.models.family import Family
from muxserve.models.heads import IGNORED
from muxserve.training.data.labelled import TaggedTexts, read_tagged
from muxserve.training.data.tags import tagged_rows
from muxserve.training.distil.family import save_family
from muxserve.training.distil.goals import token_goals
from muxserve.training.distil.multiplex import distill
from muxserve.training.evaluation.examples import tagged_examples
from muxserve.training.evaluation.groupings import grouped_predictions
from muxserve.training.evaluation.quality import evaluate_family
from muxserve.training.recipe import DistillSettings
from tests.conftest import TAGS, tiny_config, tiny_tokenizer

#: A language of which every word has one tag.
TAG_OF = {"good": 0, "bad": 0, "film": 1, "a": 1, "not": 2, "very": 2}
SENTENCES = [list(words) for words in itertools.product(TAG_OF, repeat=3)]
DATA = TaggedTexts(SENTENCES, [[TAG_OF[word] for word in words] for words in SENTENCES])


def learner() -> MuxBertForTokenClassification:
    torch.manual_seed(0)
    names = dict(enumerate(TAGS))
    return MuxBertForTokenClassification(
        tiny_config(
            retrieval_head=True,
            learn_muxing=True,
            id2label=names,
            label2id={name: index for index, name in names.items()},
        )
    )


def test_each_word_is_read_at_its_first_token():
    texts = TaggedTexts([["very", "qwx", "film's", "not"]], [[0, 1, 2, 0]])
    rows = tagged_rows(tiny_tokenizer(), texts, 32)
    tokens = tiny_tokenizer().encode("very qwx film's not").tokens
    assert tokens == ["[CLS]", "very", "q", "##w", "##x", "film", "[UNK]", "s", "not", "[SEP]"]
    assert rows.firsts == [[1, 2, 5, 8]]
    x = IGNORED
    # What the tokenizer sees as words of their own, as a server does, has the tag too.
    assert rows.labels == [[x, 0, 1, x, x, 2, 2, 2, 0, x]]


def test_a_word_that_is_cut_off_has_no_token_and_no_right_answer():
    texts = TaggedTexts([["good", "bad", "film"]], [[0, 0, 1]])
    examples = tagged_examples(tiny_tokenizer(), texts, 4)
    assert examples.firsts == [[1, 2, None]]
    assert examples.labels.tolist() == [0, 0, -1]
    assert examples.lengths.tolist() == [4, 4, 4]


@given(st.lists(st.lists(st.integers(-100, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_goals_ask_for_every_label_and_for_nothing_else(labels):
    known = [[label if label >= 0 else -100 for label in row] for row in labels]
    goals = token_goals(known, 3, ignored=-100)
    length = max(map(len, known)) + 2
    logits, asked = goals.batch(range(len(known)), length, torch.device("cpu"))
    for row, wanted in enumerate(known):
        padded = wanted + [-100] * (length - len(wanted))
        assert asked[row].tolist() == [label >= 0 for label in padded]
        for place, label in enumerate(padded):
            if label >= 0:
                assert int(logits[row, place].argmax()) == label


def test_every_width_learns_to_tag(tmp_path):
    rows = tagged_rows(tiny_tokenizer(), DATA, 32)
    settings = DistillSettings(
        steps=150,
        groups=4,
        single_texts=4,
        retrieval_share=0.1,
        encoder_learning_rate=3e-3,
        new_learning_rate=3e-3,
    )
    model = distill(
        learner(), rows.ids, token_goals(rows.labels, 3, IGNORED), settings, tmp_path / "x.pt"
    )
    save_family(model, tiny_tokenizer(), tmp_path / "family", name="tagger")
    family = Family.load(tmp_path / "family")
    assert family.spec.of_tokens
    measured = evaluate_family(family, DATA, "sentences", groupings=2, progress=False)
    values = [one.quality.value for one in measured]
    assert values[0] > 0.95
    assert values[1] > 0.6, "guessing gives 0.33"
    assert [one.quality.examples for one in measured] == [3 * len(DATA)] * 3
    assert sum(length.examples for length in measured[0].by_length) == 3 * len(DATA)


def test_words_are_measured_in_the_order_of_the_texts(tiny_token_family):
    family = Family.load(tiny_token_family)
    examples = tagged_examples(family.tokenizer, DATA, 32)
    together = grouped_predictions(
        family.models[1], examples.ids, 1, firsts=examples.firsts, seed=1
    )
    for index in (0, 7, 100):
        alone = grouped_predictions(
            family.models[1], [examples.ids[index]], 1, firsts=[examples.firsts[index]], seed=0
        )
        torch.testing.assert_close(together[3 * index : 3 * index + 3], alone)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "tags": ["NOUN", "VERB"]}, "line 2: 1 words, but 2 tags"),
        ({"tokens": ["a"], "tags": ["GREAT"]}, "line 2: unknown tag 'GREAT'; known: ADJ, NOUN"),
        ({"tokens": [], "tags": []}, "line 2: tokens is empty"),
        ({"tokens": ["a", " "], "tags": ["NOUN", "NOUN"]}, "has an empty entry"),
        ({"tokens": "a", "tags": ["NOUN"]}, "line 2: tokens is not a list of strings"),
        ({"words": ["a"], "tags": ["NOUN"]}, "line 2: no column 'tokens'; columns: words, tags"),
    ],
)
def test_a_bad_row_of_tags_is_named(tmp_path, row, message):
    file = tmp_path / "a.jsonl"
    good = {"tokens": ["film"], "tags": ["NOUN"]}
    file.write_text("\n".join(json.dumps(one) for one in (good, row)))
    with pytest.raises(ValueError, match=message) as refused:
        read_tagged(file, TAGS)
    assert str(file) in str(refused.value)


def test_tags_are_not_read_from_csv(tmp_path):
    with pytest.raises(ValueError, match=r"expected a \.jsonl or"):
        read_tagged(tmp_path / "a.csv", TAGS)
