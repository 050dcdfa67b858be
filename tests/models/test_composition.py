"""The composition: what must hold for any weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel

from muxserve.models import MuxBertConfig, MuxBertForSequenceClassification
from muxserve.models.demultiplexers import IndexPosition
from tests.conftest import PIECES, tiny_config

N = st.sampled_from([1, 2, 5])
SEEDS = st.integers(0, 2**16)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model() -> MuxBertForSequenceClassification:
    torch.manual_seed(1)
    return MuxBertForSequenceClassification(tiny_config()).eval()


@pytest.fixture(scope="module")
def paper_model() -> MuxBertForSequenceClassification:
    """The reference's parts: RSA demultiplexer, position 0, no mask, fixed length."""
    torch.manual_seed(1)
    config = tiny_config(
        demuxing_variant="index_pos",
        num_hidden_demux_layers=3,
        pooling="first",
        classifier_head="linear",
        plain_single=False,
        padding="max_length",
        encoder_mask="none",
        first_token_id=2,
        retrieval_head=True,
    )
    return MuxBertForSequenceClassification(config).eval()


def batch(n: int, groups: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts of random lengths, padded; every text has at least three tokens."""
    rng = torch.Generator().manual_seed(seed)
    rows = n * groups
    ids = torch.randint(4, len(PIECES), (rows, length), generator=rng)
    lengths = torch.randint(3, length + 1, (rows, 1), generator=rng)
    mask = (torch.arange(length) < lengths).long()
    return ids * mask, mask


@given(N, st.integers(2, 4), SEEDS)
@settings(max_examples=15, deadline=None)
def test_permuting_whole_groups_permutes_the_answers(model, n, groups, seed):
    ids, mask = batch(n, groups, 8, seed)
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        plain = model(ids, mask, num_instances=n).logits.view(groups, n, -1)
        shuffled = model(
            ids.view(groups, n, -1)[order].flatten(0, 1),
            mask.view(groups, n, -1)[order].flatten(0, 1),
            num_instances=n,
        ).logits.view(groups, n, -1)
    torch.testing.assert_close(shuffled, plain[order], **CLOSE)


@given(N, st.integers(1, 10), SEEDS)
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing_under_the_union_mask(model, n, extra, seed):
    ids, mask = batch(n, 2, 8, seed)
    zeros = torch.zeros(len(ids), extra, dtype=torch.long)
    with torch.inference_mode():
        plain = model(ids, mask, num_instances=n).logits
        padded = model(
            torch.cat([ids, zeros], 1), torch.cat([mask, zeros], 1), num_instances=n
        ).logits
    torch.testing.assert_close(padded, plain, **CLOSE)


@given(st.sampled_from([2, 5]), SEEDS)
@settings(max_examples=15, deadline=None)
def test_what_stands_at_a_padded_position_of_a_slot_changes_nothing(model, n, seed):
    ids, mask = batch(n, 2, 8, seed)
    junk = torch.where(mask.bool(), ids, torch.full_like(ids, 7))
    with torch.inference_mode():
        plain = model(ids, mask, num_instances=n).logits
        other = model(junk, mask, num_instances=n).logits
    torch.testing.assert_close(other, plain, **CLOSE)


def test_at_one_the_backbone_runs_alone(model):
    ids, mask = batch(1, 4, 8, 0)
    plain = BertModel(model.config, add_pooling_layer=False).eval()
    plain.load_state_dict(model.bert.state_dict())
    with torch.inference_mode():
        output = model(ids, mask, num_instances=1)
        expected = plain(input_ids=ids, attention_mask=mask).last_hidden_state
    assert output.muxed_embeddings is None
    torch.testing.assert_close(output.encoder_output, expected)


def test_no_mask_means_no_padding(model):
    ids, _ = batch(2, 2, 8, 0)
    with torch.inference_mode():
        without = model(ids, num_instances=2).logits
        ones = model(ids, torch.ones_like(ids), num_instances=2).logits
    assert torch.equal(without, ones)


def test_neighbours_matter_and_so_does_the_slot(model):
    ids, mask = batch(2, 1, 8, 0)
    with torch.inference_mode():
        plain = model(ids, mask, num_instances=2).logits
        swapped = model(ids.flip(0), mask.flip(0), num_instances=2).logits.flip(0)
    assert not torch.allclose(plain, swapped, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_and_loaded_again_it_is_the_same_model(model, tmp_path, dtype):
    saved = copy.deepcopy(model).to(dtype)
    saved.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(loaded, MuxBertForSequenceClassification)
    assert AutoConfig.from_pretrained(tmp_path).served_widths == [1, 2, 5]
    ids, mask = batch(5, 2, 8, 0)
    with torch.inference_mode():
        again = loaded.eval()(ids, mask).logits
        assert torch.equal(again, saved.float()(ids, mask).logits)


def test_bfloat16_is_close_to_float32(model):
    ids, mask = batch(5, 4, 8, 0)
    short_model = copy.deepcopy(model).bfloat16()
    with torch.inference_mode():
        exact = model(ids, mask).logits
        short = short_model(ids, mask).logits.float()
    assert (short - exact).abs().max() < 0.05 * max(1.0, float(exact.abs().max()))


def test_the_callers_ids_are_not_changed(paper_model):
    ids, mask = batch(5, 1, 8, 0)
    before = ids.clone()
    with torch.inference_mode():
        forced = paper_model(ids, mask).logits
        ids[:, 0] = 2
        assert torch.equal(paper_model(ids, mask).logits, forced)
    assert torch.equal(ids[:, 1:], before[:, 1:])


@given(st.integers(1, 5), SEEDS)
@settings(max_examples=15, deadline=None)
def test_the_split_first_layer_equals_the_concatenation(n, seed):
    torch.manual_seed(seed)
    config = tiny_config(demuxing_variant="index_pos", num_hidden_demux_layers=3)
    demultiplexer = IndexPosition(config).eval()
    demultiplexer.reset_keys()
    f = torch.randn(2, 3, config.hidden_size)
    keys = demultiplexer.demux_instance_embedding[:n]
    pairs = torch.cat(
        [
            keys.view(1, n, 1, -1).expand(2, n, 3, -1),
            f.unsqueeze(1).expand(2, n, 3, -1),
        ],
        dim=-1,
    )
    y = torch.nn.functional.gelu(demultiplexer.dense[0](pairs))
    y = torch.nn.functional.gelu(demultiplexer.dense[1](y)) + y
    head = demultiplexer.pre_decoder_layer_norm(
        torch.nn.functional.gelu(demultiplexer.pre_decoder(y))
    )
    torch.testing.assert_close(demultiplexer(f, n), head + y, **CLOSE)


def test_retrieval_ignores_padding(paper_model):
    ids, _ = batch(5, 2, 8, 0)
    with torch.inference_mode():
        encoded = paper_model.encode(ids)
        _, labels = paper_model.retrieval_logits(encoded)
    assert len(labels) < encoded.states.shape[0] * encoded.states.shape[1]
    assert (labels != 0).all()


def test_losses_are_weighted_and_train_everything_that_learns(model):
    config = tiny_config(
        retrieval_head=True, retrieval_loss_coeff=0.5, task_loss_coeff=2.0, learn_muxing=True
    )
    torch.manual_seed(0)
    learner = MuxBertForSequenceClassification(config).train()
    ids, mask = batch(5, 2, 8, 0)
    output = learner(ids, mask, labels=torch.zeros(10, dtype=torch.long))
    expected = 2.0 * output.task_loss + 0.5 * output.retrieval_loss
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    still = [name for name, p in learner.named_parameters() if p.grad is None]
    assert still == []
    assert not any(
        p.requires_grad for name, p in model.named_parameters() if name.startswith("multiplexer")
    )


def test_gradient_checkpointing_gives_the_same_gradients():
    ids, mask = batch(2, 2, 8, 0)
    labels = torch.zeros(4, dtype=torch.long)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        learner = MuxBertForSequenceClassification(config).train()
        if checkpointing:
            learner.gradient_checkpointing_enable()
        learner(ids, mask, labels=labels, num_instances=2).loss.backward()
        gradients.append(learner.bert.encoder.layer[0].output.dense.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("rows", "length", "n", "message"),
    [
        (3, 8, 2, r"a multiple of N=2 rows, got 3"),
        (3, 8, 3, r"num_instances must be one of \[1, 2, 5\]"),
        (5, 33, 5, r"has 33 tokens; these weights take at most 32"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(model, rows, length, n, message):
    with pytest.raises(ValueError, match=message):
        model(torch.ones(rows, length, dtype=torch.long), num_instances=n)


def test_labels_of_another_shape_are_refused(model):
    ids, mask = batch(2, 1, 8, 0)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(2, 2\)"):
        model(ids, mask, labels=torch.zeros(2, 2), num_instances=2)


def test_retrieval_without_its_head_is_refused(model):
    ids, mask = batch(2, 1, 8, 0)
    with pytest.raises(ValueError, match="no retrieval head"):
        model.retrieval_loss(model.encode(ids, mask, 2))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_instances": 0, "widths": None}, "num_instances"),
        ({"widths": [5, 2]}, "widths"),
        ({"widths": [1, 2]}, "widths"),
        ({"widths": [2, 5]}, "plain_single"),
        ({"trained_length": 64}, "trained_length"),
        ({"padding": "both"}, "padding"),
        ({"encoder_mask": "all"}, "encoder_mask"),
        ({"pooling": "last"}, "pooling"),
        ({"classifier_head": "deep"}, "classifier_head"),
        ({"encoder_mask": "none"}, "padding"),
    ],
)
def test_a_config_that_no_weights_can_have_names_the_field(changes, field):
    with pytest.raises(ValueError, match=field):
        tiny_config(**changes)


@pytest.mark.parametrize("field", ["muxing_variant", "demuxing_variant"])
def test_an_unknown_variant_is_named_with_the_known_ones(field):
    with pytest.raises(ValueError, match=rf"unknown {field} 'magic'; known: \w+"):
        MuxBertForSequenceClassification(tiny_config(**{field: "magic"}))


def test_too_few_demultiplexer_layers_are_refused():
    config = MuxBertConfig(num_hidden_demux_layers=1, hidden_size=12, num_attention_heads=2)
    with pytest.raises(ValueError, match="num_hidden_demux_layers must be at least 2"):
        IndexPosition(config)
