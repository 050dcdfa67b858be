"""A planned batch in, logits out. The only engine module that knows what runs the model."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from muxserve.models.family import member_logits

#: Names of the settings; None is what is fastest here.
DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


class Executor(Protocol):
    """Runs forwards; called from one thread only."""

    def prepare(self) -> None:
        """Set up the calling thread; called once, by the thread that will call ``run``."""

    def run(self, n: int, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Logits float32 of rows of token ids, N=n to a group in order.

        [rows, labels] of texts, or [rows, tokens of the longest, labels] of their tokens.
        """


class TorchExecutor:
    """Runs the members of a family in this process with torch."""

    def __init__(
        self,
        models: Mapping[int, PreTrainedModel],
        *,
        pad_id: int,
        padded_length: int | None,
        threads: int,
    ) -> None:
        """Args:
        models: the model of each N.
        pad_id: token id of padding.
        padded_length: pad every batch to this length; None pads to its longest text.
        threads: CPU threads of a forward.
        """
        self._models = models
        self._pad_id = pad_id
        self._padded_length = padded_length
        self._threads = threads

    def prepare(self) -> None:
        # OpenMP keeps the number of threads per calling thread, and Ray sets OMP_NUM_THREADS from
        # num_cpus; so it is set here, on purpose, by the thread that computes.
        torch.set_num_threads(self._threads)

    def run(self, n: int, rows: Sequence[np.ndarray]) -> np.ndarray:
        length = self._padded_length or max(len(row) for row in rows)
        ids = np.full((len(rows), length), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        model = self._models[n]
        with torch.inference_mode():
            input_ids, attention_mask = torch.from_numpy(ids), torch.from_numpy(mask)
            return np.asarray(member_logits(model, input_ids, attention_mask, n).numpy())
