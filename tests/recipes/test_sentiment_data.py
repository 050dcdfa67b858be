"""Texts of the sentiment family: reviews in pieces, and equal sentences."""

from muxserve.training.data.labelled import read_labelled
from recipes.sentiment_data import chunks, held_out, letters

LABELS = ("negative", "positive")


def test_pieces_of_reviews_keep_their_label_and_their_words(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "One two three. " * 40 + ",positive\n")
    review = read_labelled(tmp_path / "a.csv", LABELS)
    pieces = chunks(review, seed=0)
    assert len(pieces) > 1
    assert set(pieces.labels) == {1}
    assert all(8 <= len(piece.split()) <= 48 for piece in pieces.texts)
    rest, held = held_out(pieces, 1, seed=0)
    assert sorted(rest.texts + held.texts) == sorted(pieces.texts)


def test_two_typings_of_a_sentence_have_equal_letters():
    assert letters("It's GREAT , really !") == letters("its great, really!")
