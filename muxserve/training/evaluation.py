"""Measuring a family: quality and flip rate of each member, over random groupings.

The groupings are near in length, as the engine plans them, with other partners every time.
"""

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from muxserve.models.family import Family, FamilySpec, Quality, member_logits, write_spec
from muxserve.training.data import LabelledTexts, checksum, pad_batch

#: Partners are drawn among texts whose lengths differ by about this many tokens.
_LENGTH_JITTER_TOKENS = 2.0


@dataclass(frozen=True)
class Measured:
    """One member's measurement.

    Attributes:
        num_instances: N.
        quality: share of right labels, its mean and standard deviation over the groupings.
        flip_rate: how often a prediction changes between two groupings.
        ensembled: share of right labels where a text's logits are averaged over all groupings, as
            where it takes that many free slots.
        calibration_error: expected calibration error, its mean over the groupings.
    """

    num_instances: int
    quality: Quality
    flip_rate: float
    ensembled: float
    calibration_error: float


def evaluate_family(
    family: Family,
    data: LabelledTexts,
    dataset_name: str,
    *,
    metric: str = "accuracy",
    groupings: int = 5,
    progress: bool = True,
) -> list[Measured]:
    """Measure every member of a family.

    Args:
        family: a loaded family.
        data: texts with labels, in the family's order of labels.
        dataset_name: data set and split, as it is to be written down.
        metric: what the share of right labels is called.
        groupings: random groupings, at least 2.

    Raises:
        ValueError: for fewer groupings.
    """
    if groupings < 2:
        raise ValueError(f"a flip rate needs at least 2 groupings, got {groupings}")
    family.tokenizer.enable_truncation(family.spec.max_length)
    rows = [encoding.ids for encoding in family.tokenizer.encode_batch(data.texts)]
    labels = torch.tensor(data.labels)
    bar = tqdm(total=len(family.models) * groupings, unit="pass", disable=not progress)
    measured = []
    for n, model in family.models.items():
        logits = []
        for seed in range(groupings):
            logits.append(
                grouped_predictions(model, rows, n, seed=seed, padded_length=family.padded_length)
            )
            bar.update()
        predictions = [one.argmax(dim=-1) for one in logits]
        together = torch.stack(logits).mean(dim=0).argmax(dim=-1)
        scores = [float((guess == labels).float().mean()) for guess in predictions]
        flips = [float((a != b).float().mean()) for a, b in itertools.pairwise(predictions)]
        quality = Quality(
            metric=metric,
            value=round(statistics.fmean(scores), 4),
            std=round(statistics.stdev(scores), 4),
            groupings=groupings,
            examples=len(data),
            dataset=dataset_name,
            dataset_sha256=checksum(data.texts),
            measured_on=date.today().isoformat(),
        )
        errors = [calibration_error(one, labels) for one in logits]
        measured.append(
            Measured(
                n,
                quality,
                flip_rate=round(statistics.fmean(flips), 4),
                ensembled=round(float((together == labels).float().mean()), 4),
                calibration_error=round(statistics.fmean(errors), 4),
            )
        )
    bar.close()
    return measured


def store_measured(spec: FamilySpec, measured: Sequence[Measured], folder: Path) -> None:
    """Write measured figures into the ``family.json`` of a folder."""
    by_n = {one.num_instances: one for one in measured}
    for member in spec.members:
        if member.num_instances in by_n:
            member.quality = by_n[member.num_instances].quality
            member.flip_rate = by_n[member.num_instances].flip_rate
            member.ensembled = by_n[member.num_instances].ensembled
            member.calibration_error = by_n[member.num_instances].calibration_error
    write_spec(folder, spec)


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017): |confidence - share right|, over bins.

    Args:
        logits: [B, labels].
        labels: [B] class ids.
        bins: bins of equal width that confidence is sorted into.
    """
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    right = (predicted == labels).float()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins).index_add_(0, bin_of, confidence - right)
    return float(gaps.abs().sum() / len(labels))


@torch.inference_mode()
def grouped_predictions(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    n: int,
    *,
    seed: int,
    padded_length: int | None = None,
    groups_per_batch: int = 32,
) -> torch.Tensor:
    """Logits [rows, labels] of every text at N=n with random partners of near length.

    The slots that the last group lacks are filled with texts of its own batch, as a server fills
    them; only the first appearance of a text counts.
    """
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(rows[i]) + rng.uniform(-1, 1) * _LENGTH_JITTER_TOKENS)
    size = groups_per_batch * n
    logits = torch.empty(len(rows), int(model.config.num_labels or 0))
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        fill = -len(picked) % n
        filled = picked + [picked[i % len(picked)] for i in range(fill)]
        pad_id = model.config.pad_token_id or 0
        ids, mask = pad_batch([rows[i] for i in filled], pad_id, padded_length, device=model.device)
        logits[picked] = member_logits(model, ids, mask, n)[: len(picked)].cpu()
    return logits
