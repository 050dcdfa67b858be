"""Curves of a run for TensorBoard: one event file, written during the run."""

import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from muxserve.training.work_folder import unwritten

log = logging.getLogger(__name__)


class Curves:
    """An event file in a folder; without TensorBoard there is none.

    ``torch.utils.tensorboard`` has a writer too, but it writes in a thread of its own, which ends
    with a traceback if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        """Start a file; a resumed run has one more, and TensorBoard joins them."""
        self._records: Any = None
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError:
            log.info("no curves for TensorBoard: pip install 'muxserve[training]'")
            return
        self._event = event_pb2.Event
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.file = folder / name
        # Unbuffered, so that closing the file has nothing left to write.
        self._records = RecordWriter(self.file.open("wb", buffering=0))
        self._write(file_version="brain.Event:2")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of some curves, by name.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        if self._records is None:
            return
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._write(step=step, summary={"value": points})

    def close(self) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()
            self._records = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            raise unwritten(self.file, error) from None
