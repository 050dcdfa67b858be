"""The code that runs inside Triton, tested without it: slots, failures and options."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxserve.engine.scores import label_scores
from muxserve.models.family import FamilySpec, Member
from muxserve.triton.runtime.batches import SlotFiller, Text, activate
from muxserve.triton.runtime.facts import FACTS_FILE, Facts, Tuning
from muxserve.triton.runtime.rows import Options, Refused, read_options, read_rows
from muxserve.triton.runtime.texts import TextRows
from tests.conftest import tiny_tokenizer

FACTS = Facts(
    labels=["a", "b"],
    problem_type="single_label_classification",
    of_tokens=False,
    max_length=16,
    padded_length=None,
    pad_id=0,
    vocab_size=50,
    widths=[1, 2, 5],
)
POISON = 13


@pytest.mark.parametrize(("side", "kept"), [("left", "good"), ("right", "bad")])
def test_a_text_front_cuts_where_the_family_says(side, kept):
    facts = replace(FACTS, truncation_side=side)
    rows = TextRows(tiny_tokenizer(), facts).encode(["bad " * 16 + "good " * 16])
    assert rows[0].encoding.tokens == ["[CLS]", *[kept] * 14, "[SEP]"]


def test_facts_of_an_older_export_are_read(tmp_path):
    FACTS.write(tmp_path)
    stored = json.loads((tmp_path / FACTS_FILE).read_text())
    del stored["truncation_side"]
    (tmp_path / FACTS_FILE).write_text(json.dumps(stored))
    assert Facts.read(tmp_path).truncation_side == "right"


class Adder:
    """A forward whose logits are a row's sum and first id; it fails for poison."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, np.ndarray]] = []

    def __call__(self, n: int, ids: np.ndarray) -> np.ndarray:
        assert len(ids) % n == 0
        assert (ids[:, 0] != FACTS.pad_id).all() or not ids.any()
        self.batches.append((n, ids))
        if (ids == POISON).any():
            raise RuntimeError("poison")
        return np.stack([ids.sum(1), ids[:, 0]], axis=1).astype(np.float32)


def filler(**tuning) -> tuple[SlotFiller, Adder]:
    forward = Adder()
    made = SlotFiller(FACTS, Tuning(warm_up_s=0.01, max_groups=4, **tuning), forward)
    made.warm_up()
    forward.batches.clear()
    return made, forward


def text(*ids: int, **options) -> Text:
    return Text(np.array(ids), Options(**options))


lines = st.lists(
    st.tuples(
        st.lists(st.integers(1, 12), min_size=1, max_size=16),
        st.sampled_from([None, 1, 2]),
        st.sampled_from([None, "x", "y"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(lines)
def test_every_text_is_answered_once_within_its_cap_and_with_its_own_key(line):
    made, forward = filler()
    texts = [text(*ids, max_num_instances=cap, isolation_key=key) for ids, cap, key in line]
    settled = [one for batch in made.answer(texts) for one in batch]
    assert sorted(map(id, settled)) == sorted(map(id, texts))
    for one in texts:
        assert one.logits is not None
        assert one.logits.tolist() == [one.ids.sum(), one.ids[0]]
        assert one.num_instances <= (one.options.max_num_instances or 5)
    assert sum(len(ids) for _, ids in forward.batches) >= len({t.ids.tobytes() for t in texts})


def test_texts_of_different_keys_never_share_a_group():
    made, forward = filler()
    marked = [text(1, i + 1, isolation_key="one" if i % 2 else "two") for i in range(10)]
    list(made.answer(marked))
    for n, ids in forward.batches:
        for group in ids.reshape(-1, n, ids.shape[1]):
            assert len({int(row[1]) % 2 for row in group}) == 1


def test_texts_with_a_key_each_are_not_repeated_in_wide_groups():
    made, forward = filler(latency_target_ms=0.001)
    line = [text(1, i + 1, isolation_key=str(i)) for i in range(40)]
    list(made.answer(line))
    assert {n for n, _ in forward.batches} == {1}


def test_equal_texts_are_computed_once():
    made, forward = filler()
    equal = [text(1, 2, 3) for _ in range(7)]
    list(made.answer(equal))
    assert sum(len(ids) // n for n, ids in forward.batches) == 1
    assert all(one.logits is not None for one in equal)


def test_a_failed_forward_fails_the_culprit_alone():
    made, _ = filler(latency_target_ms=0.001)
    line = [text(1, i + 1) for i in range(11)] + [text(1, POISON)]
    list(made.answer(line))
    assert [one.failure is None for one in line] == [True] * 11 + [False]
    assert "poison" in str(line[-1].failure)


@pytest.mark.parametrize(
    "problem_type", ["single_label_classification", "multi_label_classification", "regression"]
)
def test_scores_are_the_engine_s(problem_type):
    spec = FamilySpec(
        name="x",
        task="sequence-classification",
        problem_type=problem_type,
        labels=["a", "b", "c"],
        max_length=8,
        members=[Member(num_instances=1, path="weights")],
    )
    logits = np.array([2.0, -1.0, 0.5], dtype=np.float32)
    by_label = {one.label: one.score for one in label_scores(logits, spec)}
    scores = activate(logits[None], problem_type)[0]
    assert [by_label[label] for label in spec.labels] == pytest.approx(scores.tolist())


def test_padding_at_the_end_of_a_text_is_not_part_of_it():
    rows = read_rows("input_ids", np.array([[1, 0, 2, 0], [3, 0, 0, 0]]), FACTS)
    assert [row.tolist() for row in rows] == [[1, 0, 2], [3]]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[1, 50]], r"input_ids\[0, 1\] is 50, expected a token id from 0 to 49"),
        ([[1, 2], [-1, 2]], r"input_ids\[1, 0\] is -1"),
        ([[1], [0]], r"input_ids\[1\] has no tokens"),
        ([[1] * 17], r"input_ids\[0\] has 17 tokens, the model takes at most 16"),
        ([1, 2], r"expected shape \[texts, tokens\], got \[2\]"),
    ],
)
def test_a_bad_array_is_refused_with_its_place(ids, said):
    with pytest.raises(Refused, match=said):
        read_rows("input_ids", np.array(ids), FACTS)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ('{"max_num_instances": "2"}', "expected an integer, got '2'"),
        ('{"max_num_instances": 0}', "the narrowest N here is 1, got 0"),
        ('{"isolation_key": 3}', "expected a string, got 3"),
    ],
)
def test_a_bad_parameter_is_refused(parameters, said):
    with pytest.raises(Refused, match=said):
        read_options(parameters, 1)


def test_a_bad_setting_of_config_pbtxt_is_named():
    with pytest.raises(ValueError, match="parameter threads: 'two' is not a number"):
        Tuning.of_parameters({"threads": "two"})
    with pytest.raises(ValueError, match="parameter max_groups: must be at least 1"):
        Tuning.of_parameters({"max_groups": "0"})
    assert Tuning.of_parameters({"family": "x", "threads": "2"}) == Tuning(threads=2)
