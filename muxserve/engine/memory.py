"""Bounds on the memory that a replica uses beside weights and activations.

Both runtimes multiply with oneDNN, which compiles code for each number of tokens (groups times
padded length) that it meets: 20 ms and 1 to 2 MB per forward on a processor with AMX. So lengths
are rounded up a little, which leaves few of them; only the newest code is kept; and freed memory
is given back to the system. The allocator does not do that by itself, because freed memory lies
scattered between blocks in use.
"""

import ctypes
import os
from collections.abc import Callable

#: Compiled products that oneDNN keeps. A forward has about nine, so some 57 numbers of tokens.
PREPARED = 512
#: Read by oneDNN when it first multiplies. Only for torch: OpenVINO once failed to compile a model
#: with a very small cache ("could not execute a primitive"), so there its default of 1,024 stays.
_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
#: Lengths up to this are not rounded.
_EXACT = 32
#: Seconds between two times that memory is given back; each takes some 10 ms of one thread.
_TRIM_EVERY_S = 10.0


def keep_few_shapes() -> int:
    """Bound oneDNN's cache for torch, unless the user has; call before the first forward.

    Returns:
        How many products are kept, as the environment says.
    """
    stated = os.environ.setdefault(_VARIABLE, str(PREPARED))
    return int(stated) if stated.isdecimal() else PREPARED


def rounded_length(length: int, max_length: int) -> int:
    """What a batch of ``length`` tokens is padded to, so that there are few lengths.

    Multiples of 2 above 32, of 4 above 64, of 8 above 128 and so on: at most a sixteenth more, and
    about a hundredth on average.
    """
    if length <= _EXACT:
        return length
    step = 1 << ((length - 1) // _EXACT).bit_length()
    return min(-(-length // step) * step, max_length)


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
        """Give memory back if that is due at ``now_s``; returns whether it was."""
        if self._trim is None or now_s < self._due_s:
            return False
        # Without the interpreter lock: forwards of other threads go on.
        self._trim(0)
        self._due_s = now_s + self._every_s
        return True
