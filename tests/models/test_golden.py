"""The reference implementation's own numbers, case by case."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from muxserve.models.official import load_official

GOLDEN = Path(
    os.environ.get("MUXSERVE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")
).resolve()
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
#: What is covered so far; the other cases wait for their multiplexers, demultiplexers and heads.
COVERED = {
    "task": "sequence-classification",
    "muxing_variant": "gaussian_hadamard",
    "demuxing_variant": "index_pos",
}


def covered_cases() -> list[Path]:
    cases = []
    for path in sorted(GOLDEN.glob("*/case.json")):
        case = json.loads(path.read_text())
        bert = case["architecture"].startswith("MuxedBert")
        if bert and all(case[key] == value for key, value in COVERED.items()):
            cases.append(path.parent)
    return cases


def test_the_golden_cases_are_there():
    if not GOLDEN.is_dir() and "CI" not in os.environ:
        pytest.skip(f"the golden cases are missing: no folder {GOLDEN} (set MUXSERVE_GOLDEN)")
    assert len(covered_cases()) >= 4, f"no covered golden cases under {GOLDEN}"


@pytest.mark.parametrize("case", covered_cases(), ids=lambda path: path.name)
def test_the_reference_numbers_are_reproduced(case: Path):
    config = json.loads((case / "config.json").read_text())
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "outputs.safetensors")
    retrieval = "retrieval_loss" in expected
    model = load_official(config, load_file(case / "model.safetensors"), retrieval_head=retrieval)

    # The reference fills an incomplete group with rows that it draws; the case says which.
    ids = expected["effective_input_ids"]
    rows = inputs["input_ids"].shape[0]
    before = ids.clone()
    slots = expected.get("retrieval_instance_ids")
    with torch.inference_mode():
        output = model(ids)
        if rows == ids.shape[0]:
            output = model(inputs["input_ids"], labels=inputs["labels"], retrieval_slots=slots)
            torch.testing.assert_close(output.task_loss, expected["task_loss"][0], **TOLERANCE)
            torch.testing.assert_close(output.loss, expected["loss"][0], **TOLERANCE)
    assert torch.equal(ids, before), "the caller's ids were changed"
    torch.testing.assert_close(output.logits[:rows], expected["logits"], **TOLERANCE)
    for name in ("muxed_embeddings", "encoder_output", "demux_output"):
        torch.testing.assert_close(getattr(output, name), expected[name], **TOLERANCE)

    if retrieval:
        torch.testing.assert_close(
            output.retrieval_loss, expected["retrieval_loss"][0], **TOLERANCE
        )
        with torch.inference_mode():
            logits, _ = model.retrieval_logits(
                output.encoder_output, ids, config["num_instances"], slots
            )
        kept = ids.view(-1, config["num_instances"], ids.shape[1])
        kept = kept.gather(1, slots.unsqueeze(1)).squeeze(1) != 0
        torch.testing.assert_close(logits, expected["retrieval_logits"][kept], **TOLERANCE)


def test_the_published_file_format_loads_without_unpickling_code():
    case = GOLDEN / "bert_seq_gaussian_hadamard_index_pos_n2"
    if not case.is_dir():
        pytest.skip(f"the golden cases are missing: no folder {case}")
    state = torch.load(case / "pytorch_model.bin", weights_only=True)
    config = json.loads((case / "config.json").read_text())
    expected = load_file(case / "outputs.safetensors")
    with torch.inference_mode():
        logits = load_official(config, state)(expected["effective_input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], **TOLERANCE)
