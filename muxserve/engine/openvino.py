"""A planned batch in, logits out, with OpenVINO in place of torch; on a CPU only.

A whole forward is one call, and the interpreter lock is free until it ends. With torch, every
operation of a forward takes the lock anew, so the forward and a busy ingress in the same process
hold up each other: a burst then costs throughput just when it is needed.
"""

import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from muxserve.engine.memory import PREPARED, rounded_length
from muxserve.extras import require
from muxserve.models.family import member_logits

#: The example that is traced: several groups, and a length that is none of the limits.
_EXAMPLE_GROUPS, _EXAMPLE_LENGTH = 3, 12
#: More groups than any batch has; the exporter wants a bound.
_MOST_GROUPS = 1 << 16


class _Member(nn.Module):
    """One member of a family as a function of ids and mask."""

    def __init__(self, model: PreTrainedModel, n: int) -> None:
        super().__init__()
        self.model = model
        self.n = n

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return member_logits(self.model, input_ids, attention_mask, self.n)


class OpenVinoExecutor:
    """Runs the members of a family in this process with OpenVINO; see ``forward.Executor``."""

    def __init__(
        self,
        models: Mapping[int, PreTrainedModel],
        *,
        pad_id: int,
        padded_length: int | None,
        max_length: int,
        threads: int,
        in_flight: int = 1,
    ) -> None:
        """Convert and compile every member: some seconds each.

        Args:
            models: the model of each N, unpacked; their dtype is that of the products. They are
                float32 afterwards.
            pad_id: token id of padding.
            padded_length: pad every batch to this length; None pads to its longest text.
            max_length: tokens of the longest text.
            threads: CPU threads of all forwards together.
            in_flight: forwards that run at once, each with its share of the threads.

        Raises:
            InvalidInput: if OpenVINO is not installed.
        """
        core, convert = _openvino()
        self.in_flight = in_flight
        self.spreads = 1 < in_flight <= threads
        self._pad_id = pad_id
        self._padded_length = padded_length
        self._max_length = max_length
        self._narrowest = min(models)
        self._requests = threading.local()
        self._compiled: dict[tuple[int, bool], Any] = {}
        bfloat16 = next(iter(models.values())).dtype == torch.bfloat16
        for n, model in models.items():
            with warnings.catch_warnings():
                # From torch's exporter, about itself.
                warnings.simplefilter("ignore", FutureWarning)
                graph = convert(_exported(model, n, padded_length, max_length))
            # Idle traffic is served at the narrowest N, so that one is compiled for all cores too;
            # each compiled model keeps weights of its own.
            for alone in (False, True) if self.spreads and n == self._narrowest else (False,):
                self._compiled[n, alone] = core.compile_model(
                    graph,
                    "CPU",
                    {
                        "NUM_STREAMS": 1 if alone else in_flight,
                        "INFERENCE_NUM_THREADS": threads,
                        # Prepared operations of each kind and stream; 5,000 by default.
                        "CPU_RUNTIME_CACHE_CAPACITY": PREPARED,
                        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
                    },
                )

    def prepare(self) -> None:
        self._requests.of = {
            key: compiled.create_infer_request() for key, compiled in self._compiled.items()
        }

    def run(self, n: int, rows: Sequence[np.ndarray], *, alone: bool = False) -> np.ndarray:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        length = self._padded_length or rounded_length(int(lengths.max()), self._max_length)
        filled = np.arange(length) < lengths[:, None]
        ids = np.full(filled.shape, self._pad_id, np.int64)
        ids[filled] = np.concatenate(rows)
        request = self._requests.of[n, alone and self.spreads and n == self._narrowest]
        request.infer([ids, filled.astype(np.int64)], share_inputs=True)
        # The request keeps its output's memory for the next batch.
        return np.array(request.get_output_tensor(0).data, np.float32)


def _openvino() -> tuple[Any, Any]:
    """OpenVINO's core, and its converter."""
    # Without this package OpenVINO reports nothing about its use to its makers.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    require("engine.runtime=openvino", "openvino", "openvino", field="engine.runtime")
    import openvino

    return openvino.Core(), openvino.convert_model


def _exported(
    model: PreTrainedModel, n: int, padded_length: int | None, max_length: int
) -> torch.export.ExportedProgram:
    """The forward of N=n for any number of groups and, unless padding is fixed, any length."""
    # In float32, as it is compiled from; weights that were rounded to bfloat16 keep their values.
    member = _Member(model.float(), n).eval().requires_grad_(False)
    length = padded_length or min(_EXAMPLE_LENGTH, max_length)
    ids = torch.full((_EXAMPLE_GROUPS * n, length), 1, dtype=torch.int64)
    free: dict[int, Any] = {0: n * torch.export.Dim("groups", min=1, max=_MOST_GROUPS)}
    if padded_length is None:
        free[1] = torch.export.Dim("tokens", min=2, max=max_length)
    with torch.inference_mode(False), torch.no_grad():
        return torch.export.export(member, (ids, torch.ones_like(ids)), dynamic_shapes=(free, free))
