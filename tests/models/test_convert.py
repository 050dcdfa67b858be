"""Checkpoints become members of a family: official ones, plain ones, and broken ones do not."""

import json
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from muxserve import Engine, Family
from muxserve.engine.config import EngineConfig
from muxserve.errors import FamilyError
from muxserve.models.convert import convert
from muxserve.models.family import read_spec
from tests.conftest import PIECES, tiny_tokenizer
from tests.models.test_golden import GOLDEN

LABELS = ["bad", "fair", "good"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
PLAIN = {
    "bert": (BertConfig, BertForSequenceClassification),
    "electra": (ElectraConfig, ElectraForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification),
}


def golden(name: str) -> Path:
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"the golden cases are missing: no folder {folder} (set MUXSERVE_GOLDEN)")
    return folder


@pytest.fixture
def official(tmp_path) -> Path:
    """A folder as it is published: config.json and a pickled state dict, no tokenizer."""
    case = golden("bert_seq_gaussian_hadamard_index_pos_n2")
    folder = tmp_path / "official"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(case / name, folder)
    return folder


@pytest.fixture
def tokenizer(tmp_path) -> str:
    file = tmp_path / "tokenizer.json"
    tiny_tokenizer().save(str(file))
    return str(file)


def plain(kind: str, folder: Path, **changes) -> Path:
    """A small plain classifier with its tokenizer, as a fine-tuning script leaves it."""
    config_class, model_class = PLAIN[kind]
    settings = {
        "vocab_size": 130,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: index for index, name in enumerate(LABELS)},
        "pad_token_id": 0,
        **changes,
    }
    if kind == "distilbert":
        settings |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    torch.manual_seed(0)
    model_class(config_class(**settings)).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def test_an_official_checkpoint_becomes_a_family_with_the_references_numbers(
    official, tokenizer, tmp_path
):
    out = tmp_path / "family"
    made = convert(str(official), out, tokenizer=tokenizer, labels=LABELS)
    assert (made.num_instances, made.served) == (2, True)
    assert made.kind == "official MuxedBertForSequenceClassification"
    assert not list(out.rglob("*.bin"))

    case = golden("bert_seq_gaussian_hadamard_index_pos_n2")
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "outputs.safetensors")["logits"]
    family = Family.load(out)
    assert family.padded_length == family.spec.max_length == 64
    with torch.inference_mode():
        logits = family.models[2](inputs["input_ids"], inputs["attention_mask"]).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    with Engine(family, EngineConfig(warm_up_s=0.1)) as engine:
        answers = engine.classify(["a good film", "a bad film", "the film"])
    assert {entry.label for answer in answers for entry in answer.labels} == set(LABELS)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_classifier_serves_at_one_as_it_is(kind, tmp_path):
    folder = plain(kind, tmp_path / kind, pad_token_id=1 if kind == "roberta" else 0)
    out = tmp_path / "family"
    assert convert(str(folder), out).num_instances == 1
    spec = read_spec(out)
    assert spec.labels == LABELS
    assert spec.max_length == (64 if kind == "roberta" else 66)

    long_text = "a " * 100  # cut to the most that the position table holds
    texts = ["a good film", "not a very good film", long_text]
    model = PLAIN[kind][1].from_pretrained(folder).eval()
    with Engine.from_family(out, EngineConfig(warm_up_s=0.1, dtype="float32")) as engine:
        answers = engine.classify(texts, raw_scores=True)
    for text, answer in zip(texts, answers, strict=True):
        ids = tiny_tokenizer().encode(text).ids
        if len(ids) > spec.max_length:
            ids = [*ids[: spec.max_length - 1], ids[-1]]
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0]
        scores = {entry.label: entry.score for entry in answer.labels}
        torch.testing.assert_close(
            torch.tensor([scores[name] for name in LABELS]), expected, **CLOSE
        )


def test_a_family_is_widened_by_a_second_checkpoint(official, tmp_path):
    out = tmp_path / "family"
    convert(str(plain("bert", tmp_path / "plain")), out)
    convert(str(official), out, labels=LABELS)
    spec = read_spec(out)
    assert [member.num_instances for member in spec.members] == [1, 2]
    assert spec.max_length == 64, "official weights are served at their own length"
    with Engine.from_family(out, EngineConfig(warm_up_s=0.1)) as engine:
        assert engine.classify(["a good film"])[0].num_instances == 1


