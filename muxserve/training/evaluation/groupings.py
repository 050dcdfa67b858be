"""A member and texts in, its logits out, each text in a group with random partners.

Partners are near in length, as the engine plans groups, and other ones for every seed.
"""

import itertools
import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from muxserve.models.family import member_logits
from muxserve.training.data.batches import pad_batch

#: Partners are drawn among texts whose lengths differ by about this many tokens.
_LENGTH_JITTER_TOKENS = 2.0
_GROUPS_PER_BATCH = 32


@torch.inference_mode()
def grouped_predictions(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    n: int,
    *,
    firsts: Sequence[Sequence[int | None]] | None = None,
    seed: int,
    padded_length: int | None = None,
) -> torch.Tensor:
    """Logits of every text, or of every word, at N=n with random partners of similar length.

    If the last group has free slots, they are filled with texts of its own batch, as a server fills
    them; only the first occurrence of a text counts.

    Args:
        model: a member.
        rows: token ids of each text.
        n: N.
        firsts: where words are labelled, the token that each word of each text is read at.
        seed: of the grouping.
        padded_length: length that every text is padded to; None for the longest of a batch.

    Returns:
        [rows, labels], or [words, labels] in the order of texts and words; 0 at words without a
        token.
    """
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(rows[i]) + rng.uniform(-1, 1) * _LENGTH_JITTER_TOKENS)
    size = _GROUPS_PER_BATCH * n
    starts = list(itertools.accumulate((len(words) for words in firsts or ()), initial=0))
    items = starts[-1] if firsts is not None else len(rows)
    logits = torch.zeros(items, int(model.config.num_labels or 0))
    pad_id = model.config.pad_token_id or 0
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        fill = -len(picked) % n
        filled = picked + [picked[i % len(picked)] for i in range(fill)]
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
