"""Cutting a student and training it: what a stopped run must keep, on a tiny scale."""

import pytest
import torch

from muxserve.models import MuxBertForSequenceClassification
from muxserve.models.family import Family
from muxserve.training.distillation import save_family
from muxserve.training.goals import Goals
from muxserve.training.multiplex import DistillSettings, distill
from muxserve.training.pretrained import plain_encoder
from muxserve.training.student import cut_student, cut_tokenizer
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
