"""What the runtimes keep of the shapes that they met is bounded, and what is freed goes back."""

import os
import subprocess
import sys
import textwrap

import pytest

from muxserve.engine.memory import PREPARED, Trimmer, keep_few_shapes

#: Runs forwards of ever new shapes in a process of its own, since the bound is one of a process;
#: prints the megabytes that it has allocated after each part.
NEW_SHAPES = """
    import ctypes, sys
    import numpy as np
    from muxserve.engine.forward import load_to_serve, make_executor

    FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class Allocated(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]

    allocated = ctypes.CDLL(None).mallinfo2
    allocated.restype = Allocated
    folder, runtime, parts = sys.argv[1], sys.argv[2], [int(part) for part in sys.argv[3:]]
    family = load_to_serve(folder, "float32", [2], runtime=runtime)
    executor = make_executor(family, runtime, threads=1)
    executor.prepare()
    shapes = ((groups, length) for groups in range(1, 40) for length in range(4, 33))
    for part in parts:
        for _, (groups, length) in zip(range(part), shapes):
            executor.run(2, [np.full(length, 5, np.int64)] * (2 * groups))
        print((allocated().uordblks + allocated().hblkhd) / 1e6)
"""


def allocated_mb(family, runtime, parts, **environment):
    command = [sys.executable, "-c", textwrap.dedent(NEW_SHAPES), family, runtime]
    clean = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(
        [*command, *map(str, parts)],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [float(line) for line in done.stdout.split()]


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_new_shapes_stop_adding_to_memory(tiny_family, runtime):
    parts = (60, 60)
    first, last = allocated_mb(str(tiny_family), runtime, parts)
    print(first, last)
    assert last - first < 3
