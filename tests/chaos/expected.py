"""Texts with a known label, computed once by an engine at N=1, far from the decision boundary."""

import functools
import random

from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.measure.texts import generated_texts
from muxserve.models.family import Family

FAMILY = "sentiment"
#: A text with a lower score is so near the boundary that rounding could change its label.
_CLEAR = 0.65
WORDS = (5, 120)


@functools.cache
def labels() -> tuple[str, ...]:
    """The family's labels, in its order."""
    return tuple(Family.load(FAMILY, widths=[]).spec.labels)


@functools.cache
def known_labels(count: int = 100) -> tuple[tuple[str, str], ...]:
    """``count`` texts of 5 to 120 words with their labels, both labels among them."""
    tokenizer = Family.load(FAMILY, widths=[]).tokenizer
    texts = generated_texts(tokenizer, 4 * count, words=WORDS, seed=17)
    config = EngineConfig(num_instances=1, warm_up_s=0.2, torch_threads=1)
    with Engine.from_family(FAMILY, config) as engine:
        answers = [one.labels[0] for one in engine.classify(texts)]
    clear = [
        (text, best.label)
        for text, best in zip(texts, answers, strict=True)
        if best.score >= _CLEAR
    ]
    random.Random(17).shuffle(clear)
    found = tuple(clear[:count])
    assert len(found) == count, f"only {len(found)} of {len(texts)} texts are clear"
    counts = [sum(label == one for _, label in found) for one in {label for _, label in found}]
    assert len(counts) > 1, "all texts have the same label: a wrong answer would not be seen"
    assert min(counts) >= count // 10, counts
    return found


def tokens_of(word: str) -> list[int]:
    """The token ids of a word, without special tokens."""
    ids: list[int] = (
        Family.load(FAMILY, widths=[]).tokenizer.encode(word, add_special_tokens=False).ids
    )
    return ids
