"""The recipes of the shipped families, on a tiny scale: resumable, and whole or not at all."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from muxserve.models.family import Family
from muxserve.training.data.labelled import LabelledTexts, TaggedTexts
from muxserve.training.distil import family as distil_family
from muxserve.training.distil.family import save_family
from muxserve.training.distil.student import build_student
from muxserve.training.pretrained import plain_encoder
from recipes import part_of_speech, sentiment
from recipes.command import run
from tests.conftest import PIECES, tiny_bert, tiny_tokenizer

WORDS = ["good", "bad", "film", "very", "not", "the"]
ROWS = [list(words) for words in itertools.product(WORDS, repeat=4)][:450]
SENTENCES = LabelledTexts([" ".join(row) for row in ROWS], [row.count("good") % 2 for row in ROWS])
REVIEWS = LabelledTexts([f"{' '.join(row * 3)}. " * 5 for row in ROWS[:9]], [0, 1, 0] * 3)
TAGGED = TaggedTexts(ROWS, [[WORDS.index(word) for word in row] for row in ROWS])


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    tiny_bert(6).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Both recipes on texts and sizes of a test."""
    monkeypatch.setattr(sentiment, "training_reviews", lambda: (SENTENCES, REVIEWS))
    monkeypatch.setattr(sentiment, "HELD_OUT", 20)
    monkeypatch.setattr(part_of_speech, "brown", lambda *_: TAGGED)
    for one in (sentiment, part_of_speech):
        monkeypatch.setattr(one, "MAX_LENGTH", 32)
        monkeypatch.setattr(one, "WORD_PIECES", 58)


@pytest.fixture
def start(tmp_path, base) -> Path:
    """A sentiment family as deep as the shipped one."""
    student = build_student(
        plain_encoder(tiny_bert(6)),
        range(len(PIECES)),
        layers=sentiment.LAYERS,
        widths=sentiment.WIDTHS,
        max_length=32,
        labels=sentiment.LABELS,
    )
    save_family(student, tiny_tokenizer(), tmp_path / "start", name="start")
    return tmp_path / "start"


def stopped(*_, **__) -> None:
    raise KeyboardInterrupt


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights" / "model.safetensors")


def test_the_sentiment_family_is_made_whole_and_goes_on(tiny, base, tmp_path, monkeypatch):
    settings = {"base": base, "teacher_steps": 2, "soft_texts": 9, "steps": 2}
    out, work = tmp_path / "family", tmp_path / "work"
    saved = PreTrainedModel.save_pretrained

    def cut_off(model: PreTrainedModel, folder: Path) -> None:
        model.config.save_pretrained(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sentiment.train(**settings, work=work, out=out)
    assert not (work / "teacher").exists(), "a config alone is no teacher"
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", saved)
    with monkeypatch.context() as patch:
        patch.setattr(distil_family, "distill", stopped)
        with pytest.raises(KeyboardInterrupt):
            sentiment.train(**settings, work=work, out=out)
    assert (work / "teacher" / "model.safetensors").exists()
    assert (work / "soft_labels-000000000.safetensors").exists()
    assert not out.exists()

    monkeypatch.setattr(sentiment, "fine_tune", stopped)  # not called: the teacher is there
    moved: list[torch.device] = []
    device = torch.device("cpu", 0)  # the same as "cpu", and told from it
    with monkeypatch.context() as patch:
        for module in (sentiment, distil_family):
            patch.setattr(module, "fastest_device", lambda: device)
        patch.setattr(PreTrainedModel, "to", lambda self, where: moved.append(where))
        sentiment.train(**settings, work=work, out=out)
    assert moved == [device, device], "the teacher and the student"
    family = Family.load(out)
    assert family.widths == sentiment.WIDTHS
    assert family.models[1].config.num_hidden_layers == sentiment.LAYERS
    assert list((work / "tensorboard").iterdir())

    with pytest.raises(ValueError, match="family: not empty"):
        sentiment.train(**settings, work=work, out=out)
    first = weights(out)
    shutil.rmtree(out)
    sentiment.train(**settings, work=work, out=out)
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights(out).items())
    shutil.rmtree(out)
    with pytest.raises(ValueError, match=r"other settings \(teacher_steps\)"):
        sentiment.train(**{**settings, "teacher_steps": 3}, work=work, out=out)
    tiny_bert(5).save_pretrained(base)
    with pytest.raises(ValueError, match=r"other settings \(content of base\)"):
        sentiment.train(**settings, work=work, out=out)


def test_the_part_of_speech_family_starts_from_a_deeper_one(tiny, base, start, tmp_path):
    settings = {"base": base, "corpus": tmp_path / "any", "start": str(start), "steps": 2}
    out, work = tmp_path / "family", tmp_path / "work"
    part_of_speech.train(**settings, work=work, out=out)
    family = Family.load(out)
    assert family.widths == part_of_speech.WIDTHS
    assert family.models[1].config.num_hidden_layers == part_of_speech.LAYERS < sentiment.LAYERS
    shutil.rmtree(out)
    spec = json.loads((work / "recipe.json").read_text())
    (work / "recipe.json").write_text(json.dumps({**spec, "content of start": "other"}))
    with pytest.raises(ValueError, match=r"other settings \(content of start\)"):
        part_of_speech.train(**settings, work=work, out=out)


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        (sentiment.train, "--base nowhere", "nowhere/config.json: missing"),
        (sentiment.train, "--base {base} --start {base}/config.json", "not a safetensors file"),
        (part_of_speech.train, "--base {base} --corpus none.tgz", "none.tgz: No such file"),
    ],
)
def test_a_users_mistake_is_one_line(base, tmp_path, monkeypatch, capsys, program, arguments, says):
    monkeypatch.setattr(sentiment, "training_reviews", lambda: (SENTENCES, REVIEWS))
    given = [*arguments.format(base=base).split(), "--work", "work", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipe", *given])
    with pytest.raises(SystemExit) as ended:
        run(program)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert says in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "work").exists()
