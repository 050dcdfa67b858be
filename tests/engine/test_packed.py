"""Packed layers compute what the layers did."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from muxserve.engine.packed import PackedLayer, _Int8Product, pack_layers
from muxserve.models import (
    MuxBertForSequenceClassification,
    MuxElectraConfig,
    MuxElectraForTokenClassification,
)
from tests.conftest import tiny_config

IDS = torch.randint(4, 40, (10, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
MASK[7, 3:] = 0


def compare(model, abs_tol: float, **arguments) -> None:
    model.eval()
    with torch.inference_mode():
        before = model(IDS, MASK, **arguments).logits.clone()
        assert pack_layers(model) == model.config.num_hidden_layers
        after = model(IDS, MASK, **arguments).logits
    assert sum(isinstance(one, PackedLayer) for one in model.modules()) > 0
    assert before.dtype == after.dtype
    torch.testing.assert_close(before, after, atol=abs_tol, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_a_muxbert_answers_as_before(n, activation):
    torch.manual_seed(0)
    model = MuxBertForSequenceClassification(tiny_config(hidden_act=activation))
    compare(model, 1e-5, num_instances=n)


@pytest.mark.parametrize(
    "mask",
    [{"encoder_mask": "union"}, {"encoder_mask": "none", "padding": "max_length"}],
    ids=["union", "none"],
)
def test_so_does_one_whose_last_layer_is_read_at_the_first_position(mask):
    torch.manual_seed(0)
    config = tiny_config(pooling="first", demuxing_variant="index_pos", **mask)
    compare(MuxBertForSequenceClassification(config), 1e-5, num_instances=5)


def test_so_does_a_muxelectra_that_labels_tokens():
    torch.manual_seed(0)
    config = MuxElectraConfig(
        num_instances=5,
        vocab_size=60,
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=4,
    )
    compare(MuxElectraForTokenClassification(config), 1e-5)


def test_so_does_a_plain_classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    compare(BertForSequenceClassification(config), 1e-5)


def test_so_does_bfloat16_but_for_its_rounding():
    torch.manual_seed(0)
    model = MuxBertForSequenceClassification(tiny_config()).to(torch.bfloat16)
    compare(model, 0.03, num_instances=5)


def test_layers_with_another_activation_stay_as_they_are():
    model = MuxBertForSequenceClassification(tiny_config(hidden_act="silu"))
    assert pack_layers(model) == 0


@pytest.mark.parametrize("n", [1, 5])
def test_in_8_bits_a_muxbert_answers_nearly_as_before(n):
    torch.manual_seed(0)
    model = MuxBertForSequenceClassification(tiny_config()).eval()
    with torch.inference_mode():
        before = model(IDS, MASK, num_instances=n).logits.clone()
        pack_layers(model, int8=True)
        after = model(IDS, MASK, num_instances=n).logits
    off = (before - after).abs().max()
    assert 0 < off < 0.05 * before.abs().max() + 0.02


def test_8_bits_round_a_product_to_its_outputs_own_scale():
    """Known answer: weights and inputs that are whole steps of their scales come out exactly."""
    layer = torch.nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -3.0, 2.0, 0.0], [0.0, 12.7, 0.1, -0.4]]))
        layer.bias.copy_(torch.tensor([0.5, -1.0]))
    x = torch.tensor([[127.0, 3.0, -128.0, 0.0]])  # 255 steps of 1
    with torch.inference_mode():
        torch.testing.assert_close(_Int8Product(layer)(x), layer(x), atol=1e-3, rtol=0)
