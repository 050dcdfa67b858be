"""Tokenizing: nothing is cut in silence, and an error names its text."""

import pytest

from muxserve.engine.tokens import TextEncoder
from muxserve.errors import InvalidInput, TextTooLong
from muxserve.models.family import Family

LONG = "good film " * 200


@pytest.fixture(scope="module")
def encoder(tiny_family) -> TextEncoder:
    family = Family.load(tiny_family)
    return TextEncoder(family.tokenizer, family.spec.max_length)


def test_a_text_becomes_ids_with_special_tokens(encoder):
    (one,) = encoder.encode(["good film"])
    assert len(one.ids) >= 4
    assert not one.truncated


def test_one_text_and_many_give_the_same_ids(encoder):
    alone = encoder.encode(["good film"])[0].ids
    assert encoder.encode(["good film", "bad"])[0].ids.tolist() == alone.tolist()


def test_a_long_text_is_cut_to_the_maximum_and_said_so(encoder):
    short, long = encoder.encode(["good", LONG])
    assert (short.truncated, long.truncated) == (False, True)
    assert len(long.ids) == encoder.max_length
    assert long.ids[-1] == short.ids[-1], "the closing special token survives the cut"


def test_a_long_text_is_refused_when_it_must_not_be_cut(encoder):
    with pytest.raises(TextTooLong, match="tokens, the family takes") as refused:
        encoder.encode(["good", LONG], truncate=False)
    assert refused.value.field == "inputs[1]"


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_a_text_without_content_is_refused(encoder, text):
    with pytest.raises(InvalidInput) as refused:
        encoder.encode(["good", text])
    assert refused.value.field == "inputs[1]"
