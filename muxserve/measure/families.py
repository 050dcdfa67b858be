"""A family with random weights, for timing only: the size of BERT base, with the paper's parts."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from muxserve.models import MuxBertConfig, MuxBertForSequenceClassification
from muxserve.models.family import Family, FamilySpec, Member, write_spec


def write_random_family(
    folder: Path,
    tokenizer: Tokenizer | None = None,
    *,
    widths: tuple[int, ...] = (1, 2, 5, 10),
    max_length: int = 128,
    seed: int = 0,
) -> Path:
    """Write a BERT-base-sized family: Gaussian Hadamard, index positions, position 0 read.

    N=1 runs the plain backbone, so that a gain is measured against the plain model.

    Args:
        folder: made if need be.
        tokenizer: by default that of the shipped sentiment family.
        widths: every N.
        max_length: most tokens of a text; longer ones are cut.
        seed: of the weights.

    Returns:
        The folder, for convenience.
    """
    tokenizer = tokenizer or Family.load("sentiment", []).tokenizer
    torch.manual_seed(seed)
    config = MuxBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_instances=widths[-1],
        widths=list(widths),
        plain_single=widths[0] == 1,
        num_hidden_demux_layers=3,
        trained_length=max_length,
    )
    folder.mkdir(parents=True, exist_ok=True)
    MuxBertForSequenceClassification(config).save_pretrained(folder / "weights")
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = FamilySpec(
        name="base-random",
        task="sequence-classification",
        problem_type="single_label_classification",
        labels=["LABEL_0", "LABEL_1"],
        max_length=max_length,
        tokenizer="tokenizer.json",
        members=[
            Member(num_instances=n, path="weights", quality=None, flip_rate=None) for n in widths
        ],
    )
    write_spec(folder, spec)
    return folder
