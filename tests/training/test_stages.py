"""The three stages on a tiny scale: each learns, hands over to the next, and resumes exactly."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, ElectraConfig, ElectraModel
from typer.testing import CliRunner

from muxserve.cli import app
from muxserve.models.convert import convert
from muxserve.models.family import Family
from muxserve.training.recipe import StageRecipe
from muxserve.training.stages.run import run_stage
from muxserve.training.stages.trainer import StageTrainer, last_whole_checkpoint
from tests.conftest import program, tiny_tokenizer
from tests.models.test_convert import golden

DOCS = Path(__file__).parents[2] / "docs" / "stages.md"
WORDS = ["good", "bad", "film", "very", "not", "the"]
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Plain encoders, texts and labelled texts."""
    root = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["[MASK]"])
    size = tokenizer.get_vocab_size()
    BertForMaskedLM(BertConfig(vocab_size=size, **SIZES)).save_pretrained(root / "bert")
    electra = ElectraConfig(vocab_size=size, embedding_size=16, **SIZES)
    ElectraModel(electra).save_pretrained(root / "electra")
    for name in ("bert", "electra"):
        tokenizer.save(str(root / name / "tokenizer.json"))
    (root / "texts.txt").write_text("\n".join(TEXTS))
    rows = [{"text": text, "label": "yes" if "good" in text else "no"} for text in TEXTS]
    (root / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def recipe(folder: Path, stage: str, start: Path, out: Path, **changes) -> StageRecipe:
    data = folder / ("labelled.jsonl" if stage == "finetune" else "texts.txt")
    settings = {
        "stage": stage,
        "start": str(start),
        "data": str(data),
        "out": out,
        "steps": 6,
        "groups": 4,
        "evaluate_every": 2,
        "learning_rate": 3e-3,
        "held_out": 0.2,
    }
    return StageRecipe(**{**settings, **changes})


def test_bert_goes_through_all_three_stages_to_a_served_family(folder, tmp_path):
    warm = run_stage(
        recipe(folder, "retrieval", folder / "bert", tmp_path / "warm", num_instances=2, steps=60)
    )
    assert warm["retrieved"] > 0.5, "of 6 words, with two in each position"
    before = load_file(tmp_path / "warm" / "model.safetensors")
    measured = run_stage(
        recipe(folder, "pretrain", tmp_path / "warm", tmp_path / "pretrained", mask_share=0.3)
    )
    assert measured["loss"] > 0
    after = load_file(tmp_path / "pretrained" / "model.safetensors")
    assert before.keys() == after.keys()
    tuned = run_stage(
        recipe(folder, "finetune", tmp_path / "pretrained", tmp_path / "n2", steps=40)
    )
    assert tuned["accuracy"] > 0.6
    plain = run_stage(
        recipe(folder, "finetune", folder / "bert", tmp_path / "n1", num_instances=1, steps=150)
    )
    assert plain["accuracy"] > 0.8
    for member in ("n1", "n2"):
        convert(str(tmp_path / member), tmp_path / "family")
    family = Family.load(tmp_path / "family")
    assert family.widths == [1, 2]
    assert family.spec.labels == ["no", "yes"]


@pytest.mark.parametrize("generator", [None, "bert"])
def test_electra_learns_to_tell_replaced_words(folder, tmp_path, generator):
    measured = run_stage(
        recipe(
            folder,
            "pretrain",
            folder / "electra",
            tmp_path / "out",
            num_instances=2,
            generator=str(folder / generator) if generator else None,
        )
    )
    assert 0 <= measured["accuracy"] <= 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["MuxElectraForPreTraining"]


def test_a_token_task_through_a_folder_of_datasets(folder, tmp_path):
    tags = ClassLabel(names=["O", "THING"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tags)})
    rows = [text.split() for text in TEXTS]
    data = Dataset.from_dict(
        {"tokens": rows, "ner_tags": [[int(word == "film") for word in row] for row in rows]},
        features=features,
    )
    DatasetDict({"train": data, "validation": data.select(range(40))}).save_to_disk(
        tmp_path / "data"
    )
    measured = run_stage(
        recipe(
            folder,
            "finetune",
            folder / "bert",
            tmp_path / "out",
            task="token-classification",
            data=str(tmp_path / "data"),
            tags_column="ner_tags",
            num_instances=2,
            steps=40,
        )
    )
    assert measured["accuracy"] > 0.7
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "THING"}


