"""What checkpoints look like on disk: shards, old names, gaps and settings of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, pipeline
from typer.testing import CliRunner

from muxserve import Engine, Family
from muxserve.cli import app
from muxserve.engine.config import EngineConfig
from muxserve.engine.scores import label_scores
from muxserve.engine.tokens import TextEncoder
from muxserve.errors import FamilyError
from muxserve.models.convert import convert
from muxserve.models.family import read_spec
from muxserve.models.source import read_state
from tests.models.test_plain_types import READ, TEXTS, checkpoint, served, tokenizer
from tests.models.test_plain_types import one_thread as one_thread


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny BERT classifier with three labels."""
    checkpoint("bert", TEXTS, tmp_path / "plain")
    return tmp_path / "plain"


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def rewrite(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


def shard(folder: Path, name: str, save: Any) -> Path:
    """The weights as two files and an index, as large checkpoints have them."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, end = name.split(".")
    names = [f"{stem}-{number:05}-of-00002.{end}" for number in (1, 2)]
    placed = {key: names[index % 2] for index, key in enumerate(state)}
    for one in names:
        save({key: state[key] for key in state if placed[key] == one}, folder / one)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return index


@pytest.mark.parametrize(
    ("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)]
)
def test_weights_in_several_files_are_read_by_their_index(folder, tmp_path, name, save):
    whole = load_file(folder / "model.safetensors")
    index = shard(folder, name, save)
    convert(str(folder), tmp_path / "family")
    made = load_file(tmp_path / "family" / "n1" / "model.safetensors")
    assert made.keys() == whole.keys()
    assert all(torch.equal(made[key], whole[key]) for key in whole)

    placed = json.loads(index.read_text())["weight_map"]
    key, file = next(iter(placed.items()))
    for changed, message in (
        ({**placed, "more": file}, rf"{file}: more is not in it, though {index.name} says so"),
        ({**placed, key: "../there"}, r"field weight_map: '\.\./there' is no file beside it"),
        ({**placed, key: "/etc/passwd"}, "field weight_map: '/etc/passwd' is no file beside it"),
        ({**placed, key: "gone.bin"}, rf"gone\.bin: missing; {index.name} names it"),
        ([file], "field weight_map: expected the file of each tensor"),
        ({key: 1}, "field weight_map: expected the file of each tensor"),
    ):
        edit(index, weight_map=changed)
        with pytest.raises(FamilyError, match=message):
            read_state(folder)
    index.write_text("[]")
    with pytest.raises(FamilyError, match=r"index\.json: not a JSON object"):
        read_state(folder)


def test_old_names_are_read_and_unused_tensors_are_dropped_and_named(folder, tmp_path):
    def of_2018(state):
        old = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for key, tensor in state.items()
        }
        return {
            **old,
            "bert.embeddings.position_ids": torch.arange(40)[None],
            "cls.predictions.bias": torch.zeros(80),
        }

    expected = load_file(folder / "model.safetensors")
    rewrite(folder, of_2018)
    made = convert(str(folder), tmp_path / "family")
    assert made.dropped == ("bert.embeddings.position_ids", "cls.predictions.bias")
    written = load_file(tmp_path / "family" / "n1" / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


def test_the_command_names_what_it_dropped(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(folder, lambda state: {**state, "cls.predictions.bias": torch.zeros(80)})
    said = CliRunner().invoke(app, ["convert", "plain", "family"])
    assert said.exit_code == 0, said.output
    assert "dropped, as the model does not use them: cls.predictions.bias\n" in said.stdout
    assert "texts of up to 40 tokens" in said.stdout
    as_json = CliRunner().invoke(app, ["convert", "plain", "other", "--max-length", "20", "--json"])
    assert json.loads(as_json.stdout) == {
        "kind": "plain BertForSequenceClassification",
        "num_instances": 1,
        "folder": "other/n1",
        "served": True,
        "dropped": ["cls.predictions.bias"],
        "max_length": 20,
    }


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_a_pooler_that_a_type_does_not_use_is_dropped(kind, tmp_path):
    checkpoint(kind, TEXTS, tmp_path / "plain")
    pooler = f"{kind}.pooler.dense.weight"
    rewrite(tmp_path / "plain", lambda state: {**state, pooler: torch.zeros(32, 32)})
    assert convert(str(tmp_path / "plain"), tmp_path / "family").dropped == (pooler,)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"id2label": {"0": "bad", "2": "good"}}, ["bad", "LABEL_1", "good"]),
        ({"id2label": {"2": "good"}, "num_labels": 3}, ["LABEL_0", "LABEL_1", "good"]),
        # The weights know better than a gap at the end.
        ({"id2label": {"1": "fair"}}, ["LABEL_0", "fair", "LABEL_2"]),
    ],
)
def test_gaps_in_id2label_are_filled(folder, tmp_path, changes, names):
    edit(folder / "config.json", label2id=None, **changes)
    convert(str(folder), tmp_path / "family")
    assert read_spec(tmp_path / "family").labels == names
    assert list(Family.load(tmp_path / "family").models[1].config.id2label.values()) == names


def test_an_id2label_of_null_asks_for_names(folder, tmp_path):
    edit(folder / "config.json", id2label=None, label2id=None)
    with pytest.raises(FamilyError, match="its 3 labels have no names; give them with --labels"):
        convert(str(folder), tmp_path / "family")
    convert(str(folder), tmp_path / "family", labels=["x", "y", "z"])
    assert read_spec(tmp_path / "family").labels == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": ["a", "b", "c"]}, "field id2label: expected"),
        ({"id2label": {"zero": "a"}}, "field id2label: expected"),
        ({"id2label": {"0": 1}}, "field id2label: expected the names of labels by"),
        (
            {"id2label": {"0": "a", "7": "b"}},
            "field id2label: it names label 7, the weights have 3",
        ),
        ({"id2label": {"0": "a", "1": "b"}}, r"has shape \[3.*\], config.json asks for \[2"),
        ({"num_labels": "3"}, "field num_labels: expected a whole number"),
        ({"id2label": None, "num_labels": 10**9}, "field num_labels: 1,000,000,000 labels"),
        ({"id2label": {"999999999": "a"}}, "field id2label: 1,000,000,000 labels"),
        ({"id2label": {"999": "a"}}, "of 1,000 labels, but no tensor of the weights has more"),
        ({"intermediate_size": 10**7}, "claims a network of|field intermediate_size"),
        ({"model_type": "nothing"}, "field model_type: .*nothing"),
        ({"architectures": "Bert"}, "field architectures: expected a list"),
        ({"architectures": ["BertModel"]}, "field architectures: .* is neither an official"),
        ({"hidden_size": 31}, r"bert\.\S+ has shape \[32\], config\.json asks for \[31\]"),
        ({"hidden_act": "magic"}, "config.json: .*magic"),
        ({"quantization_config": {"bits": 4}}, "field quantization_config: quantized"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line_and_nothing_is_written(
    folder, tmp_path, changes, message
):
    edit(folder / "config.json", **changes)
    with pytest.raises(FamilyError, match=message) as refused:
        convert(str(folder), tmp_path / "new" / "family")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_a_lone_label_is_a_sigmoid_as_in_the_pipeline(tmp_path):
    one = {"id2label": {0: "toxic"}, "label2id": {"toxic": 0}}
    model = checkpoint("bert", TEXTS, tmp_path / "plain", **one)
    convert(str(tmp_path / "plain"), tmp_path / "family")
    ask = pipeline("text-classification", model=model, tokenizer=tokenizer(tmp_path / "tokenizer"))
    for text, answer in zip(
        READ[:2], served(Family.load(tmp_path / "family"), READ)[:2], strict=True
    ):
        assert answer == pytest.approx({"toxic": ask(text)[0]["score"]}, abs=1e-5)

    checkpoint("bert", TEXTS, tmp_path / "value", problem_type="regression", **one)
    convert(str(tmp_path / "value"), tmp_path / "values")
    spec = read_spec(tmp_path / "values")
    assert label_scores(torch.tensor([7.5]).numpy(), spec)[0].score == 7.5


def test_the_tokenizers_own_limit_and_side_are_kept_and_obeyed(folder, tmp_path):
    own = tokenizer(folder, model_max_length=12, truncation_side="left")
    assert convert(str(folder), tmp_path / "family").max_length == 12
    spec = read_spec(tmp_path / "family")
    assert (spec.max_length, spec.truncation_side) == (12, "left")
    text = "a good film " * 9 + "the bad"
    with Engine.from_family(
        tmp_path / "family", EngineConfig(warm_up_s=0.01, dtype="float32")
    ) as engine:
        (answer,) = engine.classify([text], raw_scores=True)
    assert answer.truncated
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    expected = model(torch.tensor([own(text, truncation=True)["input_ids"]])).logits[0].tolist()
    scores = {one.label: one.score for one in answer.labels}
    assert [scores[name] for name in spec.labels] == pytest.approx(expected, abs=1e-5)

    encoder = TextEncoder.of_family(Family.load(tmp_path / "family"))
    left, right = (encoder.encode([text], truncate=one)[0].ids.tolist() for one in (True, "right"))
    assert encoder.encode([text], truncate="left")[0].ids.tolist() == left
    assert left == own(text, truncation=True)["input_ids"] != right
    own.truncation_side = "right"
    assert right == own(text, truncation=True)["input_ids"]


@pytest.mark.parametrize(
    ("settings", "length"), [({"model_max_length": 10**30}, 40), ({"model_max_length": 512}, 40)]
)
def test_a_tokenizer_without_a_limit_leaves_it_to_the_model(folder, tmp_path, settings, length):
    edit(folder / "tokenizer_config.json", **settings)
    assert convert(str(folder), tmp_path / "family").max_length == length


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_max_length": "long"}, "field model_max_length: expected a whole number of tokens"),
        ({"model_max_length": 2}, "field model_max_length: 2 tokens are too few"),
        ({"truncation_side": "middle"}, "field truncation_side: expected left or right"),
    ],
)
def test_odd_settings_of_a_tokenizer_are_named(folder, tmp_path, settings, message):
    edit(folder / "tokenizer_config.json", **settings)
    with pytest.raises(FamilyError, match=message):
        convert(str(folder), tmp_path / "family")
    assert not (tmp_path / "family").exists()


def test_a_wanted_length_is_what_the_model_takes_or_refused(folder, tmp_path):
    with pytest.raises(
        FamilyError, match="max_length: this model takes texts of 40 tokens, got 41"
    ):
        convert(str(folder), tmp_path / "family", max_length=41)
    convert(str(folder), tmp_path / "family", max_length=30)
    assert read_spec(tmp_path / "family").max_length == 30
    with pytest.raises(FamilyError, match="leave --max-length out"):
        convert(str(folder), tmp_path / "family", max_length=30)


def test_weights_are_written_so_that_transformers_reads_them_too(folder, tmp_path):
    convert(str(folder), tmp_path / "family")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "family" / "n1")
    assert again.config.architectures == ["BertForSequenceClassification"]
    before = BertForSequenceClassification.from_pretrained(folder)
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(again.eval()(ids).logits, before.eval()(ids).logits)


def test_half_precision_weights_are_served_as_they_are(folder, tmp_path):
    rewrite(folder, lambda state: {key: one.half() for key, one in state.items()})
    convert(str(folder), tmp_path / "family")
    written = load_file(tmp_path / "family" / "n1" / "model.safetensors")
    assert all(
        torch.equal(written[key].half(), one)
        for key, one in load_file(folder / "model.safetensors").items()
    )
