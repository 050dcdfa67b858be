"""A member of a family in, one ONNX graph out: token ids of any number of texts to their logits.

The graph fills its slots itself, as the engine does: texts of an incomplete last group are repeated
in it, and the logits of each are averaged. So its callers need not know about groups.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn
from transformers import PreTrainedModel

from muxserve.errors import FamilyError
from muxserve.models.family import Family, member_logits

#: The newest opset that every ONNX Runtime since 1.17 (Triton 24.02) reads.
OPSET = 20
INPUT, LOGITS, SCORES = "input_ids", "logits", "scores"
#: Tokens of each text in the traced example, which has more texts than one group holds.
_EXAMPLE_LENGTH = 12


class MemberGraph(nn.Module):
    """A member as a function of token ids alone.

    Padding ids at the end of a text count as padding, so no mask is needed.
    """

    def __init__(
        self, model: PreTrainedModel, n: int, pad_id: int, scores_of: str | None = None
    ) -> None:
        """Wrap a member's network.

        Args:
            model: the network.
            n: its N.
            pad_id: token id of padding.
            scores_of: problem type; if given, scores are returned beside the logits, computed as
                the engine does.
        """
        super().__init__()
        self.model = model
        self.n = n
        self.pad_id = pad_id
        self.scores_of = scores_of

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """[B, L] ids to logits [B, labels] of texts or [B, L, labels] of tokens, for any B."""
        logits = self._logits(input_ids)
        if self.scores_of is None:
            return logits
        if self.scores_of == "single_label_classification":
            return logits, logits.softmax(-1)
        if self.scores_of == "multi_label_classification":
            return logits, logits.sigmoid()
        return logits, logits.clone()

    def _logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows, length = input_ids.shape
        at = torch.arange(length, device=input_ids.device)
        lengths = ((input_ids != self.pad_id) * (at + 1)).amax(dim=1, keepdim=True)
        mask = (at < lengths).to(torch.int64)
        if self.n == 1:
            return member_logits(self.model, input_ids, mask, 1)
        slots = self._slots(rows, input_ids.device)
        logits = member_logits(self.model, input_ids[slots], mask[slots], self.n)
        texts = torch.arange(rows, device=input_ids.device).unsqueeze(1)
        held = (slots.unsqueeze(0) == texts).to(logits.dtype)
        mean = held / held.sum(dim=1, keepdim=True)
        return (mean @ logits.flatten(1)).view(rows, *logits.shape[1:])

    def _slots(self, rows: int, device: torch.device) -> torch.Tensor:
        """[G * N] index of the text in each slot; the texts of the last group repeat in turn."""
        groups = (rows + self.n - 1) // self.n
        first = (groups - 1) * self.n
        slots = torch.arange(groups * self.n, device=device)
        # A tensor, because ONNX has no remainder by a number that is only known at run time.
        rest = torch.ones(rows - first, dtype=torch.int64, device=device).sum()
        return torch.where(slots < rows, slots, first + torch.remainder(slots - first, rest))


def export_graph(family: Family, n: int, *, with_scores: bool = False) -> onnx.ModelProto:
    """The graph of the member with N=n, in float32.

    Its input is ``input_ids`` [texts, tokens] int64; its outputs are ``logits`` and, with
    ``with_scores``, ``scores``. The number of texts is dynamic, and so is the number of tokens
    unless the weights must be served at one length.

    Raises:
        FamilyError: the member cannot be expressed in ONNX.
    """
    scores_of = family.spec.problem_type if with_scores else None
    member = MemberGraph(family.models[n], n, family.pad_id, scores_of).eval()
    length = family.padded_length or min(_EXAMPLE_LENGTH, family.spec.max_length)
    example = torch.full((2 * n + 1, length), family.pad_id + 1, dtype=torch.int64)
    free: dict[int, torch.export.Dim] = {0: torch.export.Dim("texts", min=1)}
    if family.padded_length is None:
        free[1] = torch.export.Dim("tokens", min=2, max=family.spec.max_length)
    try:
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            program = torch.onnx.export(
                member,
                (example,),
                input_names=[INPUT],
                output_names=[LOGITS, SCORES] if with_scores else [LOGITS],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(free,),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FamilyError(
            f"{family.spec.name}: the member N={n} cannot be written as ONNX: {reason}"
        ) from error
    assert program is not None  # with dynamo=True, export returns one
    graph: onnx.ModelProto = program.model_proto
    fixed = [one.dim_value for one in graph.graph.input[0].type.tensor_type.shape.dim]
    if any(fixed[axis] for axis in free):
        # The exporter stays silent if a network counts its texts in a way that fixes their number.
        raise FamilyError(
            f"{family.spec.name}: the member N={n} would be written for texts of shape {fixed} only"
        )
    _forget_where_it_was_made(graph)
    return graph


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata, which holds source lines and paths of this machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for part in (model.graph.node, model.graph.value_info, model.graph.input, model.graph.output):
        for one in part:
            del one.metadata_props[:]
            one.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log and warnings; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def check_graph(file: Path) -> None:
    """Run the ONNX checker on a stored graph, including its weights and inferred shapes.

    Raises:
        FamilyError: the graph is not valid.
    """
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FamilyError(f"{file}: not a valid ONNX graph: {error}") from error
