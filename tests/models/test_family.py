"""A family folder: every way it can be broken is an error that names the file and the field."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from muxserve.errors import FamilyError
from muxserve.models.family import Family, read_spec, resolve, write_spec
from muxserve.models.precision import fastest_dtype
from tests.conftest import tiny_config, tiny_plain_config


@pytest.fixture
def folder(tiny_family, tmp_path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(tiny_family, tmp_path / "family")


def edit_json(file: Path, **changes) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, change) -> None:
    file = folder / "weights" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_family_loads_with_one_model_for_members_that_share_weights(folder):
    family = Family.load(folder)
    assert family.widths == [1, 2, 5]
    assert len({id(model) for model in family.models.values()}) == 1
    assert family.padded_length is None


def test_only_the_wanted_members_are_loaded(folder):
    assert Family.load(folder, [2]).widths == [2]
    with pytest.raises(FamilyError, match="no member with num_instances 3"):
        Family.load(folder, [3])


def test_a_plain_classifier_serves_as_the_member_of_n_one(folder):
    BertForSequenceClassification(tiny_plain_config()).save_pretrained(folder / "plain")
    members = [{"num_instances": 1, "path": "plain"}, {"num_instances": 5, "path": "weights"}]
    edit_json(folder / "family.json", members=members)
    family = Family.load(folder)
    assert type(family.models[1]) is BertForSequenceClassification
    assert family.widths == [1, 5]


def test_a_spec_survives_being_written(folder):
    spec = read_spec(folder)
    write_spec(folder, spec)
    assert read_spec(folder) == spec
    assert [path.name for path in folder.glob("*.tmp")] == []


@pytest.mark.parametrize("family", ["nowhere", "../sentiment", "no/such/folder", ""])
def test_a_family_that_is_not_there_is_named(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FamilyError, match=r"no family .*family\.json"):
        resolve(family)


BREAKS = {
    "not JSON": (lambda f: (f / "family.json").write_text("{"), r"family\.json: field .*JSON"),
    "not UTF-8": (lambda f: (f / "family.json").write_bytes(b"\xff\xfe"), r"family\.json"),
    "unknown field": (
        lambda f: edit_json(f / "family.json", colour="red"),
        r"family\.json: field colour",
    ),
    "missing field": (
        lambda f: (f / "family.json").write_text('{"name": "x"}'),
        r"family\.json: field task",
    ),
    "other task": (
        lambda f: edit_json(f / "family.json", task="translation"),
        r"family\.json: field task",
    ),
    "no members": (
        lambda f: edit_json(f / "family.json", members=[]),
        r"family\.json: field members",
    ),
    "members out of order": (
        lambda f: edit_json(
            f / "family.json",
            members=[{"num_instances": n, "path": "weights"} for n in (5, 1)],
        ),
        r"family\.json: .*ascending",
    ),
    "wrong N": (
        lambda f: edit_json(f / "family.json", members=[{"num_instances": 3, "path": "weights"}]),
        r"config\.json: field widths.*num_instances 3",
    ),
    "labels": (
        lambda f: edit_json(f / "family.json", labels=["a", "b", "c"]),
        r"family\.json: field labels: 3 names.*2 labels",
    ),
    "max_length": (
        lambda f: edit_json(f / "family.json", max_length=64),
        r"family\.json: field max_length: 64",
    ),
    "fixed length": (
        lambda f: (
            edit_json(f / "family.json", max_length=16),
            edit_json(f / "weights" / "config.json", padding="max_length", encoder_mask="none"),
        ),
        r"family\.json: field max_length: .*trained with, 32; got 16",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"tokenizer\.json: missing \(field tokenizer",
    ),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("[]"),
        r"tokenizer\.json: not a tokenizer file",
    ),
    "no config": (lambda f: (f / "weights" / "config.json").unlink(), r"config\.json: missing"),
    "broken config": (
        lambda f: (f / "weights" / "config.json").write_text("{"),
        r"config\.json",
    ),
    "impossible config": (
        lambda f: edit_json(f / "weights" / "config.json", pooling="last"),
        r"config\.json: .*pooling",
    ),
    "unknown variant": (
        lambda f: edit_json(f / "weights" / "config.json", muxing_variant="magic"),
        r"config\.json: .*muxing_variant",
    ),
    "no weights": (
        lambda f: (f / "weights" / "model.safetensors").unlink(),
        r"model\.safetensors: missing",
    ),
    "cut weights": (
        lambda f: (f / "weights" / "model.safetensors").write_bytes(
            (f / "weights" / "model.safetensors").read_bytes()[:-100]
        ),
        r"model\.safetensors: not a safetensors file",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({"classifier.out_proj.bias": torch.ones(3)})),
        r"model\.safetensors: tensor classifier\.out_proj\.bias has shape \[3\].*\[2\]",
    ),
    "missing tensor": (
        lambda f: edit_weights(f, lambda t: t.pop("classifier.out_proj.bias")),
        r"model\.safetensors: tensor classifier\.out_proj\.bias is missing",
    ),
    "extra tensor": (
        lambda f: edit_weights(f, lambda t: t.update({"surplus": torch.ones(3)})),
        r"model\.safetensors: unexpected tensors surplus",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_family_names_the_file_and_the_field(folder, name):
    break_it, message = BREAKS[name]
    break_it(folder)
    with pytest.raises(FamilyError, match=message):
        Family.load(folder)


def test_an_official_checkpoint_is_recognised_and_not_served_as_something_else(tmp_path):
    config = {"model_type": "bert", "muxing_variant": "gaussian_hadamard", "num_instances": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FamilyError, match="official MUX-PLM checkpoint, not yet converted"):
        resolve(tmp_path)


@pytest.mark.parametrize("has_it", [True, False])
def test_the_fastest_dtype_is_what_the_processor_has_instructions_for(
    tiny_family, monkeypatch, has_it
):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": has_it})
    fastest = Family.load(tiny_family, dtype=None).models[1].dtype
    assert fastest == (torch.bfloat16 if has_it else torch.float32)
    assert Family.load(tiny_family).models[1].dtype == torch.float32
    # Official checkpoints keep the reference's numbers.
    official = tiny_config(encoder_mask="none", padding="max_length")
    assert fastest_dtype([official]) == torch.float32
