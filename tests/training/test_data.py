"""Reading texts, and cutting them into batches."""

import random
from itertools import islice

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from muxserve.training.data.batches import near_length_batches, pad_batch
from muxserve.training.data.labelled import read_labelled, read_tagged, read_texts

LABELS = ("negative", "positive")


def test_a_csv_and_a_jsonl_file_give_the_same_texts(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"good, very",positive\nbad,negative\n')
    (tmp_path / "a.jsonl").write_text(
        '{"text": "good, very", "label": "positive"}\n{"text": "bad", "label": "negative"}\n'
    )
    one, other = (read_labelled(tmp_path / f"a.{kind}", LABELS) for kind in ("csv", "jsonl"))
    assert one == other
    assert one.labels == [1, 0]


def test_a_parquet_file_gives_the_same_texts_and_words(tmp_path):
    rows = {"text": ["a b", "c"], "label": ["pos", "neg"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    texts = read_labelled(tmp_path / "a.parquet", ["neg", "pos"])
    assert (texts.texts, texts.labels) == (["a b", "c"], [1, 0])
    assert read_texts(tmp_path / "a.parquet") == ["a b", "c"]
    words = {"tokens": [["a", "b"], ["c"]], "tags": [["X", "Y"], ["Y"]]}
    Dataset.from_dict(words).to_parquet(tmp_path / "b.parquet")
    tagged = read_tagged(tmp_path / "b.parquet", ["X", "Y"])
    assert (tagged.words, tagged.tags) == ([["a", "b"], ["c"]], [[0, 1], [1]])
    (tmp_path / "c.parquet").write_text("not that")
    with pytest.raises(ValueError, match=r"c\.parquet: not a Parquet file"):
        read_texts(tmp_path / "c.parquet")


def test_marks_of_the_byte_order_and_blank_lines_at_the_end_are_passed_over(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.csv").write_bytes(mark + b"text,label\ngood,positive\n\n")
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "good", "label": "positive"}\n\n  \n')
    for kind in ("csv", "jsonl"):
        assert read_labelled(tmp_path / f"a.{kind}", LABELS).texts == ["good"]


def test_columns_can_be_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("sentence,mood\ngood,positive\n")
    data = read_labelled(file, LABELS, text_column="sentence", label_column="mood")
    assert data.texts == ["good"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"sentence,label\nx,positive\n", r"line 2: no column 'text'; columns: sentence"),
        ("a.csv", b"text,label\nx,great\n", r"line 2: unknown label 'great'; known: negative"),
        ("a.csv", b"text,label\n  ,positive\n", r"line 2: the text is empty"),
        ("a.csv", b"text,label\n", r"no rows"),
        ("a.csv", b"", r"no rows"),
        ("a.jsonl", b"\n", r"no rows"),
        ("a.csv", b"text,label\nx\n", r"line 2: column 'label' has no value"),
        ("a.csv", b"text,label\nx,\n", r"line 2: the label is empty"),
        ("a.csv", b"text,label\nx, y,positive\n", r"line 2: more cells than the header's 2"),
        ("a.csv", b"text\n" + b"x" * 200_000, r"line 2: not CSV: field larger"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', r"line 1: column 'label' has no value"),
        ("a.jsonl", b'{"text": 3, "label": "positive"}', r"line 1: column 'text' is no text: 3"),
        ("a.jsonl", b'{"text": "x", "label": "positive"}\n\n{}', r"line 2: the line is blank"),
        ("a.csv", b"text,label\nx\xff,positive\n", r"not UTF-8"),
        ("a.jsonl", b"{\n", r"line 1: not JSON"),
        ("a.jsonl", b"[1]\n", r"line 1: not a JSON object"),
        ("a.txt", b"x\n", r"expected a \.csv, \.jsonl or \.parquet file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_labelled(file, LABELS)
    assert str(file) in str(refused.value)


@given(st.lists(st.integers(1, 60), min_size=8, max_size=80), st.integers(1, 8), st.integers(0, 9))
def test_batches_are_full_and_an_epoch_repeats_nothing(lengths, size, seed):
    batches = near_length_batches(lengths, size, random.Random(seed))
    epoch = list(islice(batches, len(lengths) // size))
    assert all(len(batch) == size for batch in epoch)
    seen = [index for batch in epoch for index in batch]
    assert len(set(seen)) == len(seen)


def test_too_few_texts_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="2 texts do not fill a batch of 3"):
        next(near_length_batches([1, 2], 3, random.Random(0)))


def test_padding_is_masked():
    ids, mask = pad_batch([[5, 6], [7]], 0, 3)
    assert ids.tolist() == [[5, 6, 0], [7, 0, 0]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert pad_batch([[5, 6], [7]], 0)[0].shape == (2, 2)
