"""Cutting a student and training it: what a stopped run must keep, on a tiny scale."""

import json
import logging
import math
import os
import re
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer
from tokenizers.processors import BertProcessing

from muxserve.models import MuxBertForSequenceClassification
from muxserve.models.family import Family
from muxserve.training.distil import multiplex
from muxserve.training.distil.family import save_family
from muxserve.training.distil.goals import Goals
from muxserve.training.distil.multiplex import distill
from muxserve.training.distil.student import cut_student, cut_tokenizer
from muxserve.training.pretrained import plain_encoder
from muxserve.training.recipe import DistillSettings
from tests.conftest import PIECES, tiny_bert, tiny_config, tiny_tokenizer

WORDS = ["good", "bad", "film", "very", "not", "the"]
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]


def learner() -> MuxBertForSequenceClassification:
    torch.manual_seed(0)
    return MuxBertForSequenceClassification(
        tiny_config(retrieval_head=True, learn_muxing=True, retrieval_percentage=0.5)
    )


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    return [encoding.ids for encoding in tiny_tokenizer().encode_batch(TEXTS)]


@pytest.fixture(scope="module")
def targets(rows) -> Goals:
    good = torch.tensor([[float(text.count("good") - text.count("bad"))] for text in TEXTS])
    return Goals(torch.cat([-good, good], dim=1))


SETTINGS = DistillSettings(steps=12, groups=4, single_texts=4, save_every_s=1e-9)


FAST = SETTINGS.model_copy(
    update={"steps": 80, "encoder_learning_rate": 3e-3, "new_learning_rate": 3e-3}
)


