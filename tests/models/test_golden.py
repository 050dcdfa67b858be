"""The reference implementation's own numbers, case by case.

The cases lie in the folder that MUXSERVE_GOLDEN names (default: ``shared/golden`` beside the
checkout), and every one that is found there is tried.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from muxserve.models.composition import Encoded, MuxPreTrainedModel
from muxserve.models.official import convert_config, load_official
from muxserve.models.output import MuxOutput

GOLDEN = Path(
    os.environ.get("MUXSERVE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")
).resolve()
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
SENTENCES = "sequence-classification"
MASKED_LM = "masked-lm"
REPLACED = "replaced-token-detection"


@dataclass(frozen=True)
class Case:
    """One folder of golden numbers."""

    folder: Path

    @cached_property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def task(self) -> str:
        return json.loads((self.folder / "case.json").read_text())["task"]

    @cached_property
    def expected(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "outputs.safetensors")

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @cached_property
    def model(self) -> MuxPreTrainedModel:
        weights = load_file(self.folder / "model.safetensors")
        return load_official(self.config, weights, retrieval_head=True)

    @property
    def prefix(self) -> int:
        return convert_config(self.config).prefix_length(self.n)

    @property
    def n(self) -> int:
        return self.config["num_instances"]

    @property
    def rows(self) -> int:
        return self.inputs["input_ids"].shape[0]

    @property
    def filled(self) -> bool:
        """The reference filled the last group with rows that it drew."""
        return self.expected["effective_input_ids"].shape[0] != self.rows

    @property
    def tokens(self) -> int:
        """Tokens of a text: the reference's pre-training models cut them to make room."""
        length = self.expected["effective_input_ids"].shape[1]
        return min(length - self.prefix, self.inputs["input_ids"].shape[1])

    @property
    def slots(self) -> torch.Tensor | None:
        slots = self.expected.get("retrieval_instance_ids")
        return None if slots is None else slots[:, self.prefix :]

    def arguments(self) -> dict[str, torch.Tensor]:
        """What our forward is given: the caller's own rows, or, where the reference filled a group,
        the rows that it embedded. Position 0 stays for our model to force."""
        ids = self.inputs["input_ids"][:, : self.tokens]
        # Behind a prefix the reference's pre-training models cut the text, but neither mask nor
        # segments: one for each position that is embedded.
        whole = self.task in (MASKED_LM, REPLACED)
        mask = self.inputs["attention_mask"]
        if not whole:
            mask = mask[:, : self.tokens]
        if self.filled:
            drawn = self.expected["effective_input_ids"][self.rows :, self.prefix :]
            ids = torch.cat([ids, drawn])
            mask = torch.cat([mask, drawn.ne(0).long()])
        arguments = {"input_ids": ids, "attention_mask": mask}
        if whole:
            arguments["token_type_ids"] = self.inputs["token_type_ids"]
        return arguments

    def labels(self) -> torch.Tensor:
        labels = self.inputs["labels"]
        return labels if self.task == SENTENCES else labels[:, : self.tokens]


CASES = [Case(path.parent) for path in sorted(GOLDEN.glob("*/case.json"))]


def case_parameter(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.folder.name)


def test_the_golden_cases_are_there():
    if not GOLDEN.is_dir() and "CI" not in os.environ:
        pytest.skip(f"the golden cases are missing: no folder {GOLDEN} (set MUXSERVE_GOLDEN)")
    assert CASES, f"no golden cases under {GOLDEN}"
    if "MUXSERVE_GOLDEN" not in os.environ:
        assert len(CASES) >= 16


def forward(case: Case, **changes) -> MuxOutput:
    if case.task == SENTENCES:
        changes["output_hidden_states"] = True
    with torch.inference_mode():
        return case.model(**case.arguments(), **changes)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@case_parameter(CASES)
