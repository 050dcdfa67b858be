"""Measuring a family: quality and flip rate of each member, over random groupings.

The groupings are near in length, as the engine plans them, with other partners every time.
"""

import itertools
import logging
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedModel

from muxserve.models.family import (
    FAMILY_FILE,
    Family,
    FamilySpec,
    member_logits,
    write_spec,
)
from muxserve.models.spec import LengthQuality, Quality
from muxserve.models.words import word_spans
from muxserve.training.data.labelled import LabelledTexts, TaggedTexts, checksum, encoded, pad_batch
from muxserve.training.data.tags import tagged_rows
from muxserve.training.distil.teacher import accuracy, token_ids
from muxserve.training.pretrained import Student
from muxserve.training.work_folder import unwritten

log = logging.getLogger(__name__)

#: Partners are drawn among texts whose lengths differ by about this many tokens.
_LENGTH_JITTER_TOKENS = 2.0
#: Token counts that quality is told by: up to each of these, and above the last.
_LENGTH_STEPS = (16, 32, 64)
#: How far a figure measured again may be from the stated one: 0.2 points.
TOLERANCE = 0.002


@dataclass(frozen=True)
class Examples:
    """Encoded texts and the class ids that are right: one per text, or one per word.

    Attributes:
        ids: token ids of each text.
        labels: [items] class ids; -1 at a word that truncation cut off: no answer to it is right.
        firsts: where items are words, the token that each word of each text is read at.
    """

    ids: list[list[int]]
    labels: torch.Tensor
    firsts: list[list[int | None]] | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """[items] the token count of the text that each item is of."""
        lengths = torch.tensor([len(row) for row in self.ids])
        if self.firsts is None:
            return lengths
        return lengths.repeat_interleave(torch.tensor([len(words) for words in self.firsts]))


def labelled_examples(
    tokenizer: Tokenizer, texts: LabelledTexts, max_length: int, side: str = "right"
) -> Examples:
    """Texts with a label each, cut to ``max_length`` tokens at ``side``."""
    return Examples(token_ids(tokenizer, texts.texts, max_length, side), torch.tensor(texts.labels))


def tagged_examples(
    tokenizer: Tokenizer, texts: TaggedTexts, max_length: int, side: str = "right"
) -> Examples:
    """Texts with a label for each word, cut to ``max_length`` tokens at ``side``."""
    rows = tagged_rows(tokenizer, texts, max_length, side)
    labels = [
        tag if first is not None else -1
        for firsts, tags in zip(rows.firsts, texts.tags, strict=True)
        for first, tag in zip(firsts, tags, strict=True)
    ]
    return Examples(rows.ids, torch.tensor(labels), rows.firsts)


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
        by_length: quality by the token count of the texts.
    """

    num_instances: int
    quality: Quality
    flip_rate: float
    ensembled: float
    calibration_error: float
    by_length: list[LengthQuality]


def answered_examples(
    tokenizer: Tokenizer, texts: Sequence[str], logits: Sequence[torch.Tensor], max_length: int
) -> Examples:
    """Texts for which a teacher's answer is the right one.

    Args:
        tokenizer: the student's.
        texts: the texts.
        logits: the teacher's of each text, [labels], or of its words, [words, labels].
        max_length: most tokens of a text.
    """
    encodings = encoded(tokenizer, texts, max_length)
    ids = [encoding.ids for encoding in encodings]
    if logits[0].dim() == 1:
        return Examples(ids, torch.stack(list(logits)).argmax(dim=-1))
    firsts: list[list[int | None]] = []
    labels: list[int] = []
    for encoding, one in zip(encodings, logits, strict=True):
        places: list[int | None] = [span.first for span in word_spans(encoding)[: len(one)]]
        places += [None] * (len(one) - len(places))
        firsts.append(places)
        answers = one.argmax(dim=-1).tolist()
        labels += [
            -1 if place is None else answer for place, answer in zip(places, answers, strict=True)
        ]
    return Examples(ids, torch.tensor(labels), firsts)


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
        dataset_name: data set and split, as it is to be written down.
        groupings: random groupings, at least 2.
        progress: show a bar.
    """
    length, side = family.spec.max_length, family.spec.truncation_side
    if isinstance(data, TaggedTexts):
        examples = tagged_examples(family.tokenizer, data, length, side)
    else:
        examples = labelled_examples(family.tokenizer, data, length, side)
    return measure(
        family,
        examples,
        dataset_name,
        checksum(data.texts),
        groupings=groupings,
        progress=progress,
    )


def measure(
    family: Family,
    examples: Examples,
    dataset_name: str,
    dataset_sha256: str,
    *,
    metric: str = "accuracy",
    groupings: int = 5,
    progress: bool = True,
) -> list[Measured]:
    """Measure every member of a family.

    Args:
        family: a loaded family.
        examples: what is right.
        dataset_name: data set and split, as it is to be written down.
        dataset_sha256: checksum of its texts.
        metric: what the share of right labels is called.
        groupings: random groupings, at least 2.
        progress: show a bar.

    Raises:
        ValueError: for fewer groupings.
    """
    if groupings < 2:
        raise ValueError(f"a flip rate needs at least 2 groupings, got {groupings}")
    labels = examples.labels
    bar = tqdm(total=len(family.models) * groupings, unit="pass", disable=not progress)
    measured = []
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
        together = torch.stack(logits).mean(dim=0).argmax(dim=-1)
        scores = [float((guess == labels).float().mean()) for guess in predictions]
        flips = [float((a != b).float().mean()) for a, b in itertools.pairwise(predictions)]
        quality = Quality(
            metric=metric,
            value=round(statistics.fmean(scores), 4),
            std=round(statistics.stdev(scores), 4),
            groupings=groupings,
            examples=len(labels),
            dataset=dataset_name,
            dataset_sha256=dataset_sha256,
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
                by_length=_by_length(torch.stack(predictions) == labels, examples.lengths),
            )
        )
    bar.close()
    return measured


