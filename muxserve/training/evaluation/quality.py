"""A family and examples in, the measured figures of each member out, over random groupings."""

import itertools
import statistics
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import torch
from tqdm import tqdm

from muxserve.models.family import Family
from muxserve.models.spec import LengthQuality, Quality
from muxserve.training import checksums
from muxserve.training.data.labelled import LabelledTexts, TaggedTexts
from muxserve.training.evaluation.examples import Examples, labelled_examples, tagged_examples
from muxserve.training.evaluation.groupings import grouped_predictions

#: Quality by length has a figure for texts of up to each of these tokens, and one for longer texts.
_LENGTH_STEPS = (16, 32, 64)
#: Bins of equal width that confidence is sorted into, for its calibration error.
_CONFIDENCE_BINS = 15


@dataclass(frozen=True)
class Measured:
    """One member's measurement.

    Attributes:
        num_instances: N.
        quality: share of right labels, its mean and standard deviation over the groupings.
        flip_rate: how often a prediction changes between two groupings.
        ensembled: share of right labels where a text's logits are averaged over all groupings, as
            if it took that many free slots.
        calibration_error: expected calibration error, its mean over the groupings.
        by_length: quality by the token count of the texts.
    """

    num_instances: int
    quality: Quality
    flip_rate: float
    ensembled: float
    calibration_error: float
    by_length: list[LengthQuality]


class MeasuredOn(NamedTuple):
    """Name of a data set and split, and the checksum of its texts."""

    name: str
    sha256: str


def evaluate_family(
    family: Family,
    data: LabelledTexts | TaggedTexts,
    dataset_name: str,
    *,
    groupings: int = 5,
    progress: bool = True,
) -> list[Measured]:
    """Measure every member of a family on labelled texts or words, see ``measure``.

    Args:
        family: a loaded family.
        data: texts or words with labels, in the family's order of labels.
        dataset_name: data set and split, as ``family.json`` is to name them.
        groupings: random groupings, at least 2.
        progress: show a bar.
    """
    length, side = family.spec.max_length, family.spec.truncation_side
    if isinstance(data, TaggedTexts):
        examples = tagged_examples(family.tokenizer, data, length, side)
    else:
        examples = labelled_examples(family.tokenizer, data, length, side)
    dataset = MeasuredOn(dataset_name, checksums.of_texts(data.texts))
    return measure(family, examples, dataset, groupings=groupings, progress=progress)


def measure(
    family: Family,
    examples: Examples,
    dataset: MeasuredOn,
    *,
    metric: str = "accuracy",
    groupings: int = 5,
    progress: bool = True,
) -> list[Measured]:
    """Measure every member of a family.

    Args:
        family: a loaded family.
        examples: the texts, and what is right.
        dataset: what they are of.
        metric: name of the share of right labels.
        groupings: random groupings, at least 2.
        progress: show a bar.

    Raises:
        ValueError: for fewer than 2 groupings.
    """
    if groupings < 2:
        raise ValueError(f"a flip rate needs at least 2 groupings, got {groupings}")
    labels = examples.labels
    measured = []
    total = len(family.models) * groupings
    with tqdm(total=total, unit="pass", disable=not progress) as bar:
        for n, model in family.models.items():
            logits = []
            for seed in range(groupings):
                logits.append(
                    grouped_predictions(
                        model,
                        examples.ids,
                        n,
                        firsts=examples.firsts,
                        seed=seed,
                        padded_length=family.padded_length,
                    )
                )
                bar.update()
            predictions = [one.argmax(dim=-1) for one in logits]
            scores = [accuracy(one, labels) for one in logits]
            flips = [float((a != b).float().mean()) for a, b in itertools.pairwise(predictions)]
            errors = [calibration_error(one, labels) for one in logits]
            quality = Quality(
                metric=metric,
                value=round(statistics.fmean(scores), 4),
                std=round(statistics.stdev(scores), 4),
                groupings=groupings,
                examples=len(labels),
                dataset=dataset.name,
                dataset_sha256=dataset.sha256,
                measured_on=date.today().isoformat(),
            )
            measured.append(
                Measured(
                    n,
                    quality,
                    flip_rate=round(statistics.fmean(flips), 4),
                    ensembled=round(accuracy(torch.stack(logits).mean(dim=0), labels), 4),
                    calibration_error=round(statistics.fmean(errors), 4),
                    by_length=_by_length(torch.stack(predictions) == labels, examples.lengths),
                )
            )
    return measured


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows [B, labels] whose largest logit is the label's, of [B] class ids."""
    return float((logits.argmax(dim=-1) == labels).float().mean())


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error (Guo et al., ICML 2017): |confidence - share right|, over bins.

    Args:
        logits: [B, labels].
        labels: [B] class ids.
    """
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    right = (predicted == labels).float()
    bin_of = (confidence * _CONFIDENCE_BINS).ceil().long().clamp(1, _CONFIDENCE_BINS) - 1
    gaps = torch.zeros(_CONFIDENCE_BINS).index_add_(0, bin_of, confidence - right)
    return float(gaps.abs().sum() / len(labels))


def _by_length(right: torch.Tensor, lengths: torch.Tensor) -> list[LengthQuality]:
    """Share of right answers [groupings, items] by the token count of each item's text."""
    shares = []
    edges = (0, *_LENGTH_STEPS, None)
    for low, high in itertools.pairwise(edges):
        among = lengths > (low or 0)
        if high is not None:
            among &= lengths <= high
        if among.any():
            value = round(float(right[:, among].float().mean()), 4)
            shares.append(LengthQuality(max_tokens=high, value=value, examples=int(among.sum())))
    return shares
