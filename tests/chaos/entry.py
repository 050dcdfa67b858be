"""``python -m tests.chaos.entry serve ...``: muxserve with replicas that can be made to fail.

Files in the folder ``CHAOS_FOLDER`` make forwards fail. Only these tests have this.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import muxserve.engine.forward
import muxserve.serving.app
from muxserve.cli import main
from muxserve.serving.ray.replica import MuxReplica

#: A word that makes the forward of its text fail.
POISON = "zyzzyva"
FOLDER = "CHAOS_FOLDER"


class FaultyReplica(MuxReplica):
    """A replica whose forwards follow the folder's files, once it has warmed up.

    ``hang-PID``: forwards of that process do not return while the file exists.
    ``memory``: a forward with more rows than the number in the file runs out of GPU memory.
    ``poison``: token ids; a forward with a row that contains them all fails.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        folder = Path(os.environ[FOLDER])
        executor_class = muxserve.engine.forward.TorchExecutor
        run = executor_class.run

        def faulty(
            self: Any, n: int, rows: Sequence[np.ndarray], *, alone: bool = False
        ) -> np.ndarray:
            while (folder / f"hang-{os.getpid()}").exists():
                time.sleep(0.05)
            if (most := _number(folder / "memory")) is not None and len(rows) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Simulated by a test.")
            if poison := _numbers(folder / "poison"):
                for row in rows:
                    if poison <= set(row.tolist()):
                        raise RuntimeError("a poisoned input")
            return run(self, n, rows, alone=alone)

        executor_class.run = faulty  # type: ignore[method-assign]


def _number(file: Path) -> int | None:
    found = _numbers(file)
    return min(found) if found else None


def _numbers(file: Path) -> set[int]:
    try:
        return {int(word) for word in file.read_text().split()}
    except OSError:
        return set()


if __name__ == "__main__":
    # Workers import the class by its module's name, which must not be __main__.
    from tests.chaos.entry import FaultyReplica as Importable

    muxserve.serving.app.MuxReplica = Importable  # type: ignore[misc]
    main()