def test_real_numbers_and_pairs_from_parquet(folder, tmp_path):
    Dataset.from_dict(
        {
            "sentence1": TEXTS,
            "sentence2": TEXTS[::-1],
            "score": [text.count("good") / 3 for text in TEXTS],
        }
    ).to_parquet(tmp_path / "pairs.parquet")
    measured = run_stage(
        recipe(
            folder,
            "finetune",
            folder / "electra",
            tmp_path / "out",
            data=str(tmp_path / "pairs.parquet"),
            text_column="sentence1",
            pair_column="sentence2",
            label_column="score",
            num_instances=2,
        )
    )
    assert -1 <= measured["pearson"] <= 1


@pytest.mark.parametrize(
    ("case", "stage"),
    [
        ("bert_mlm_gaussian_hadamard_index_pos_n2", "retrieval"),
        ("bert_mlm_gaussian_hadamard_index_pos_n2", "pretrain"),
        ("bert_mlm_gaussian_hadamard_index_pos_n2", "finetune"),
        ("electra_rtd_gaussian_hadamard_index_pos_n2", "pretrain"),
        ("electra_rtd_gaussian_hadamard_index_pos_n2", "finetune"),
        ("bert_seq_gaussian_hadamard_index_n2", "finetune"),
    ],
)
def test_an_official_checkpoint_is_trained_on_as_it_was_trained(folder, tmp_path, case, stage):
    official = golden(case)
    start = recipe(
        folder, stage, official, tmp_path / "out", tokenizer=str(folder / "bert"), steps=2
    )
    run_stage(start)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["padding"] == "max_length"
    assert config["encoder_mask"] == "none"
    assert config["num_instances"] == 2


class Stop(Exception):
    pass


@pytest.mark.parametrize("stage", ["retrieval", "pretrain", "finetune"])
def test_a_stage_that_was_stopped_ends_with_the_same_weights(folder, tmp_path, stage, monkeypatch):
    def of(name: str) -> StageRecipe:
        out = tmp_path / name
        return recipe(folder, stage, folder / "bert", out, num_instances=2, gradient_accumulation=2)

    whole = run_stage(of("whole"))
    step = StageTrainer.training_step
    done = 0

    def until_the_seventh_batch(self, *args, **kwargs):
        nonlocal done
        done += 1
        if done == 7:  # in the middle of step 4; the state after step 2 is kept
            raise Stop
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", until_the_seventh_batch)
    with pytest.raises(Stop):
        run_stage(of("stopped"))
    assert not (tmp_path / "stopped").exists()
    monkeypatch.undo()
    # A checkpoint that a kill cut off: newer, but without its last file.
    (tmp_path / "stopped.work/trainer/checkpoint-99").mkdir()
    resumed = run_stage(of("stopped"))

    assert resumed == whole
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert not (tmp_path / "stopped.work/trainer/checkpoint-99").exists()
    assert last_whole_checkpoint(tmp_path / "stopped.work/trainer").name == "checkpoint-6"
    assert list((tmp_path / "stopped.work/trainer/tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("finetune", {"label_column": "mark"}, "no column 'mark'; columns: text, label"),
        ("finetune", {"data": "nowhere.csv"}, "nowhere.csv: no such file"),
        ("finetune", {"task": "token-classification"}, "no column 'tokens'"),
        ("finetune", {"demuxing_variant": "other"}, "demuxing_variant"),
        ("pretrain", {"num_instances": 1}, "num_instances: pretrain is for N of 2 and more"),
        ("pretrain", {"generator": "bert"}, "generator: only MUX-ELECTRA"),
        ("pretrain", {"groups": 1000}, "fewer than one batch takes"),
        ("retrieval", {"max_length": 100}, "trained_length"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(folder, tmp_path, stage, changes, says):
    wrong = recipe(
        folder, stage, folder / "bert", tmp_path / "out", **{"num_instances": 2, **changes}
    )
    with pytest.raises(ValueError, match=says):
        run_stage(wrong)
    assert list(tmp_path.iterdir()) == [], "the mended command is not another run"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"text": "good", "label": "yes"}\n{"text": " ", "label": "no"}', "row 1: column 'text'"),
        (
            '{"text": "a", "label": "yes"}\n{"text": "b", "label": "no"}\n{"text": "c"}',
            "row 2: column 'label' has no label",
        ),
        (
            '{"text": "a", "label": "yes"}\n{"text": "b", "label": "no"}\n'
            '{"text": "c", "label": " "}',
            "row 2: column 'label' has no label",
        ),
        ("\n", "no rows"),
        ('{"text": "good", "label": "yes"}\nnonsense', "line 2: not JSON"),
        ('{"text": "good", "label": "yes"}\n{"text": "bad", "label": "yes"}', "one label only"),
    ],
)
def test_rows_that_cannot_be_used_are_named(folder, tmp_path, lines, says):
    file = tmp_path / "train.jsonl"
    file.write_text(lines)
    with pytest.raises(ValueError, match=says):
        run_stage(
            recipe(
                folder,
                "finetune",
                folder / "bert",
                tmp_path / "out",
                data=str(file),
                eval_data=str(folder / "labelled.jsonl"),
                num_instances=2,
                groups=1,
            )
        )