def store_measured(spec: FamilySpec, measured: Sequence[Measured], folder: Path) -> None:
    """Write measured figures into the ``family.json`` of a folder; OSError, naming it, if full."""
    by_n = {one.num_instances: one for one in measured}
    for member in spec.members:
        if member.num_instances in by_n:
            member.quality = by_n[member.num_instances].quality
            member.flip_rate = by_n[member.num_instances].flip_rate
            member.ensembled = by_n[member.num_instances].ensembled
            member.calibration_error = by_n[member.num_instances].calibration_error
            member.by_length = by_n[member.num_instances].by_length
    try:
        with TemporaryDirectory(dir=folder, prefix=".") as building:
            write_spec(Path(building), spec, files=folder)
            (Path(building) / FAMILY_FILE).replace(folder / FAMILY_FILE)
    except OSError as error:
        raise unwritten(folder / FAMILY_FILE, error) from None


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


def watch(model: Student, examples: Examples, what: str) -> Callable[[int], dict[str, float]]:
    """What a training run calls to log the share of right answers at every N, and to get it.

    Args:
        model: the model in training.
        examples: held out.
        what: what that share is called.
    """

    def evaluate(step: int) -> dict[str, float]:
        shares = {}
        for n in model.config.served_widths:
            logits = grouped_predictions(model, examples.ids, n, firsts=examples.firsts, seed=step)
            share = accuracy(logits, examples.labels.tolist())
            log.info("step %d N=%d %s %.4f", step, n, what, share)
            shares[f"{what}/N={n}"] = share
        return shares

    return evaluate


def deviations(spec: FamilySpec, measured: Sequence[Measured]) -> list[str]:
    """Where figures are not those that a family states, within ``TOLERANCE``; in words.

    The groupings are the same whenever they are drawn, so only a processor's rounding is left to
    differ. Where a text is more than the tolerance, one text's answer may differ.
    """
    found = []
    stated = {member.num_instances: member for member in spec.members}
    for one in measured:
        n = f"N={one.num_instances}"
        member = stated.get(one.num_instances)
        if member is None or member.quality is None:
            found.append(f"{n}: the family states no quality")
            continue
        if member.quality.dataset_sha256 != one.quality.dataset_sha256:
            found.append(f"{n}: stated on other data ({member.quality.dataset})")
            continue
        if member.quality.groupings != one.quality.groupings:
            found.append(f"{n}: stated over {member.quality.groupings} groupings; measure as many")
            continue
        tolerance = max(TOLERANCE, 1 / one.quality.examples)
        for name, now, then in (
            (one.quality.metric, one.quality.value, member.quality.value),
            ("flip rate", one.flip_rate, member.flip_rate),
            ("ensembled", one.ensembled, member.ensembled),
            ("calibration error", one.calibration_error, member.calibration_error),
        ):
            if then is None:
                found.append(f"{n}: the family states no {name}")
            # A hair more, for what rounding to four digits adds.
            elif abs(now - then) > tolerance + 1e-4:
                found.append(f"{n}: {name} is {now:.4f}, the family states {then:.4f}")
    return found


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
    firsts: Sequence[Sequence[int | None]] | None = None,
    seed: int,
    padded_length: int | None = None,
    groups_per_batch: int = 32,
) -> torch.Tensor:
    """Logits of every text, or of every word, at N=n with random partners of near length.

    The slots that the last group lacks are filled with texts of its own batch, as a server fills
    them; only the first appearance of a text counts.

    Args:
        model: a member.
        rows: token ids of each text.
        n: N.
        firsts: the token that each word of each text is read at, where words are labelled.
        seed: of the grouping.
        padded_length: length that every text is padded to; None for the longest of a batch.
        groups_per_batch: groups in one forward.

    Returns:
        [rows, labels], or [words, labels] in the order of texts and words; 0 at words without a
        token.
    """
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(rows[i]) + rng.uniform(-1, 1) * _LENGTH_JITTER_TOKENS)
    size = groups_per_batch * n
    starts = list(itertools.accumulate((len(words) for words in firsts or ()), initial=0))
    items = starts[-1] if firsts is not None else len(rows)
    logits = torch.zeros(items, int(model.config.num_labels or 0))
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        fill = -len(picked) % n
        filled = picked + [picked[i % len(picked)] for i in range(fill)]
        pad_id = model.config.pad_token_id or 0
        ids, mask = pad_batch([rows[i] for i in filled], pad_id, padded_length, device=model.device)
        of_batch = member_logits(model, ids, mask, n)[: len(picked)].cpu()
        if firsts is None:
            logits[picked] = of_batch
            continue
        for index, of_tokens in zip(picked, of_batch, strict=True):
            for word, first in enumerate(firsts[index], starts[index]):
                if first is not None:
                    logits[word] = of_tokens[first]
    return logits
