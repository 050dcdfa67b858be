"""Measuring a family: every text counts once, and partners change between groupings."""

import pytest
import torch

from muxserve.models.family import Family, member_logits
from muxserve.training import checksums
from muxserve.training.data.labelled import LabelledTexts
from muxserve.training.evaluation.groupings import grouped_predictions
from muxserve.training.evaluation.quality import calibration_error, evaluate_family
from muxserve.training.evaluation.stated import deviations, store_measured

WORDS = ["good", "bad", "film", "very", "not", "the"]
DATA = LabelledTexts(
    [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:2]],
    [index % 2 for index in range(len(WORDS) ** 2 * 2)],
)


@pytest.fixture(scope="module")
def family(tiny_family) -> Family:
    return Family.load(tiny_family)


@pytest.fixture(scope="module")
def rows(family) -> list[list[int]]:
    return [encoding.ids for encoding in family.tokenizer.encode_batch(DATA.texts)]


def test_at_one_the_prediction_is_the_models_own_whatever_the_grouping(family, rows):
    logits = grouped_predictions(family.models[1], rows, 1, seed=3)
    with torch.inference_mode():
        for row, got in zip(rows[:5], logits, strict=False):
            alone = member_logits(family.models[1], torch.tensor([row]), torch.ones(1, len(row)), 1)
            torch.testing.assert_close(got, alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n", [2, 5])
def test_partners_change_between_groupings_and_not_within_one(family, rows, n):
    one, again, other = (
        grouped_predictions(family.models[n], rows, n, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.isfinite(one).all()
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_measurement_says_what_it_was_measured_on(family):
    measured = evaluate_family(family, DATA, "words", groupings=3, progress=False)
    assert [one.num_instances for one in measured] == family.widths
    plain = measured[0]
    assert (plain.quality.std, plain.flip_rate) == (0.0, 0.0)
    for one in measured:
        assert one.quality.examples == len(DATA)
        assert one.quality.groupings == 3
        assert one.quality.dataset_sha256 == checksums.of_texts(DATA.texts)
        assert 0 <= one.flip_rate <= 1
    assert plain.ensembled == plain.quality.value, "copies of a text at N=1 all say the same"


def test_quality_is_told_by_length(family):
    long = LabelledTexts(["good " * 3, "good " * 20, "bad " * 20], [0, 1, 1])
    for one in evaluate_family(family, long, "x", groupings=2, progress=False):
        assert [(part.max_tokens, part.examples) for part in one.by_length] == [(16, 1), (32, 2)]
        parts = sum(part.value * part.examples for part in one.by_length) / 3
        assert parts == pytest.approx(one.quality.value, abs=1e-3)


def test_stated_figures_are_checked_against_measured_ones(family, tmp_path):
    measured = evaluate_family(family, DATA, "words", groupings=2, progress=False)
    spec = family.spec.model_copy(deep=True)
    assert deviations(spec, measured) == [f"N={n}: the family states no quality" for n in (1, 2, 5)]
    store_measured(spec, measured, tmp_path)
    spec = spec.model_copy(deep=True)
    assert deviations(spec, measured) == []
    spec.members[1].quality.value -= 0.1
    (told,) = deviations(spec, measured)
    assert told.startswith("N=2: accuracy is 0.")
    other = LabelledTexts(DATA.texts[:9], DATA.labels[:9])
    told = deviations(spec, evaluate_family(family, other, "few", groupings=2, progress=False))
    assert told[0] == "N=1: stated on other data (words)"


@pytest.mark.parametrize("figure", ["flip_rate", "ensembled", "calibration_error"])
def test_every_stated_figure_is_checked(family, tmp_path, figure):
    measured = evaluate_family(family, DATA, "words", groupings=2, progress=False)
    spec = family.spec.model_copy(deep=True)
    store_measured(spec, measured, tmp_path)
    spec = spec.model_copy(deep=True)
    # One text of 72 may be told otherwise, two may not.
    stated = getattr(spec.members[1], figure)
    setattr(spec.members[1], figure, stated + 0.9 / len(DATA))
    assert deviations(spec, measured) == []
    setattr(spec.members[1], figure, stated + 2 / len(DATA))
    (told,) = deviations(spec, measured)
    assert told.startswith(f"N=2: {figure.replace('_', ' ')} is ")
    setattr(spec.members[1], figure, None)
    assert deviations(spec, measured) == [f"N=2: the family states no {figure.replace('_', ' ')}"]


def test_what_was_measured_over_other_groupings_is_not_compared(family, tmp_path):
    spec = family.spec.model_copy(deep=True)
    store_measured(
        spec, evaluate_family(family, DATA, "words", groupings=2, progress=False), tmp_path
    )
    other = evaluate_family(family, DATA, "words", groupings=3, progress=False)
    assert deviations(spec, other)[0] == "N=1: stated over 2 groupings; measure as many"


def test_accuracy_is_one_where_the_labels_are_the_predictions(family, rows):
    guesses = grouped_predictions(family.models[1], rows, 1, seed=0).argmax(dim=-1).tolist()
    data = LabelledTexts(DATA.texts, guesses)
    assert evaluate_family(family, data, "own", progress=False)[0].quality.value == 1.0


def test_a_flip_rate_needs_two_groupings(family):
    with pytest.raises(ValueError, match="at least 2 groupings, got 1"):
        evaluate_family(family, DATA, "words", groupings=1)


def test_ensembling_averages_the_logits_of_all_groupings(family, rows):
    groupings = [grouped_predictions(family.models[5], rows, 5, seed=seed) for seed in range(3)]
    together = sum(groupings).argmax(dim=-1).tolist()
    data = LabelledTexts(DATA.texts, together)
    measured = evaluate_family(family, data, "own", groupings=3, progress=False)
    assert measured[-1].ensembled == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ([[9.0, -9.0], [-9.0, 9.0]], [0, 1], 0.0),  # sure and right
        ([[9.0, -9.0], [-9.0, 9.0]], [1, 0], 1.0),  # sure and wrong
        ([[0.0, 0.0], [0.0, 0.0]], [0, 1], 0.0),  # half sure, right half of the time
        ([[0.0, 0.0], [0.0, 0.0]], [1, 1], 0.5),
    ],
)
def test_calibration_error(logits, labels, expected):
    got = calibration_error(torch.tensor(logits), torch.tensor(labels))
    assert got == pytest.approx(expected, abs=1e-4)
