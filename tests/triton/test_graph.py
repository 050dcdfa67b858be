"""Graphs are valid and equal torch for any number of texts, whatever the parts of the network."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from muxserve.engine.forward import TorchExecutor
from muxserve.models import MuxBertForSequenceClassification
from muxserve.models.family import Family
from muxserve.triton.graph import MemberGraph, check_graph, export_graph
from muxserve.triton.weights import WEIGHTS_FILE, store_graphs
from tests.conftest import MAX_LENGTH, PIECES, tiny_config, write_family

TOLERANCE = 1e-5

#: Variants of the network that compute differently: padding, mask, prefix, keys and others.
VARIANTS = {
    "official": {
        "demuxing_variant": "index_pos",
        "encoder_mask": "none",
        "padding": "max_length",
        "pooling": "first",
        "plain_single": False,
        "classifier_head": "linear",
        "first_token_id": 2,
    },
    "prefix": {
        "demuxing_variant": "index",
        "muxing_variant": "random_ortho",
        "trained_length": MAX_LENGTH - 6,
        "pooling": "first",
        "prefix_filler_id": 30,
        "first_token_id": 2,
    },
    "contextual": {"muxing_variant": "gaussian_attention_v2", "pooling": "first"},
}


def session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    check_graph(folder / name)
    return onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])


def texts(count: int, length: int, seed: int = 0) -> np.ndarray:
    """[count, length] ids of texts of mixed lengths, one of them as long as the array."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, len(PIECES), (count, length))
    for row, own in enumerate(rng.integers(1, length + 1, count)):
        ids[row, own if row else length :] = 0
    return ids


def engine_logits(family: Family, n: int, ids: np.ndarray) -> np.ndarray:
    """The engine's logits for whole groups in order, with the texts of the last group repeated."""
    rows = [row[: np.flatnonzero(row)[-1] + 1] for row in ids]
    groups = [list(range(start, min(start + n, len(rows)))) for start in range(0, len(rows), n)]
    slots = [group[i % len(group)] for group in groups for i in range(n)]
    executor = TorchExecutor(
        family.models, pad_id=family.pad_id, padded_length=family.padded_length, threads=1
    )
    logits = executor.run(n, [rows[i] for i in slots])
    found = [
        logits[[s for s, i in enumerate(slots) if i == row]].mean(0) for row in range(len(rows))
    ]
    return np.stack(found)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("family", ["tiny_family", "tiny_token_family"])
def test_a_graph_equals_the_engine_for_any_number_of_texts(family, n, request, tmp_path):
    loaded = Family.load(request.getfixturevalue(family))
    store_graphs({"model.onnx": export_graph(loaded, n)}, tmp_path)
    running = session(tmp_path, "model.onnx")
    for count in range(1, 2 * n + 2):
        for length in (2, 9, MAX_LENGTH):
            ids = texts(count, length, seed=count)
            (logits,) = running.run(None, {"input_ids": ids})
            expected = engine_logits(loaded, n, ids)
            # Positions after a text's tokens have no label.
            for row, (own, other) in enumerate(zip(logits, expected, strict=True)):
                size = np.flatnonzero(ids[row])[-1] + 1 if logits.ndim == 3 else len(own)
                assert np.abs(own[:size] - other[:size]).max() < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_network_can_be_exported(variant, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(**VARIANTS[variant])
    folder = tmp_path / "family"
    MuxBertForSequenceClassification(config).save_pretrained(folder / "weights")
    write_family(folder, "sequence-classification", ["negative", "positive"])
    if variant == "prefix":
        file = folder / "family.json"
        file.write_text(file.read_text().replace(f'"max_length": {MAX_LENGTH}', '"max_length": 26'))
    family = Family.load(folder)
    n = 5
    store_graphs({"model.onnx": export_graph(family, n)}, tmp_path)
    running = session(tmp_path, "model.onnx")
    for count in (1, n, n + 2):
        ids = texts(count, family.padded_length or 12)
        (logits,) = running.run(None, {"input_ids": ids})
        assert np.abs(logits - engine_logits(family, n, ids)).max() < TOLERANCE


def test_scores_are_those_of_the_problem_type(tiny_family):
    family = Family.load(tiny_family, [2])
    ids = torch.from_numpy(texts(3, 8))
    with torch.no_grad():
        for problem_type, function in (
            ("single_label_classification", lambda x: x.softmax(-1)),
            ("multi_label_classification", torch.sigmoid),
            ("regression", lambda x: x),
        ):
            logits, scores = MemberGraph(family.models[2], 2, 0, problem_type)(ids)
            assert torch.allclose(scores, function(logits))


def test_graphs_share_their_weights_and_say_nothing_of_this_machine(exported, tiny_family):
    folder = exported.folder / "tiny" / "1"
    weights = (tiny_family / "weights" / "model.safetensors").stat().st_size
    graphs = sorted(folder.glob("n*.onnx"))
    assert [file.name for file in graphs] == ["n1.onnx", "n2.onnx", "n5.onnx"]
    # Three graphs share one set of weights: less than twice its size, alignment included.
    assert (folder / WEIGHTS_FILE).stat().st_size < 4 * weights
    for file in graphs:
        content = file.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in content
        assert b"site-packages" not in content