class Stop(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(rows, targets, tmp_path):
    whole = distill(learner(), rows, targets, SETTINGS, tmp_path / "whole.pt")

    def stop(step: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        distill(
            learner(),
            rows,
            targets,
            SETTINGS,
            tmp_path / "stopped.pt",
            evaluate=stop,
            evaluate_every=5,
        )
    resumed = distill(learner(), rows, targets, SETTINGS, tmp_path / "stopped.pt")
    for (name, one), (_, other) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("n", [2, 5])
def test_training_teaches_which_token_a_slot_holds(rows, targets, tmp_path, n):
    model = learner()
    ids = torch.tensor(rows[: 40 * n])

    def retrieval_loss() -> float:
        torch.manual_seed(0)
        model.eval()
        with torch.inference_mode():
            return float(model.retrieval_loss(model.encode(ids, num_instances=n)))

    before = retrieval_loss()
    distill(model, rows, targets, FAST, tmp_path / "x.pt")
    assert retrieval_loss() < 0.8 * before


def test_a_saved_family_loads_and_serves_every_width(rows, tmp_path):
    save_family(learner(), tiny_tokenizer(), tmp_path, name="tiny")
    family = Family.load(tmp_path)
    assert family.widths == [1, 2, 5]
    assert family.spec.labels == ["negative", "positive"]
    assert all(member.quality is None for member in family.spec.members)


def test_a_cut_tokenizer_keeps_special_tokens_characters_and_the_frequent():
    tokenizer, kept = cut_tokenizer(tiny_tokenizer(), ["good film"] * 3 + ["bad"], 57)
    assert kept == sorted(kept)
    assert tokenizer.get_vocab_size() == 57
    vocabulary = tokenizer.get_vocab()
    assert [PIECES[old] for old in kept] == sorted(vocabulary, key=lambda piece: vocabulary[piece])
    assert tokenizer.encode("good film").tokens == ["[CLS]", "good", "film", "[SEP]"]
    assert "[UNK]" not in tokenizer.encode("very").tokens, "spelt by its characters"


def test_a_cut_tokenizer_keeps_added_tokens_that_no_text_has():
    given = tiny_tokenizer()
    given.add_special_tokens(["[MASK]"])
    given.add_tokens(["qqq"])
    tokenizer, kept = cut_tokenizer(given, ["good film"] * 3, 60)
    assert tokenizer.get_vocab_size() == len(kept) == 59
    assert kept[-2:] == [given.token_to_id("[MASK]"), given.token_to_id("qqq")]
    assert tokenizer.encode("good [MASK] qqq film").ids[2:4] == [57, 58]


def test_a_cut_keeps_the_ends_that_a_tokenizer_puts_on():
    given = tiny_tokenizer()
    given.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    spec = json.loads(given.to_str())
    # As in BERT's own vocabulary, where they do not come first.
    swap = {"[CLS]": 9, "not": 2, "[SEP]": 10, "very": 3}
    spec["model"]["vocab"].update(swap)
    for token in spec["added_tokens"]:
        token["id"] = swap.get(token["content"], token["id"])
    spec["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 10], "cls": ["[CLS]", 9]}
    tokenizer, _ = cut_tokenizer(Tokenizer.from_str(json.dumps(spec)), ["good film"], 57)
    assert tokenizer.encode("good film").tokens == ["[CLS]", "good", "film", "[SEP]"]


def test_a_cut_below_what_is_always_kept_is_refused():
    with pytest.raises(ValueError, match=r"word_pieces: 50 are too few: special tokens and .* 55"):
        cut_tokenizer(tiny_tokenizer(), TEXTS, 50)


@pytest.mark.parametrize("where", ["in a step", "between steps"])
def test_ctrl_c_keeps_every_whole_step(rows, targets, tmp_path, where, monkeypatch, caplog):
    whole = distill(learner(), rows, targets, SETTINGS, tmp_path / "whole.pt")
    rarely = SETTINGS.model_copy(update={"save_every_s": 1e9})
    state = tmp_path / "stopped" / "distil.pt"
    caplog.set_level(logging.INFO)

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    if where == "in a step":
        clip = torch.nn.utils.clip_grad_norm_
        steps: list[int] = []

        def interrupted(*given):
            steps.append(1)
            if len(steps) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return clip(*given)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(
            learner(),
            rows,
            targets,
            rarely,
            state,
            evaluate=stop if where == "between steps" else None,
            evaluate_every=5,
        )
    monkeypatch.undo()
    assert torch.load(state)["step"] == 5
    assert "stopped after step 5; the same command goes on from there" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = distill(learner(), rows, targets, rarely, state)
    for (name, one), (_, other) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_second_ctrl_c_does_not_wait_and_keeps_no_half_step(rows, targets, tmp_path, monkeypatch):
    def twice(*given):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", twice)
    with pytest.raises(KeyboardInterrupt):
        distill(learner(), rows, targets, SETTINGS, tmp_path / "distil.pt")
    assert not (tmp_path / "distil.pt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_logs_plain_lines_and_curves(rows, targets, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(multiplex, "CURVE_STEPS", 4)
    caplog.set_level(logging.INFO)
    told = {"agreement/N=1": 0.5}
    distill(
        learner(),
        rows,
        targets,
        SETTINGS,
        tmp_path / "distil.pt",
        evaluate=lambda step: told,
        evaluate_every=6,
    )
    (line, _) = [one for one in caplog.messages if "losses" in one]
    assert re.fullmatch(r"step 6 losses:( [a-z]+\d* [0-9.e-]+)+", line), line
    assert all(len(figure.strip("-0.")) <= 5 for figure in re.findall(r" ([0-9.]+)", line))
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(file))
    events.Reload()
    assert {"loss/single", "loss/task2", "loss/retrieval2", "agreement/N=1"} <= set(
        events.Tags()["scalars"]
    )
    assert [(one.step, one.value) for one in events.Scalars("agreement/N=1")] == [
        (6, 0.5),
        (12, 0.5),
    ]
    assert [one.step for one in events.Scalars("loss/single")] == [4, 8, 12]


def test_a_loss_that_is_no_number_is_not_averaged():
    running = {"retrieval2": 1.0}
    multiplex._average(running, {"single": 2.0, "retrieval": math.nan}, 2)
    assert running == {"retrieval2": 1.0, "single": 2.0}


def test_a_tokenizer_that_keeps_everything_is_unchanged():
    tokenizer, kept = cut_tokenizer(tiny_tokenizer(), TEXTS, len(PIECES))
    assert kept == list(range(len(PIECES)))
    assert tokenizer.encode(TEXTS[0]).ids == tiny_tokenizer().encode(TEXTS[0]).ids


def test_a_student_starts_from_the_layers_and_pieces_that_were_kept():
    base = tiny_bert(3)
    kept = list(range(0, len(PIECES), 2))
    student = cut_student(plain_encoder(base), tiny_config(vocab_size=len(kept)), [0, 2], kept)
    words = base.embeddings.word_embeddings.weight
    assert torch.equal(student.bert.embeddings.word_embeddings.weight, words[kept])
    assert torch.equal(
        student.bert.encoder.layer[1].output.dense.weight, base.encoder.layer[2].output.dense.weight
    )
    assert (student.multiplexer.instance_embedding[0] == 1).all()
    with pytest.raises(ValueError, match="the cut keeps 1 and"):
        cut_student(plain_encoder(base), tiny_config(vocab_size=len(kept)), [0], kept)