def test_a_label_that_training_did_not_have_is_named(folder, tmp_path):
    (tmp_path / "dev.csv").write_text("text,label\ngood film,maybe\n")
    with pytest.raises(ValueError, match=r"row 0: unknown label 'maybe'.*known: no, yes"):
        run_stage(
            recipe(
                folder,
                "finetune",
                folder / "bert",
                tmp_path / "out",
                eval_data=str(tmp_path / "dev.csv"),
                num_instances=2,
            )
        )


def test_a_second_run_of_the_same_command_is_refused_while_the_first_is_at_work(folder, tmp_path):
    one = recipe(folder, "finetune", folder / "bert", tmp_path / "out", num_instances=2)
    one.work_folder.mkdir()
    with (
        FileLock(one.work_folder / "lock"),
        pytest.raises(ValueError, match="another process is at work on this run"),
    ):
        run_stage(one)
    run_stage(one)


def test_a_work_folder_of_other_settings_is_refused(folder, tmp_path):
    (tmp_path / "out.work").mkdir()
    one = recipe(folder, "finetune", folder / "bert", tmp_path / "out", num_instances=2)
    (tmp_path / "out.work/recipe.json").write_text(
        json.dumps({**one.what_is_computed(), "seed": 7})
    )
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run_stage(one)


def flipped_labels(data: Path, start: Path) -> None:
    text = data.read_text()
    data.write_text(text.replace('"yes"', '"maybe"').replace('"no"', '"yes"'))


def other_text(data: Path, start: Path) -> None:
    data.write_text(data.read_text().replace("film", "Film", 1))


def other_weights(data: Path, start: Path) -> None:
    state = load_file(start / "model.safetensors")
    state["bert.encoder.layer.0.output.dense.bias"][3] += 1e-3
    save_file(state, start / "model.safetensors", {"format": "pt"})


def other_tokenizer(data: Path, start: Path) -> None:
    file = start / "tokenizer.json"
    file.write_text(file.read_text().replace('"lowercase": true', '"lowercase": false'))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (flipped_labels, "content of data, content of measured data, content of start"),
        (other_text, "content of"),
        (other_weights, r"content of start\)"),
        (other_tokenizer, r"content of tokenizer\)"),
    ],
)
def test_a_run_is_not_gone_on_with_after_what_it_reads_has_changed(folder, tmp_path, change, names):
    data, start = tmp_path / "train.jsonl", tmp_path / "start"
    shutil.copy(folder / "labelled.jsonl", data)
    shutil.copytree(folder / "bert", start)
    made = recipe(
        folder, "finetune", start, tmp_path / "out", num_instances=2, steps=2, data=str(data)
    )
    run_stage(made)
    shutil.rmtree(tmp_path / "out")
    before = data.read_text(), (start / "tokenizer.json").read_text()
    change(data, start)
    assert change is other_weights or before != (
        data.read_text(),
        (start / "tokenizer.json").read_text(),
    )
    with pytest.raises(ValueError, match=rf"other settings \({names}"):
        run_stage(made)


