"""Tokenizing: nothing is cut in silence, and an error names its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxserve.engine.tokens import TextEncoder
from muxserve.errors import InvalidInput, TextTooLong
from muxserve.models.family import Family
from tests.conftest import MAX_LENGTH, tiny_tokenizer

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


def test_a_text_that_cannot_be_utf8_is_refused(encoder):
    with pytest.raises(InvalidInput, match="cannot be UTF-8: half a character at 5") as refused:
        encoder.encode(["good", "good \ud800", "bad"])
    assert refused.value.field == "inputs[1]"


def test_a_text_that_cannot_be_utf8_is_its_own_requests_error(encoder):
    refused, answered = encoder.encode_each([(["\udfff"], True), (["gööd", "bad"], True)])
    assert isinstance(refused, InvalidInput)
    assert len(answered) == 2


@given(st.lists(st.text("gofilm é.", min_size=1, max_size=80).filter(str.strip), min_size=1))
def test_cut_once_is_tokenized_whole_and_cut_again(texts):
    """The ids and the mark are those of two passes: is it too long, and if so, cut it."""
    whole, cut = tiny_tokenizer(), tiny_tokenizer()
    cut.enable_truncation(MAX_LENGTH)
    for words in (False, True):
        encoder = TextEncoder(tiny_tokenizer(), MAX_LENGTH, words=words)
        for text, one in zip(texts, encoder.encode(texts), strict=True):
            assert one.truncated == (len(whole.encode(text).ids) > MAX_LENGTH)
            assert one.ids.tolist() == cut.encode(text).ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_familys_side_is_cut_unless_a_request_says_otherwise(side):
    encoder = TextEncoder(tiny_tokenizer(), MAX_LENGTH, side=side)
    text = "bad " * MAX_LENGTH + "good " * MAX_LENGTH
    own, left, right, refused = encoder.encode_each(
        [([text], True), ([text], "left"), ([text], "right"), ([text], False)]
    )
    bad, good = (tiny_tokenizer().token_to_id(one) for one in ("bad", "good"))
    assert left[0].ids[1] == good
    assert right[0].ids[1] == bad
    assert own[0].ids.tolist() == (left if side == "left" else right)[0].ids.tolist()
    assert isinstance(refused, TextTooLong)


@pytest.mark.parametrize("words", [False, True])
def test_requests_that_may_be_cut_and_others_keep_their_order(words):
    encoder = TextEncoder(tiny_tokenizer(), MAX_LENGTH, words=words)
    answers = encoder.encode_each(
        [(["good", LONG], True), (["film"], False), ([LONG], False), (["bad"], True)]
    )
    assert [one.truncated for one in answers[0]] == [False, True]
    assert isinstance(answers[2], TextTooLong)
    for answer, text in ((answers[0][:1], "good"), (answers[1], "film"), (answers[3], "bad")):
        assert answer[0].ids.tolist() == encoder.encode([text])[0].ids.tolist()
