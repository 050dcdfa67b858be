"""A long text's part has the tokens that it has in the whole, and no more of it is tokenized."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from muxserve.engine.borders import has_word_borders
from muxserve.engine.tokens import TextEncoder
from muxserve.models.family import Family
from tests.conftest import tiny_tokenizer

SOME = ["a good film", "not very good at all", "the, end! it's 1999", "über das Café 日本"]


def byte_level(add_prefix_space: bool = False) -> Tokenizer:
    """A tokenizer as RoBERTa's, with a mask that takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SOME * 5, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>"))
    )
    return tokenizer


def no_promise() -> Tokenizer:
    """Pieces that reach over spaces."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    return tokenizer


TOKENIZERS = {
    "tiny": tiny_tokenizer(),
    "sentiment": Family.load("sentiment", widths=[]).tokenizer,
    "byte-level": byte_level(),
    "byte-level-prefixed": byte_level(add_prefix_space=True),
    "no-promise": no_promise(),
}
PIECES = [
    "good",
    "film",
    "e\u0301",
    "日本",
    "'s",
    "...",
    "1",
    "[SEP]",
    "<mask>",
    "\u200b",
    "\x00",
    "İ",
]
SPACES = [" ", " ", " ", "  ", "\n", "\u3000", "\x1c ", " \u0301", "", "\u00a0"]
TEXTS = st.lists(
    st.tuples(st.sampled_from(PIECES) | st.text(max_size=4), st.sampled_from(SPACES)), max_size=120
).map(lambda pairs: "".join(piece + space for piece, space in pairs))


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS.filter(lambda text: bool(text.strip())), most=st.integers(3, 12))
@settings(max_examples=150, deadline=None)
def test_a_part_has_the_tokens_of_the_whole(name, direction, text, most):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    whole = Tokenizer.from_str(TOKENIZERS[name].to_str())
    whole.no_padding()
    long = len(whole.encode(text).ids) > most
    whole.enable_truncation(most, direction=direction)
    for words in (False, True):
        encoder = TextEncoder(TOKENIZERS[name], most, words=words)
        truncate: Any = "left" if direction == "left" else True
        (one,) = encoder.encode([text], truncate=truncate)
        assert one.ids.tolist() == whole.encode(text).ids
        assert one.truncated == long
        for word in one.words:
            assert text[word.start : word.end] == word.text


class Counting(TextEncoder):
    """The real encoder; it counts the characters that the tokenizer gets."""

    characters = 0

    def _encode_parts(self, tokenizer, texts):
        self.characters += sum(map(len, texts))
        return super()._encode_parts(tokenizer, texts)


@pytest.mark.parametrize("truncate", [True, False, "left"])
@pytest.mark.parametrize("text", ["good film " * 100_000, "nothing here is known " * 40_000])
def test_of_a_long_text_only_what_is_kept_is_tokenized(text, truncate):
    encoder = Counting(tiny_tokenizer(), 32)
    (answer,) = encoder.encode_each([([text], truncate)])
    assert not isinstance(answer, list) if truncate is False else answer[0].truncated
    assert encoder.characters < 3000


def test_a_text_that_hides_its_words_is_tokenized_at_most_twice():
    encoder = Counting(tiny_tokenizer(), 32)
    text = "good" + " \x00" * 50_000 + " film" + "\x00 " * 50_000
    assert not encoder.encode([text])[0].truncated
    assert encoder.characters < 2 * len(text)


def test_the_shipped_tokenizers_promise_it_and_others_are_read():
    for family in ("sentiment", "part-of-speech"):
        assert has_word_borders(Family.load(family, widths=[]).tokenizer)
    assert not has_word_borders(TOKENIZERS["no-promise"])
    spaced = tiny_tokenizer()
    spaced.add_tokens(["good film"])
    assert not has_word_borders(spaced)