def test_other_names_of_the_same_labels_are_another_run(folder, tmp_path):
    def write(names: list[str]) -> None:
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        labels = [int("good" in text) for text in TEXTS]
        data = Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        data.save_to_disk(tmp_path / "data")

    write(["no", "yes"])
    made = recipe(
        folder,
        "finetune",
        folder / "bert",
        tmp_path / "out",
        num_instances=2,
        steps=2,
        data=str(tmp_path / "data"),
    )
    run_stage(made)
    shutil.rmtree(made.out)
    run_stage(made)
    shutil.rmtree(made.out)
    write(["yes", "no"])
    with pytest.raises(ValueError, match="content of data"):
        run_stage(made)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_that_is_named_must_be_there(folder, tmp_path, split):
    made = recipe(folder, "finetune", folder / "bert", tmp_path / "out", eval_split=split)
    with pytest.raises(ValueError, match=f"no split '{split}'; splits: train"):
        run_stage(made)
    other = {"eval_data": str(folder / "labelled.jsonl")}
    with pytest.raises(ValueError, match=f"no split '{split}'; splits: train"):
        run_stage(made.model_copy(update=other))


def test_a_plain_model_is_trained_within_its_positions(folder, tmp_path):
    long = tmp_path / "long.csv"
    rows = [f"{'good film ' * 40},yes", f"{'bad film ' * 40},no"] * 20
    long.write_text("\n".join(["text,label", *rows]))
    made = recipe(folder, "finetune", folder / "bert", tmp_path / "out", num_instances=1, steps=2)
    made = made.model_copy(update={"data": str(long)})
    run_stage(made)
    with pytest.raises(ValueError, match=r"max_length: .* takes 40 tokens, got 41"):
        run_stage(made.model_copy(update={"out": tmp_path / "other", "max_length": 41}))


def test_the_documented_commands_make_a_family(folder, tmp_path):
    shutil.copytree(folder / "bert", tmp_path / "bert-base-uncased")
    shutil.copy(folder / "texts.txt", tmp_path)
    rows = [f"{text},{'yes' if 'good' in text else 'no'}" for text in TEXTS]
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *rows]))
    commands = re.findall(r"^\$ (muxserve .*)$", DOCS.read_text(), flags=re.MULTILINE)
    tried = [command for command in commands if not command.startswith("muxserve serve")]
    assert len(tried) == 7
    for command in tried:
        if " train " in command:
            command += " --steps 4 --groups 4 --json"  # a tiny scale is all that differs
        done = program(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "arning" not in done.stderr
        if " train " in command:
            assert json.loads(done.stdout), "figures"
            assert re.search(
                r"^\S+ \S+ step 4 \w+ \d", done.stderr.replace("\r", "\n"), re.MULTILINE
            )
    spec = json.loads((tmp_path / "my-family" / "family.json").read_text())
    assert [member["num_instances"] for member in spec["members"]] == [1, 5]


@pytest.mark.parametrize(
    ("stage", "has", "lacks"),
    [
        ("retrieval", ["--text-column"], ["--label-column", "--task", "--mask-share", "-coeff"]),
        ("pretrain", ["--mask-share", "--generator"], ["--label-column", "--tags-column"]),
        ("finetune", ["--label-column", "--task"], ["--mask-share", "--generator"]),
    ],
)
def test_a_stage_offers_the_flags_that_apply_to_it(stage, has, lacks):
    told = CliRunner().invoke(app, ["train", stage, "--help"]).stdout
    assert all(flag in told for flag in has)
    assert not any(flag in told for flag in lacks)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--start x --out y", "data: Field required"),
        ("--start nowhere/x --data texts.txt --out y", "nowhere/x: no such folder here"),
        ("--start bert --data none.csv --out y", "none.csv: no such file"),
        ("--start bert --data latin.txt --out y", "latin.txt: not UTF-8 (byte 3)"),
        ("--config other.yaml --out y", "other.yaml: stage: is 'finetune'"),
    ],
)
def test_a_users_mistake_is_one_line(folder, tmp_path, arguments, says, monkeypatch):
    shutil.copytree(folder / "bert", tmp_path / "bert")
    shutil.copy(folder / "texts.txt", tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
    (tmp_path / "other.yaml").write_text("stage: finetune\nstart: bert\ndata: texts.txt\n")
    done = program(f"muxserve train retrieval {arguments}", tmp_path)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
