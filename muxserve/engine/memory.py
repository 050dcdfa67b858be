"""Bounds of what a replica's memory holds beside weights and activations.

Both runtimes multiply with oneDNN, which compiles code for each shape that it meets, groups by
tokens, about 1 to 2 MB for a forward. By default so much of it is kept that traffic of many lengths
fills gigabytes before anything is dropped. Here it is kept for the newest shapes only, and what
was dropped is given back to the system: it lies scattered between what is kept, so the allocator
does not do that by itself.
"""

import ctypes
import os
from collections.abc import Callable

#: Products that oneDNN keeps compiled; a forward has about ten, each with a shape of its own.
PREPARED = 256
#: Read by oneDNN, that of torch and that in OpenVINO, when it first multiplies.
_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
#: Seconds between two times that memory is given back: each takes some 10 ms of one thread.
_TRIM_EVERY_S = 10.0


def keep_few_shapes() -> int:
    """Bound oneDNN's cache of this process, unless the user has; call before the first forward.

    Returns:
        How many products are kept: as the environment says.
    """
    stated = os.environ.setdefault(_VARIABLE, str(PREPARED))
    return int(stated) if stated.isdecimal() else PREPARED


def _trimmer() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``; None with another C library."""
    try:
        trim: Callable[[int], int] | None = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


class Trimmer:
    """Gives freed memory back to the system now and then; used by one thread."""

    def __init__(self, every_s: float = _TRIM_EVERY_S) -> None:
        self._every_s = every_s
        self._due_s = 0.0
        self._trim = _trimmer()

    def step(self, now_s: float) -> bool:
        """Give memory back where that is due at ``now_s``; whether it was."""
        if self._trim is None or now_s < self._due_s:
            return False
        # Without the interpreter lock: forwards of other threads go on.
        self._trim(0)
        self._due_s = now_s + self._every_s
        return True
