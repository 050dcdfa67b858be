"""Texts for timing: words of the family's own vocabulary, of given lengths; they mean nothing."""

import random

from tokenizers import Tokenizer


def generated_texts(
    tokenizer: Tokenizer, count: int, *, words: tuple[int, int] = (5, 60), seed: int = 0
) -> list[str]:
    """``count`` distinct texts of ``words`` (fewest, most) words each, evenly spread."""
    vocabulary = sorted(
        piece for piece in tokenizer.get_vocab() if piece.isascii() and piece.isalpha()
    )
    vocabulary = [piece for piece in vocabulary if len(piece) > 2] or vocabulary
    rng = random.Random(seed)
    return [" ".join(rng.choices(vocabulary, k=rng.randint(*words))) for _ in range(count)]
