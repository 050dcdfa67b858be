"""Texts that wait, for tests of the policy and the planner."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(eq=False)
class Text:
    length: int
    max_num_instances: int | None = None
    isolation_key: str | None = None


def lists_of_texts(
    caps: Sequence[int | None], keys: Sequence[str | None], *, min_size: int = 1, max_size: int
) -> st.SearchStrategy[list[Text]]:
    """Texts of 1 to 64 tokens, each with one of the caps and one of the isolation keys."""
    text = st.builds(Text, st.integers(1, 64), st.sampled_from(caps), st.sampled_from(keys))
    return st.lists(text, min_size=min_size, max_size=max_size)