def test_an_official_token_checkpoint_labels_words(tokenizer, tmp_path):
    case = golden("electra_tok_gaussian_hadamard_index_pos_n5")
    out = tmp_path / "family"
    own = json.loads((case / "config.json").read_text())["id2label"]
    labels = [f"tag{index}" for index in own]
    made = convert(str(case), out, tokenizer=tokenizer, labels=labels)
    assert (made.num_instances, made.served) == (5, True)
    assert read_spec(out).task == "token-classification"
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "outputs.safetensors")["logits"]
    family = Family.load(out)
    with torch.inference_mode():
        logits = family.models[5](inputs["input_ids"], inputs["attention_mask"]).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    with Engine(family, EngineConfig(warm_up_s=0.1)) as engine:
        (answer,) = engine.tag(["a good film"])
    assert [one.word.text for one in answer.words] == ["a", "good", "film"]


def test_a_plain_token_classifier_serves_at_one_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = BertForTokenClassification(
        BertConfig(
            vocab_size=130,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
            id2label={0: "O", 1: "PER", 2: "LOC"},
            label2id={"O": 0, "PER": 1, "LOC": 2},
        )
    ).eval()
    model.save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save(str(tmp_path / "plain" / "tokenizer.json"))
    convert(str(tmp_path / "plain"), tmp_path / "family")
    with Engine.from_family(
        tmp_path / "family", EngineConfig(warm_up_s=0.1, dtype="float32")
    ) as engine:
        (answer,) = engine.tag(["a good film"], raw_scores=True)
    ids = torch.tensor([tiny_tokenizer().encode("a good film").ids])
    with torch.inference_mode():
        expected = model(ids).logits[0]
    assert [one.label for one in answer.words] == [
        ["O", "PER", "LOC"][int(row.argmax())] for row in expected[1:-1]
    ]
    sentences = plain("bert", tmp_path / "sentences")
    with pytest.raises(FamilyError, match=r"field task: the family's is token-classification"):
        convert(str(sentences), tmp_path / "family")


@pytest.mark.parametrize("name", ["bert_mlm_gaussian_hadamard_index_pos_n2"])
def test_what_is_no_classifier_is_converted_and_said_not_to_be_served(name, tmp_path):
    out = tmp_path / "out"
    made = convert(str(golden(name)), out)
    assert not made.served
    assert (out / "model.safetensors").is_file()
    assert not (out / "family.json").exists()
    with pytest.raises(FamilyError, match="labels are for classifiers"):
        convert(str(golden(name)), tmp_path / "other", labels=["a"])
    with pytest.raises(FamilyError, match="there is a model already"):
        convert(str(golden(name)), out)


def test_a_name_on_the_hub_is_fetched(official, tokenizer, tmp_path, monkeypatch):
    """The hub's own client, with its cache filled beforehand instead of a network."""
    commit = "0" * 40
    for repo, folder in (("some/mux", official), ("some/tokenizer", Path(tokenizer).parent)):
        cached = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(commit)
        (cached / "snapshots" / commit).mkdir(parents=True)
        for file in folder.iterdir():
            if file.is_file():
                shutil.copy(file, cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    in_cache = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "hub")
    monkeypatch.setattr("muxserve.models.source.snapshot_download", in_cache)
    made = convert("some/mux", tmp_path / "out", tokenizer="some/tokenizer", labels=LABELS)
    assert made.served
    with pytest.raises(FamilyError, match=r"some/other: no such folder here, and the hub did not"):
        convert("some/other", tmp_path / "out2")


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not None}))


def rewrite_weights(folder: Path, change) -> None:
    file = folder / "pytorch_model.bin"
    state = dict(torch.load(file, weights_only=True))
    change(state)
    torch.save(state, file)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: edit_config(f, muxing_variant="magic"), "unknown muxing_variant 'magic'; known"),
        (lambda f: edit_config(f, demuxing_variant="magic"), "unknown demuxing_variant 'magic'"),
        (
            lambda f: edit_config(f, architectures=["MuxedGpt"]),
            "architectures: 'MuxedGpt' is unknown",
        ),
        (
            lambda f: edit_config(f, num_instances=5),
            r"has shape \[2, 32\], the config asks for \[5",
        ),
        (lambda f: rewrite_weights(f, lambda s: s.pop("classifier.bias")), "lacks classifier.bias"),
        (lambda f: rewrite_weights(f, lambda s: s.update(odd=torch.ones(1))), "no rule knows: odd"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"junk"), "refused, it is not tensors"),
        (lambda f: (f / "pytorch_model.bin").unlink(), "no weights; expected model.safetensors or"),
        (lambda f: (f / "config.json").unlink(), "config.json: missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    ],
)
def test_a_broken_official_checkpoint_is_named_and_nothing_is_written(
    official, tokenizer, tmp_path, break_it, message
):
    break_it(official)
    out = tmp_path / "out"
    with pytest.raises(FamilyError, match=message):
        convert(str(official), out, tokenizer=tokenizer, labels=LABELS)
    assert not out.exists()


