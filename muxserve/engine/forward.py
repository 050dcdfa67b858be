"""Loading a family to serve it, and running it: a planned batch in, logits out.

Of the engine's modules, only this one, ``packed`` and ``openvino`` know a network.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from muxserve.engine.memory import keep_few_shapes, rounded_length
from muxserve.engine.packed import pack_layers
from muxserve.errors import InvalidInput
from muxserve.models.family import Family, member_logits

#: By the name in the settings; None is what is fastest here.
DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    # Products of 8 bits from float32 weights; see ``packed``.
    "int8": torch.float32,
}


def load_to_serve(
    family: str | Path,
    dtype: str = "auto",
    widths: Sequence[int] | None = None,
    *,
    runtime: str = "torch",
    verify_checksums: bool = True,
) -> Family:
    """Load a family to the device that serves it, in the settings' ``dtype``, ready for inference.

    Raises:
        FamilyError: as ``Family.load``.
        InvalidInput: if nothing can be computed in 8 bits here.
    """
    if runtime == "torch":
        keep_few_shapes()
    with _without_a_pool():
        if runtime == "openvino":
            return Family.load(
                family, widths, dtype=DTYPES[dtype], verify_checksums=verify_checksums
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = Family.load(
            family, widths, dtype=DTYPES[dtype], device=device, verify_checksums=verify_checksums
        )
        for model in {id(model): model for model in loaded.models.values()}.values():
            packed = pack_layers(model, int8=dtype == "int8")
            if dtype == "int8" and not packed:
                raise InvalidInput(
                    f"dtype int8 is for encoder layers of BERT and ELECTRA on a CPU; on {device} "
                    f"nothing of {family} can be computed in it: take another dtype",
                    field="dtype",
                )
        return loaded


@contextlib.contextmanager
def _without_a_pool() -> Iterator[None]:
    """Keep torch from starting OpenMP threads for the calling thread.

    They would never end. And if a process has more OpenMP threads than cores, all of them sleep
    between operations instead of spinning: a lone text then takes twice as long on the forward
    threads, which have threads of their own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Executor(Protocol):
    """Runs forwards: as many at once as ``in_flight`` says, each from a thread of its own.

    Attributes:
        in_flight: forwards that run at once.
        spreads: whether a forward that runs alone can use the cores of the others. If not, forwards
            that run at once share one device, such as a GPU.
    """

    in_flight: int
    spreads: bool

    def prepare(self) -> None:
        """Set up the calling thread; called once by each thread that will call ``run``."""

    def run(self, n: int, rows: Sequence[np.ndarray], *, alone: bool = False) -> np.ndarray:
        """Compute logits of rows of token ids; each n of them, in order, are a group.

        Args:
            n: N.
            rows: token ids of each slot.
            alone: no other forward will run meanwhile.

        Returns:
            float32, [rows, labels] of texts or [rows, padded length, labels] of their tokens.
        """


def default_in_flight(device: str, threads: int) -> int:
    """How many forwards run at once by default.

    A GPU gets its next forward while it computes one, however few CPU threads there are. On a CPU,
    a forward without a thread of its own would only slow down the other.

    Args:
        device: type of what computes, as torch names it: ``cpu``, ``cuda``.
        threads: CPU threads.
    """
    return 2 if device != "cpu" else min(2, threads)


def make_executor(
    family: Family, runtime: str, *, threads: int, in_flight: int | None = None
) -> Executor:
    """Make what runs the forwards of a family that ``load_to_serve`` loaded for this ``runtime``.

    Args:
        family: the loaded family.
        runtime: ``torch`` or ``openvino``.
        threads: CPU threads of all forwards together.
        in_flight: forwards that run at once; by default what suits the device.

    Raises:
        InvalidInput: if the runtime is not installed.
    """
    if in_flight is None:
        device = next(iter(family.models.values())).device.type
        in_flight = default_in_flight(device, threads)
    executor: Callable[..., Executor] = TorchExecutor
    if runtime == "openvino":
        from muxserve.engine.openvino import OpenVinoExecutor  # an optional extra

        executor = OpenVinoExecutor
    return executor(
        family.models,
        pad_id=family.pad_id,
        padded_length=family.padded_length,
        max_length=family.spec.max_length,
        threads=threads,
        in_flight=in_flight,
    )


class TorchExecutor:
    """Runs the members of a family in this process with torch, on the device they are on.

    On a CPU, a forward that shares the machine gets its part of the threads. The threads of a
    forward wait for each other at every operation: if each forward had all cores, the slowest core
    would hold up the others hundreds of times per forward as soon as anything else ran there.
    """

    def __init__(
        self,
        models: Mapping[int, PreTrainedModel],
        *,
        pad_id: int,
        padded_length: int | None,
        threads: int,
        in_flight: int = 1,
        max_length: int | None = None,
    ) -> None:
        """Share the threads between the forwards that run at once.

        Args:
            models: the model of each N.
            pad_id: token id of padding.
            padded_length: pad every batch to this length; None pads to its longest text.
            threads: CPU threads of all forwards together.
            in_flight: forwards that run at once.
            max_length: tokens of the longest text. If given, lengths are rounded on a CPU; see
                ``memory``.
        """
        self.in_flight = in_flight
        self._models = models
        self._pad_id = pad_id
        self._padded_length = padded_length
        self._device = next(iter(models.values())).device
        self._max_length = max_length if self._device.type == "cpu" else None
        self._threads = threads
        self._share = max(1, threads // in_flight)
        self.spreads = self._device.type == "cpu" and self._share < threads
        self._streams = threading.local()

    def prepare(self) -> None:
        # OpenMP keeps the number of threads per calling thread, and Ray sets OMP_NUM_THREADS from
        # num_cpus; so it is set here, on purpose, by the thread that computes.
        torch.set_num_threads(self._share)
        if self._device.type == "cuda":
            # Each forward in flight has a stream, so that copies of one overlap another's work.
            self._streams.own = torch.cuda.Stream(self._device)

    def run(self, n: int, rows: Sequence[np.ndarray], *, alone: bool = False) -> np.ndarray:
        ids, mask = self._padded(rows)
        with torch.inference_mode():
            if self._device.type == "cuda":
                return self._run_on_gpu(n, ids, mask)
            if not (alone and self.spreads):
                return np.asarray(member_logits(self._models[n], ids, mask, n).numpy())
            torch.set_num_threads(self._threads)
            try:
                return np.asarray(member_logits(self._models[n], ids, mask, n).numpy())
            finally:
                torch.set_num_threads(self._share)

    def _run_on_gpu(self, n: int, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        with torch.cuda.stream(self._streams.own):
            ids = ids.to(self._device, non_blocking=True)
            mask = mask.to(self._device, non_blocking=True)
            logits = member_logits(self._models[n], ids, mask, n).to("cpu", non_blocking=True)
            # Waits for this stream alone; the interpreter lock is free meanwhile.
            self._streams.own.synchronize()
        return np.asarray(logits.numpy())

    def _padded(self, rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, [rows, length]; in page-locked memory where a GPU will fetch them."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        length = self._padded_length or int(lengths.max())
        if self._padded_length is None and self._max_length is not None:
            length = rounded_length(length, self._max_length)
        pinned = self._device.type == "cuda"
        ids = torch.full((len(rows), length), self._pad_id, pin_memory=pinned)
        mask = torch.zeros((len(rows), length), dtype=torch.int64, pin_memory=pinned)
        filled = np.arange(length) < lengths[:, None]
        ids.numpy()[filled] = np.concatenate(rows)
        mask.numpy()[filled] = 1
        return ids, mask
