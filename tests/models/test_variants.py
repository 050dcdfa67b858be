"""What must hold for every multiplexer, demultiplexer, backbone and task."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ElectraForSequenceClassification,
    PreTrainedModel,
)

from muxserve.models import (
    MuxBertForMaskedLM,
    MuxBertForSequenceClassification,
    MuxBertForTokenClassification,
    MuxElectraConfig,
    MuxElectraForPreTraining,
    MuxElectraForSequenceClassification,
    MuxElectraForTokenClassification,
)
from muxserve.models.demultiplexers import DEMULTIPLEXERS
from muxserve.models.multiplexers import MULTIPLEXERS, build_multiplexer
from tests.conftest import PIECES, tiny_config

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
N = 3
MODELS = {
    "bert sentences": MuxBertForSequenceClassification,
    "bert tokens": MuxBertForTokenClassification,
    "bert masked": MuxBertForMaskedLM,
    "electra sentences": MuxElectraForSequenceClassification,
    "electra tokens": MuxElectraForTokenClassification,
    "electra replaced": MuxElectraForPreTraining,
}
AUTO = {
    "sentences": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "masked": AutoModelForMaskedLM,
    "replaced": AutoModelForPreTraining,
}
every_model = pytest.mark.parametrize("kind", MODELS)
every_multiplexer = pytest.mark.parametrize("muxing", MULTIPLEXERS)
every_demultiplexer = pytest.mark.parametrize("demuxing", DEMULTIPLEXERS)


def build(kind: str = "bert sentences", **changes) -> PreTrainedModel:
    """A small model with random weights; its prefix ids lie inside the small vocabulary."""
    changes = {
        "num_instances": N,
        "widths": [N],
        "plain_single": False,
        "first_token_id": 2,
        "prefix_filler_id": 20,
        "num_hidden_demux_layers": 3,
        "trained_length": 20,
        "max_position_embeddings": 40,
        **changes,
    }
    torch.manual_seed(1)
    config = tiny_config(**changes)
    if kind.startswith("electra"):
        kept = {k: v for k, v in config.to_dict().items() if k != "model_type"}
        config = MuxElectraConfig(**{"embedding_size": 16, **kept, "retrieval_residual": True})
    return MODELS[kind](config).eval()


def batch(groups: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(21, len(PIECES), (groups * N, length), generator=rng)
    lengths = torch.randint(3, length + 1, (groups * N, 1), generator=rng)
    mask = (torch.arange(length) < lengths).long()
    return ids * mask, mask


def logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("masking", [("longest", "union"), ("max_length", "none")])
@every_demultiplexer
@every_multiplexer
@given(st.integers(2, 3), st.integers(0, 2**16))
@settings(max_examples=4, deadline=None)
def test_permuting_whole_groups_permutes_the_answers(muxing, demuxing, masking, groups, seed):
    padding, encoder_mask = masking
    model = build(
        muxing_variant=muxing,
        demuxing_variant=demuxing,
        padding=padding,
        encoder_mask=encoder_mask,
    )
    ids, mask = batch(groups, 8, seed)
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    rows = (order.unsqueeze(1) * N + torch.arange(N)).flatten()
    torch.testing.assert_close(
        logits(model, ids[rows], mask[rows]), logits(model, ids, mask)[rows], **CLOSE
    )


@pytest.mark.parametrize("pooling", ["mean", "first"])
@every_demultiplexer
@every_multiplexer
@given(st.integers(1, 6), st.integers(0, 2**16))
@settings(max_examples=4, deadline=None)
def test_a_slots_padding_changes_nothing_under_the_union_mask(
    muxing, demuxing, pooling, extra, seed
):
    model = build(muxing_variant=muxing, demuxing_variant=demuxing, pooling=pooling)
    ids, mask = batch(2, 8, seed)
    zeros = torch.zeros(len(ids), extra, dtype=torch.long)
    padded = logits(model, torch.cat([ids, zeros], 1), torch.cat([mask, zeros], 1))
    torch.testing.assert_close(padded, logits(model, ids, mask), **CLOSE)
    junk = torch.where(mask.bool(), ids, torch.full_like(ids, 7))
    torch.testing.assert_close(logits(model, junk, mask), logits(model, ids, mask), **CLOSE)


@every_demultiplexer
@every_multiplexer
def test_bfloat16_is_close_to_float32(muxing, demuxing):
    model = build(muxing_variant=muxing, demuxing_variant=demuxing)
    ids, mask = batch(4, 8, 0)
    exact = logits(model, ids, mask)
    short = logits(copy.deepcopy(model).bfloat16(), ids, mask).float()
    assert (short - exact).abs().max() < 0.05 * max(1.0, float(exact.abs().max()))


@every_demultiplexer
@every_model
def test_saved_and_loaded_again_it_is_the_same_model(kind, demuxing, tmp_path):
    model = build(kind, demuxing_variant=demuxing, retrieval_head=True)
    model.save_pretrained(tmp_path)
    loaded = AUTO[kind.split()[1]].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    again = loaded.state_dict()
    assert set(again) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name
    # Equal weights at other addresses may round the last bit differently.
    ids, mask = batch(2, 8, 0)
    torch.testing.assert_close(
        logits(loaded.eval(), ids, mask), logits(model, ids, mask), atol=1e-6, rtol=1e-6
    )
    if kind.startswith("bert"):  # tied, so stored once and still one tensor
        words = loaded.get_input_embeddings().weight
        assert loaded.retrieval_head.decoder.weight is words


@every_demultiplexer
@every_model
def test_every_part_that_a_task_reads_learns_from_its_losses(kind, demuxing):
    model = build(
        kind,
        demuxing_variant=demuxing,
        retrieval_head=True,
        learn_muxing=True,
        retrieval_loss_coeff=0.5,
    ).train()
    ids, mask = batch(2, 8, 0)
    labels = torch.zeros(2 * N, dtype=torch.long) if "sentences" in kind else ids % 2
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.loss, output.task_loss + 0.5 * output.retrieval_loss)
    output.loss.backward()
    unread = {name for name, p in model.named_parameters() if p.grad is None}
    if "masked" in kind:
        # As in the reference: the masked-LM head is the retrieval head alone.
        unread = {name for name in unread if not name.startswith("demultiplexer.")}
    assert unread == set()


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("kind", ["bert sentences", "electra sentences", "bert tokens"])
def test_the_forward_can_be_exported(kind, pooling):
    model = build(kind, pooling=pooling)
    ids, mask = batch(2, 8, 0)
    program = torch.export.export(model, (ids, mask), strict=False)
    with torch.inference_mode():
        exported = program.module()(ids, mask).logits
    torch.testing.assert_close(exported, logits(model, ids, mask), **CLOSE)


def test_electra_at_one_is_the_plain_transformers_classifier():
    model = build(
        "electra sentences", widths=[1, N], plain_single=True, pooling="first", first_token_id=None
    )
    plain = ElectraForSequenceClassification(model.config).eval()
    plain.electra.load_state_dict(model.electra.state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    ids, mask = batch(1, 8, 0)
    with torch.inference_mode():
        ours = model(ids, mask, num_instances=1).logits
        torch.testing.assert_close(ours, plain(ids, mask).logits, **CLOSE)


def test_binary_keys_share_out_the_features():
    config = tiny_config(
        muxing_variant="binary_hadamard", num_instances=5, widths=[5], plain_single=False
    )
    multiplexer = build_multiplexer(config)
    multiplexer.reset_keys()
    keys = multiplexer.instance_embedding
    assert torch.equal(keys.sum(0), torch.ones(32)), "every feature belongs to one slot"
    assert keys.sum(1).tolist() == [6, 6, 6, 6, 8], "the last slot takes the rest"
    config.binary_hadamard_epsilon = 0.7
    wide = build_multiplexer(config)
    wide.reset_keys()
    assert wide.instance_embedding.sum(1).tolist() == [8, 10, 10, 10, 10]


def test_orthogonal_keys_keep_lengths_and_low_rank_ones_share_out_the_dimensions():
    changes = {"num_instances": 4, "widths": [4], "plain_single": False}
    full = build_multiplexer(tiny_config(muxing_variant="random_ortho", **changes))
    full.reset_keys()
    for matrix in full.instance_embedding:
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), **CLOSE)
    low = build_multiplexer(tiny_config(muxing_variant="random_ortho_low_rank", **changes))
    low.reset_keys()
    assert [int(torch.linalg.matrix_rank(one)) for one in low.instance_embedding] == [8] * 4
    whole = low.instance_embedding.sum(0)
    torch.testing.assert_close(whole @ whole.T, torch.eye(32), **CLOSE)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", torch.tensor([0, 1, 1])),
        ("multi_label_classification", torch.tensor([[0.0, 1], [1, 1], [0, 0]])),
        ("regression", torch.tensor([0.5, -1.0, 2.0])),
    ],
)
def test_losses_are_those_of_transformers(problem_type, labels):
    names = ["one"] if problem_type == "regression" else ["one", "two"]
    model = build(
        "electra sentences",
        problem_type=problem_type,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        widths=[1, N],
        plain_single=True,
        pooling="first",
        first_token_id=None,
    )
    plain = ElectraForSequenceClassification(model.config).eval()
    plain.electra.load_state_dict(model.electra.state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    ids, mask = batch(1, 8, 0)
    ours = model(ids, mask, labels=labels, num_instances=1).loss
    torch.testing.assert_close(ours, plain(ids, mask, labels=labels).loss)


def test_masked_lm_names_only_what_is_asked_and_gives_the_same_logits_there():
    model = build("bert masked")
    ids, mask = batch(2, 8, 0)
    labels = torch.where(torch.rand(ids.shape) < 0.3, ids, -100)
    with torch.inference_mode():
        everything = model(ids, mask).logits
        asked = model(ids, mask, labels=labels)
    named = labels != -100
    torch.testing.assert_close(asked.logits[named], everything[named], **CLOSE)
    assert (asked.logits[~named] == 0).all()
    expected = torch.nn.functional.cross_entropy(everything[named], labels[named])
    torch.testing.assert_close(asked.task_loss, expected)


@every_model
def test_labels_of_another_shape_are_refused(kind):
    model = build(kind)
    ids, mask = batch(1, 8, 0)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,.*got \(3, 7\)"):
        model(input_ids=ids, attention_mask=mask, labels=torch.zeros(3, 7, dtype=torch.long))


def test_a_mask_or_slots_of_another_shape_are_refused():
    model = build("bert tokens", retrieval_head=True)
    ids, mask = batch(1, 8, 0)
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(3, 8\), got \(3, 7\)"):
        model(ids, mask[:, :7])
    with pytest.raises(ValueError, match=r"retrieval_slots must have shape \(1, 8\), got \(2, 8\)"):
        model(ids, mask, labels=ids % 2, retrieval_slots=torch.zeros(2, 8, dtype=torch.long))


def test_a_prefix_takes_positions_from_the_text():
    model = build(demuxing_variant="index", pooling="first")
    most = 40 - N - 1
    ids = torch.full((N, most + 1), 30)
    with pytest.raises(
        ValueError, match=f"has {most + 1} tokens; these weights take at most {most}"
    ):
        model(ids)
    assert model(ids[:, :most]).logits.shape == (N, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_length": 37}, r"trained_length \(37\) is over the 36 positions"),
        ({"prefix_filler_id": 680}, "must lie within the vocabulary"),
        ({"prefix_filler_id": 3}, "must lie within the vocabulary"),
        ({"first_token_id": None}, "needs first_token_id"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(demuxing_variant="index", **changes)


@pytest.mark.parametrize("muxing", ["random_ortho", "random_ortho_low_rank"])
def test_orthogonal_matrices_need_one_size(muxing):
    with pytest.raises(ValueError, match="needs embedding_size = hidden_size, got 16 and 32"):
        build("electra sentences", muxing_variant=muxing)
