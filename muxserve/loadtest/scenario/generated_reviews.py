"""Opinions about films with a known label, put together from parts that were written for this.

The label is known by construction, and there are enough texts that the same one never waits twice.
They are easier than what people write: an accuracy on them compares servers and is not the quality
of a family, which is in ``family.json``.
"""

import random

POSITIVE, NEGATIVE = "positive", "negative"

_SUBJECTS = [
    "the film", "this movie", "the story", "the script", "the lead performance", "the ending",
    "the first hour", "the direction", "the cast", "the dialogue", "the camera work", "the pacing",
    "the score", "the final scene", "the romance", "the comedy", "the drama", "the second act",
    "the villain", "the friendship at its centre",
]  # fmt: skip
_PRAISE = [
    "is a delight from start to finish", "moved me to tears", "is beautifully judged",
    "is funny, warm and wise", "kept me on the edge of my seat", "is a small masterpiece",
    "feels fresh and honest", "is superbly done", "is one of the best of the year",
    "is full of charm", "works wonderfully", "stays with you long after",
    "is bright, inventive and touching", "is impressive in every detail", "is a joy to watch",
    "surprises in the best way", "is tender and very well played", "deserves every award",
]  # fmt: skip
_BLAME = [
    "is a complete waste of time", "bored me to sleep", "is badly misjudged",
    "is dull, cold and stupid", "dragged on without any purpose", "is a small disaster",
    "feels stale and fake", "is poorly done", "is one of the worst of the year",
    "is without any charm", "fails miserably", "is forgotten before it is over",
    "is ugly, lazy and annoying", "is sloppy in every detail", "is a pain to watch",
    "disappoints in every way", "is clumsy and very badly played", "deserves no audience",
]  # fmt: skip
_FILLERS = [
    "as I said to my sister on the way home", "at least in the version shown here last night",
    "which runs for almost two hours", "set in a town by the sea",
    "based on a book from the fifties",
    "with a budget that nobody talks about", "shot over one long summer", "in the cinema downtown",
    "told from the point of view of a taxi driver", "about two brothers and a boat",
]  # fmt: skip


def opinions(
    count: int, *, seed: int = 0, words: tuple[int, int] = (5, 60)
) -> list[tuple[str, str]]:
    """``count`` different texts, each with its label, of about ``words`` (fewest, most) words."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = rng.choice((POSITIVE, NEGATIVE))
        verdicts = _PRAISE if label == POSITIVE else _BLAME
        wanted = rng.randint(*words)
        sentences: list[str] = []
        while not sentences or sum(len(one.split()) for one in sentences) < wanted - 4:
            sentence = f"{rng.choice(_SUBJECTS)} {rng.choice(verdicts)}"
            if rng.random() < 0.5 and wanted > 12:
                sentence += f", {rng.choice(_FILLERS)}"
            sentences.append(sentence[0].upper() + sentence[1:] + ".")
        # Short ones are few; a number keeps the rest apart.
        text = " ".join(sentences)
        if text in found:
            text += f" Seen on day {rng.randint(1, 99_999)}."
        found.setdefault(text, label)
    return list(found.items())
