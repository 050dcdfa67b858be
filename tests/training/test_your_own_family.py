"""From a classifier and texts to a family, on a tiny scale: the path of docs/your-own-family.md."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
)
from typer.testing import CliRunner

from muxserve import Engine
from muxserve.cli import app
from muxserve.engine.config import EngineConfig
from muxserve.models.family import Family
from muxserve.training.distil.distillation import distill_family
from muxserve.training.distil.student import build_student, spread
from muxserve.training.pretrained import plain_encoder
from muxserve.training.recipe import DistillSettings, FamilyRecipe
from tests.conftest import program, tiny_tokenizer

DOCS = Path(__file__).parents[2] / "docs" / "your-own-family.md"
LABELS = {"negative": 0, "positive": 1}
SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
KINDS = {
    "bert": SIZES,
    "electra": {**SIZES, "embedding_size": 16},
    "roberta": {**SIZES, "pad_token_id": 1},
    "distilbert": {
        "vocab_size": 80,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 40,
    },
}
FAST = DistillSettings(steps=8, groups=4, single_texts=4, save_every_s=1e-9)


def teacher_model(kind: str = "bert") -> PreTrainedModel:
    torch.manual_seed(0)
    names = {"label2id": LABELS, "id2label": {index: name for name, index in LABELS.items()}}
    config = AutoConfig.for_model(kind, **KINDS[kind], **names)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture
def teacher(tmp_path) -> Path:
    folder = tmp_path / "my-classifier"
    teacher_model().save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def texts(tmp_path) -> Path:
    words = ["good", "bad", "film", "very", "not", "the"]
    lines = [f"{a} {b} {c} {d}" for a in words for b in words for c in words for d in "bcd"]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def recipe(teacher: Path, texts: Path, **changes) -> FamilyRecipe:
    settings = {
        "teacher": str(teacher),
        "texts": texts,
        "out": teacher.parent / "family",
        "num_instances": [1, 2, 5],
        "max_length": 32,
        "held_out": 40,
        "distill": FAST,
    }
    return FamilyRecipe(**{**settings, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_starts_as_its_teachers_encoder(kind):
    model = teacher_model(kind)
    encoder = plain_encoder(model)
    student = build_student(
        encoder, range(80), layers=3, widths=[1, 2], max_length=32, labels=list(LABELS)
    ).eval()
    ids = torch.randint(4, 60, (2, 9))
    with torch.inference_mode():
        ours = student.encode(ids, num_instances=1).states
        theirs = model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_another_kind_of_encoder_is_refused():
    with pytest.raises(ValueError, match="a BERT, ELECTRA, RoBERTa or DistilBERT; this is 'gpt2'"):
        plain_encoder(GPT2Model(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)))


def test_layers_are_spread_from_the_first_to_the_last():
    assert [spread(count, 6) for count in (1, 2, 3, 6)] == [[5], [0, 5], [0, 2, 5], [*range(6)]]


@pytest.mark.parametrize("word_pieces", [None, 60])
def test_a_family_is_made_whole_with_what_it_reaches(teacher, texts, word_pieces):
    # Fewer word pieces than a real recipe may ask for.
    made = recipe(teacher, texts, layers=2).model_copy(update={"word_pieces": word_pieces})
    measured = distill_family(made)
    family = Family.load(made.out)
    assert family.widths == [1, 2, 5]
    assert family.spec.labels == list(LABELS)
    assert family.models[1].config.num_hidden_layers == 2
    assert family.models[1].config.vocab_size == (word_pieces or 80)
    for one, member in zip(measured, family.spec.members, strict=True):
        assert member.quality == one.quality
        assert member.quality.metric == "agreement with the teacher"
        assert member.quality.examples == 40
    with Engine(family, EngineConfig(warm_up_s=0.1)) as engine:
        assert engine.classify(["good film"])[0].labels[0].label in LABELS
    hidden = [path.name for path in made.out.parent.iterdir() if path.name.startswith(".")]
    assert hidden == [], "nothing half-made is left"


@pytest.mark.parametrize("word_pieces", [None, 60])
def test_a_teacher_that_labels_tokens_makes_a_family_that_labels_words(
    texts, tmp_path, word_pieces
):
    torch.manual_seed(0)
    names = {0: "O", 1: "PER", 2: "LOC"}
    labels = {name: index for index, name in names.items()}
    config = AutoConfig.for_model("bert", **SIZES, id2label=names, label2id=labels)
    model = AutoModelForTokenClassification.from_config(config).eval()
    # Far enough from zero that a word's token decides its label.
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight)
    torch.nn.init.normal_(model.classifier.weight)
    folder = tmp_path / "my-tagger"
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = FAST.model_copy(update={"steps": 60, "encoder_learning_rate": 3e-3})
    made = recipe(folder, texts, distill=settings).model_copy(update={"word_pieces": word_pieces})
    measured = distill_family(made)
    family = Family.load(made.out)
    assert family.spec.task == "token-classification"
    assert family.spec.labels == list(labels)
    assert measured[0].quality.examples == 4 * 40, "four words in each text held out"
    assert measured[0].quality.value > 0.8
    with Engine(family, EngineConfig(warm_up_s=0.1)) as engine:
        (answer,) = engine.tag(["good film"])
    assert [one.word.text for one in answer.words] == ["good", "film"]


def test_a_run_that_was_killed_goes_on_to_the_same_family(teacher, texts, tmp_path, monkeypatch):
    whole = recipe(teacher, texts, out=tmp_path / "whole", work=tmp_path / "whole.work")
    distill_family(whole)
    stopped = recipe(teacher, texts, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr("muxserve.training.distil.family.measure", killed)
        with pytest.raises(KeyboardInterrupt):
            distill_family(stopped)
    assert not stopped.out.exists()
    state = stopped.work_folder / "distil.pt"
    rewind(state, whole, tmp_path)
    distill_family(stopped)
    for name in ("weights/model.safetensors", "tokenizer.json"):
        assert (stopped.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_soft_labels_are_computed_once_for_each_part(teacher, texts, tmp_path, monkeypatch):
    from muxserve.training.distil import teacher as teaching

    monkeypatch.setattr(teaching, "SOFT_LABEL_PART", 100)
    asked: list[int] = []
    original = teaching.soft_labels
    stops = True

    def counted(model, tokenizer, part, **settings):
        if stops and len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(part))
        return original(model, tokenizer, part, **settings)

    one = recipe(teacher, texts)
    monkeypatch.setattr(teaching, "soft_labels", counted)
    with pytest.raises(KeyboardInterrupt):
        distill_family(one)
    assert asked == [100, 100, 100]
    stops = False
    distill_family(one)
    assert asked == [100] * 6 + [48], "648 texts; what was there is not made again"
    assert not list(one.work_folder.glob("*.tmp"))


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def rewind(state: Path, whole: FamilyRecipe, tmp_path: Path) -> None:
    """Bring a finished run's state back to its middle, as if it had been killed there."""
    half = whole.model_copy(update={"out": tmp_path / "half", "work": tmp_path / "half.work"})
    shutil.copytree(whole.work_folder, half.work_folder)
    (half.work_folder / "distil.pt").unlink()
    saved: list[Path] = []

    def keep(file: Path, step: int, *rest) -> None:
        original(file, step, *rest)
        if step == FAST.steps // 2:
            saved.append(shutil.copy(file, tmp_path / "middle.pt"))

    from muxserve.training.distil import multiplex

    original = multiplex._save
    multiplex._save = keep
    try:
        distill_family(half)
    finally:
        multiplex._save = original
    shutil.copy(saved[0], state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 9}, "layers: the teacher has 3, got 9"),
        ({"max_length": 64}, "max_length: the teacher takes 40 tokens, got 64"),
        ({"held_out": 640}, r"648 texts are too few: 640 are held out and a step takes 20"),
        ({"text_column": "body", "texts": "rows.csv"}, "line 2: no column 'body'; columns: text"),
        ({"texts": "latin.txt"}, r"latin\.txt: not UTF-8 \(byte 2\); convert it first"),
        ({"texts": "empty.txt"}, r"empty\.txt: no texts"),
        ({"texts": "blank.jsonl"}, r"blank\.jsonl, line 2: the text is empty"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(
    teacher, texts, tmp_path, changes, message
):
    (tmp_path / "rows.csv").write_text("text\ngood\n")
    (tmp_path / "latin.txt").write_bytes(b"ab\xe9\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "blank.jsonl").write_text('{"text": "good"}\n{"text": " "}\n')
    if "texts" in changes:
        texts = tmp_path / changes["texts"]
    others = {key: value for key, value in changes.items() if key != "texts"}
    with pytest.raises(ValueError, match=message):
        distill_family(recipe(teacher, texts, **others))
    assert not (tmp_path / "family").exists()
    assert not (tmp_path / "family.work").exists()


def test_texts_are_cut_to_the_teachers_positions(teacher, texts):
    made = recipe(teacher, texts, max_length=None)
    distill_family(made)
    assert Family.load(made.out).spec.max_length == SIZES["max_position_embeddings"]


def rename_labels(teacher: Path) -> None:
    config = json.loads((teacher / "config.json").read_text())
    config["id2label"] = {"0": "positive", "1": "negative"}
    config["label2id"] = {"positive": 0, "negative": 1}
    (teacher / "config.json").write_text(json.dumps(config))


def retrain(teacher: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    model.save_pretrained(teacher)


@pytest.mark.parametrize(
    ("change", "names"),
    [(rename_labels, "labels"), (retrain, "content of teacher")],
)
def test_another_teacher_in_the_same_folder_is_another_run(teacher, texts, change, names):
    made = recipe(teacher, texts)
    distill_family(made)
    shutil.rmtree(made.out)
    change(teacher)
    with pytest.raises(ValueError, match=rf"other settings \({names}\)"):
        distill_family(made)
    assert not made.out.exists()


def test_a_teacher_without_label_names_is_given_them(teacher, texts):
    config = json.loads((teacher / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (teacher / "config.json").write_text(json.dumps({**config, "num_labels": 2}))
    with pytest.raises(ValueError, match="its 2 labels have no names; give them with --labels"):
        distill_family(recipe(teacher, texts))
    made = recipe(teacher, texts, labels="bad, good")
    distill_family(made)
    assert Family.load(made.out).spec.labels == ["bad", "good"]


@pytest.mark.parametrize("widths", [[1], [2, 5], [0, 1]])
def test_widths_without_one_or_without_a_wider_are_refused(teacher, texts, widths):
    with pytest.raises(ValueError, match="1 must be among them, and a wider one"):
        recipe(teacher, texts, num_instances=widths)


def test_a_work_folder_of_another_recipe_is_not_gone_on_with(teacher, texts):
    first = recipe(teacher, texts)
    distill_family(first)
    with pytest.raises(ValueError, match="family: not empty; choose another folder"):
        distill_family(first)
    shutil.rmtree(first.out)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(layers\)"):
        distill_family(recipe(teacher, texts, layers=1))


def test_the_documented_path_from_a_classifier_to_answers(teacher, texts, tmp_path):
    (tmp_path / "labelled.csv").write_text(
        "text,label\n" + "".join(f"{word} film,positive\n" for word in ("good", "bad", "very"))
    )
    commands = re.findall(r"^\$ (muxserve .*)$", DOCS.read_text(), flags=re.MULTILINE)
    tried = [command for command in commands if not command.startswith("muxserve serve")]
    assert len(tried) == 4
    for command in tried:
        if "train distill" in command:
            # A tiny scale is all that differs from what the page says.
            command += " --steps 4 --groups 4 --held-out 20 --max-length 32"
            if "--config" in command:
                shutil.rmtree(tmp_path / "my-family", ignore_errors=True)
                (yaml,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
                (tmp_path / "recipe.yaml").write_text(yaml)
                command += " --layers 2 --word-pieces 100 --work other.work"
        done = program(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert (tmp_path / "my-family" / "family.json").is_file()


def test_mistakes_on_the_command_line_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = "teacher: x\ntexts: y\nout: z\n"
    (tmp_path / "empty.yaml").write_text(f"{needed}distill:\n")
    (tmp_path / "scalar.yaml").write_text(f"{needed}distill: 3000\n")
    (tmp_path / "unknown.yaml").write_text(f"{needed}distill:\n  stepz: 3\n")
    (tmp_path / "latin.yaml").write_bytes(b"teacher: caf\xe9\n")
    (tmp_path / "bad.yaml").write_text("- a list\n")
    (tmp_path / "odd.yaml").write_text("teacher: x\ntexts: y\nout: z\ncolour: red\n")
    for arguments, message in [
        ("--texts x.txt --out y", "teacher: Field required"),
        ("--config bad.yaml", "bad.yaml: expected settings as"),
        ("--config odd.yaml", "colour: Extra inputs are not permitted"),
        ("--config none.yaml", "none.yaml: No such file"),
        ("--teacher x --texts none.txt --out y", "none.txt: No such file"),
        ("--teacher x --texts y --out z 3", "unexpected argument 3"),
        ("--num-instances 1 2 --steps 4 5 --out z", "unexpected argument 5"),
        ("--num-instances=1 2 --out z 5", "unexpected argument 5"),
        ("--num-instances 2 5 --teacher x --texts y --out z", "1 must be among them"),
        ("--config empty.yaml", "empty.yaml: distill: expected settings as"),
        ("--config scalar.yaml --steps 3", "scalar.yaml: distill: expected settings as"),
        ("--config unknown.yaml", "distill.stepz: Extra inputs are not permitted"),
        ("--config latin.yaml", "latin.yaml: not UTF-8 (byte 12)"),
        ("--teacher x --texts y --out z --word-pieces 3", "word_pieces: Input should be"),
    ]:
        done = CliRunner().invoke(app, ["train", "distill", *shlex.split(arguments)])
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr.splitlines()[-1]
        assert len(done.stderr.splitlines()) == 1
