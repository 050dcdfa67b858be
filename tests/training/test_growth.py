"""A student that starts from a trained one keeps what that one had learnt."""

import pytest
import torch

from muxserve.models import MuxBertForSequenceClassification
from muxserve.training.distil.growth import start_from
from muxserve.training.distil.student import build_student, spread
from muxserve.training.pretrained import plain_encoder
from tests.conftest import PIECES, tiny_bert

LABELS = ("negative", "positive")
KEPT = list(range(len(PIECES)))
IDS = torch.tensor([[2, 4, 5, 6, 3], [2, 7, 8, 9, 3], [2, 5, 4, 10, 3], [2, 6, 6, 6, 3]])


@pytest.fixture(scope="module")
def encoder():
    return plain_encoder(tiny_bert(6))


def student(encoder, layers=3, widths=(1, 2), kept=KEPT, **changes):
    torch.manual_seed(len(kept) + layers)
    return build_student(
        encoder, kept, layers=layers, widths=widths, max_length=32, labels=LABELS, **changes
    ).eval()


@pytest.fixture(scope="module")
def trained(encoder) -> MuxBertForSequenceClassification:
    """Far from where it was cut, as after training."""
    model = student(encoder)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def logits(model, n):
    with torch.inference_mode():
        return model(IDS, num_instances=n).logits


@pytest.mark.parametrize("n", [1, 2])
def test_the_same_shape_is_the_same_network(encoder, trained, n):
    again = student(encoder)
    start_from(again, trained.state_dict(), encoder, {i: i for i in KEPT})
    torch.testing.assert_close(logits(again, n), logits(trained, n))


@pytest.mark.parametrize("n", [1, 2])
def test_a_deeper_student_answers_nearly_as_the_trained_one(encoder, trained, n):
    deep = student(encoder, layers=6)
    before = (logits(deep, n) - logits(trained, n)).abs().max()
    start_from(deep, trained.state_dict(), encoder, {i: i for i in KEPT})
    after = (logits(deep, n) - logits(trained, n)).abs().max()
    assert after < 0.25 * before
    for place, own in enumerate(spread(3, 6)):
        torch.testing.assert_close(
            deep.bert.encoder.layer[own].output.dense.weight,
            trained.bert.encoder.layer[place].output.dense.weight,
        )


def test_fewer_widths_take_the_first_keys(encoder, trained):
    plain = student(encoder, widths=(1, 2))
    wide = student(encoder, widths=(1, 2, 4))
    start_from(plain, wide.state_dict(), encoder, {i: i for i in KEPT})
    keys = plain.multiplexer.instance_embedding
    torch.testing.assert_close(keys, wide.multiplexer.instance_embedding[:2])


def test_word_pieces_that_both_have_are_taken_over_and_others_stay(encoder, trained):
    kept = KEPT[::2]
    other = student(encoder, kept=kept)
    own = other.bert.embeddings.word_embeddings.weight.clone()
    start_from(other, trained.state_dict(), encoder, {1: kept[1]})
    words = other.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(words[1], trained.bert.embeddings.word_embeddings.weight[kept[1]])
    torch.testing.assert_close(words[2:], own[2:])


def test_another_tasks_head_stays_new(encoder, trained):
    tagger = student(encoder, task="token-classification")
    head = tagger.classifier.weight.clone()
    start_from(tagger, trained.state_dict(), encoder, {})
    assert torch.equal(tagger.classifier.weight, head)
    torch.testing.assert_close(
        tagger.bert.encoder.layer[0].output.dense.weight,
        trained.bert.encoder.layer[0].output.dense.weight,
    )


def test_weights_without_a_retrieval_head_do(encoder, trained):
    state = {k: v for k, v in trained.state_dict().items() if not k.startswith("retrieval_head")}
    start_from(student(encoder), state, encoder, {i: i for i in KEPT})


@pytest.mark.parametrize(
    ("depth", "layers", "own"),
    [
        (3, 5, {0: 0, 2: 1, 4: 2}),  # the part-of-speech family from three layers
        (3, 6, {0: 0, 2: 1, 5: 2}),  # the sentiment family from three layers
        (4, 5, {0: 0, 1: 1, 2: 2, 4: 3}),  # the part-of-speech family from its own of four
        (6, 5, {0: 0, 1: 1, 2: 2, 3: 4, 4: 5}),  # the part-of-speech family from sentiment's six
        (6, 3, {0: 0, 1: 2, 2: 5}),
        (5, 4, {0: 0, 1: 1, 2: 3, 3: 4}),
    ],
)
def test_every_trained_layer_that_has_a_place_keeps_its_weights(encoder, depth, layers, own):
    given = student(encoder, layers=depth)
    with torch.no_grad():
        for index, layer in enumerate(given.bert.encoder.layer):
            layer.output.dense.bias.fill_(index + 1)
    other = student(encoder, layers=layers)
    start_from(other, given.state_dict(), encoder, {i: i for i in KEPT})
    biases = [layer.output.dense.bias for layer in other.bert.encoder.layer]
    trained = {place: int(bias[0]) - 1 for place, bias in enumerate(biases) if bias[0] >= 1}
    assert trained == own
    assert torch.isfinite(logits(other, 2)).all()


def test_another_network_is_refused(encoder, trained):
    state = trained.state_dict()
    del state["bert.encoder.layer.1.attention.self.query.weight"]
    with pytest.raises(ValueError, match=r"another network: bert\.encoder\.layer\.1"):
        start_from(student(encoder), state, encoder, {i: i for i in KEPT})