class Harmful:
    """Writes a file when it is unpickled freely."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_a_pickle_that_would_run_code_is_refused(official, tokenizer, tmp_path):
    harm = tmp_path / "harm"
    torch.save({"instance_embedding": Harmful(harm)}, official / "pytorch_model.bin")
    with pytest.raises(FamilyError, match="refused, it is not tensors alone"):
        convert(str(official), tmp_path / "out", tokenizer=tokenizer, labels=LABELS)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no tokenizer; name one with --tokenizer"),
        ({"labels": None}, "its 3 labels have no names; give them with --labels"),
        ({"labels": ["a", "b"]}, "expected 3 different names, got a, b"),
        ({"labels": ["a", "a", "b"]}, "expected 3 different names"),
        ({"tokenizer": "config.json"}, "not a tokenizer file"),
    ],
)
def test_missing_labels_or_tokenizer_are_asked_for(official, tmp_path, options, message):
    options = {"labels": LABELS, **options}
    if options.get("tokenizer"):
        options["tokenizer"] = str(official / options["tokenizer"])
    with pytest.raises(FamilyError, match=message):
        convert(str(official), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_another_models_tokenizer_is_refused(tmp_path):
    folder = plain("bert", tmp_path / "plain", vocab_size=20)
    with pytest.raises(FamilyError, match=r"has \d+ pieces, the weights 20: it is another model's"):
        convert(str(folder), tmp_path / "out")


def test_a_family_is_not_widened_by_what_does_not_fit(official, tmp_path):
    out = tmp_path / "family"
    convert(str(plain("bert", tmp_path / "plain")), out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    cases = [
        ({"source": str(tmp_path / "plain")}, "there is a member with N=1 already"),
        (
            {"labels": ["x", "y", "z"]},
            "the family has bad, fair, good; this checkpoint has x, y, z",
        ),
        # The same names in another order are other labels.
        ({"labels": LABELS[::-1]}, "the family has bad, fair, good; this checkpoint has good, "),
        ({"labels": LABELS, "tokenizer": str(tmp_path)}, "the family has its tokenizer"),
    ]
    for options, message in cases:
        source = options.pop("source", str(official))
        with pytest.raises(FamilyError, match=message):
            convert(source, out, **options)
    edit_config(official, pad_token_id=5)
    with pytest.raises(FamilyError, match="field pad_token_id: 5, but another member has 0"):
        convert(str(official), out, labels=LABELS)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_sources_and_places_that_are_none(official, tokenizer, tmp_path):
    with pytest.raises(FamilyError, match="no name of a model either"):
        convert(str(tmp_path / "not here"), tmp_path / "out")
    with pytest.raises(FamilyError, match=r"expected a folder with config\.json and weights"):
        convert(tokenizer, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FamilyError, match="not empty and no family"):
        convert(str(official), tmp_path / "full", tokenizer=tokenizer, labels=LABELS)


def test_a_plain_checkpoint_that_lacks_tensors_is_named(tmp_path):
    folder = plain("bert", tmp_path / "plain")
    state = load_file(folder / "model.safetensors")
    state.pop("classifier.bias")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FamilyError, match=r"lacks classifier\.bias"):
        convert(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unconverted_checkpoint_is_named_where_it_is_served(official, tokenizer, tmp_path):
    with pytest.raises(FamilyError, match=r"not yet converted.*run: muxserve convert"):
        Family.load(official)
    out = tmp_path / "family"
    convert(str(official), out, tokenizer=tokenizer, labels=LABELS)
    shutil.copy(official / "config.json", out / "n2")
    with pytest.raises(FamilyError, match="not yet converted"):
        Family.load(out)


def test_a_vocabulary_file_is_a_tokenizer_too(official, tmp_path):
    """What bert-base-uncased has beside tokenizer.json, and old checkpoints have alone."""
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    pieces = [*PIECES, "[MASK]", *(f"[unused{index}]" for index in range(129 - len(PIECES)))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    out = tmp_path / "family"
    convert(str(official), out, tokenizer=str(folder), labels=LABELS)
    assert Family.load(out).tokenizer.encode("A good film").tokens == [
        *("[CLS]", "a", "good", "film", "[SEP]")
    ]
