"""The parameters in a model's config that identify its family.

A front that tokenizes for one family must not send its token ids to a model of another.
"""

import hashlib
import json
from collections.abc import Mapping

from muxserve.models.family import Family


def identity(family: Family) -> dict[str, str]:
    """The parameters that identify a model's family."""
    vocabulary = json.dumps(sorted(family.tokenizer.get_vocab().items()))
    return {
        "family": family.spec.name,
        "labels": json.dumps(family.spec.labels, ensure_ascii=False),
        "max_length": str(family.spec.max_length),
        "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
    }


def difference(expected: Mapping[str, str], parameters: Mapping[str, str]) -> str | None:
    """How a model's parameters differ from a family's, in words; None if they agree.

    The name may differ: a family may be copied under another name.
    """
    for key, words in (
        ("labels", "labels"),
        ("max_length", "most tokens of a text"),
        ("vocabulary_sha256", "vocabulary"),
    ):
        found = parameters.get(key)
        if found is None:
            return f"it has no parameter {key}; export it with: muxserve export triton"
        if found != expected[key]:
            if key == "vocabulary_sha256":
                return "its vocabulary is another one"
            return f"its {words}: {found}, the family's: {expected[key]}"
    return None