def test_every_stage_gives_the_references_numbers(case: Case):
    arguments = case.arguments()
    before = arguments["input_ids"].clone()
    output = forward(case)
    assert torch.equal(arguments["input_ids"], before), "the caller's ids were changed"

    close(output.muxed_embeddings, case.expected["muxed_embeddings"])
    close(output.encoder_output, case.expected["encoder_output"])
    if "demux_output" in case.expected:
        theirs = case.expected["demux_output"]
        if case.task == SENTENCES and theirs.shape[1] > 1:
            with torch.inference_mode():
                everywhere = case.model.demultiplexer(output.encoder_output, case.n)
            close(everywhere.flatten(0, 1), theirs)
            theirs = theirs[:, case.n : case.n + 1]
        elif theirs.shape[1] > output.demux_output.shape[1]:
            theirs = theirs[:, case.prefix :]
        close(output.demux_output, theirs)

    if case.task == MASKED_LM and case.prefix:
        return  # without labels the reference crashes; with labels, see below
    theirs = case.expected["logits"]
    if case.task != SENTENCES and theirs.shape[1] > case.tokens:
        # The reference keeps its prefix in the logits of tokens where no labels are given.
        theirs = theirs[:, case.prefix :]
    close(output.logits[: case.rows], theirs)


@case_parameter([case for case in CASES if case.task == SENTENCES])
def test_the_last_layer_at_the_position_that_is_read_gives_the_same(case: Case):
    with torch.inference_mode():
        output = case.model(**case.arguments())
    assert output.encoder_output.shape[1] == max(1, case.prefix)
    close(output.logits[: case.rows], case.expected["logits"])


@case_parameter([case for case in CASES if not case.filled])
def test_losses_and_logits_with_labels(case: Case):
    labels = case.labels()
    output = forward(case, labels=labels, retrieval_slots=case.slots)
    if case.task == REPLACED and case.prefix:
        task_loss = misaligned_replaced_token_loss(case, output)
    else:
        task_loss = output.task_loss
    close(task_loss, case.expected["task_loss"][0])
    loss = case.config["task_loss_coeff"] * task_loss
    if output.retrieval_loss is not None:
        loss = loss + case.config["retrieval_loss_coeff"] * output.retrieval_loss
    close(loss, case.expected["loss"][0])
    if not (case.task == REPLACED and case.prefix):
        close(output.loss, loss)
    if "logits_with_labels" in case.expected:
        theirs = case.expected["logits_with_labels"]
        if theirs.shape[1] > case.tokens:
            theirs = theirs[:, case.prefix :]
        close(output.logits, theirs)


def misaligned_replaced_token_loss(case: Case, output: MuxOutput) -> torch.Tensor:
    """The reference's loss behind a prefix: its label j meets position j of the prefixed text.

    Ours pairs a label with its own token; this recomputes theirs from our states.
    """
    model = case.model
    with torch.inference_mode():
        states = model.demultiplexer(output.encoder_output, case.n).flatten(0, 1)
        logits = model.classifier(states).squeeze(-1)
    kept = case.inputs["attention_mask"].bool()
    return binary_cross_entropy_with_logits(logits[kept], case.inputs["labels"][kept].float())


@case_parameter([case for case in CASES if case.slots is not None and not case.filled])
def test_retrieval(case: Case):
    output = forward(case, labels=case.labels(), retrieval_slots=case.slots)
    close(output.retrieval_loss, case.expected["retrieval_loss"][0])
    if "retrieval_logits" not in case.expected:
        return
    arguments = case.arguments()
    with torch.inference_mode():
        encoded: Encoded = case.model.encode(arguments["input_ids"])
        logits, ids = case.model.retrieval_logits(encoded, case.slots)
    embedded = case.expected["effective_input_ids"][:, case.prefix :]
    asked = embedded.view(-1, case.n, embedded.shape[1]).gather(1, case.slots.unsqueeze(1))[:, 0]
    kept = torch.ones_like(asked, dtype=torch.bool)
    if case.model.retrieval_ignores_padding:
        kept = asked != 0
    if not case.prefix:
        kept[:, : case.model.retrieval_start] = False
    assert torch.equal(ids, asked[kept])
    close(logits, case.expected["retrieval_logits"][:, case.prefix :][kept])


def test_the_published_file_format_loads_without_unpickling_code():
    files = sorted(GOLDEN.glob("*/pytorch_model.bin"))
    if not files:
        pytest.skip(f"no golden case with a pytorch_model.bin under {GOLDEN}")
    for file in files:
        case = Case(file.parent)
        model = load_official(case.config, torch.load(file, weights_only=True))
        with torch.inference_mode():
            logits = model(**case.arguments()).logits[: case.rows]
        close(logits, case.expected["logits"])
