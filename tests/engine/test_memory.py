"""What the runtimes keep of the shapes that they met is bounded, and what is freed goes back."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

from muxserve.engine.forward import load_to_serve, make_executor
from muxserve.engine.memory import PREPARED, Trimmer, rounded_length
from muxserve.engine.openvino import _openvino

#: In a process of its own, since the bound is one of a process: one shape, some others, and the
#: first one again, which oneDNN then says to prepare or not; and that with more others.
FIRST_AGAIN = """
    import sys
    import numpy as np
    from muxserve.engine.forward import load_to_serve, make_executor

    folder, runtime, parts = sys.argv[1], sys.argv[2], [int(part) for part in sys.argv[3:]]
    family = load_to_serve(folder, "float32", [2], runtime=runtime)
    executor = make_executor(family, runtime, threads=1)
    executor.prepare()

    def run(groups, length):
        executor.run(2, [np.full(length, 5, np.int64)] * (2 * groups))

    # Each with a number of tokens of its own: products do not care how those are laid out.
    shapes = {}
    for groups in range(1, 9):
        for length in range(5, 33):
            shapes[groups * length] = groups, length
    del shapes[4 * 31]
    others = iter(shapes.values())
    run(4, 31)
    for part in parts:
        for _ in range(part):
            run(*next(others))
        print("-- again", flush=True)
        run(4, 31)
        print("-- others", flush=True)
"""


def prepared_again(family, runtime, *parts):
    """Products that are prepared anew for a shape, after so many other shapes and so many more."""
    clean = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FIRST_AGAIN), str(family), runtime]
        + [str(part) for part in parts],
        env=clean | {"ONEDNN_VERBOSE": "2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    before, *again = done.stdout.split("-- again")
    assert "create:cache_miss" in before
    return [part.partition("-- others")[0].count("create:cache_miss") for part in again]


def test_torch_keeps_what_it_prepared_for_the_newest_shapes_only(tiny_family):
    soon, late = prepared_again(tiny_family, "torch", 10, 60)
    assert soon == 0
    assert late > 0


def test_openvino_is_told_to_keep_as_few(tiny_family, monkeypatch):
    told = []
    core = type(_openvino()[0])
    compile_model = core.compile_model

    def compiled(core, graph, device, settings):
        told.append(settings["CPU_RUNTIME_CACHE_CAPACITY"])
        return compile_model(core, graph, device, settings)

    monkeypatch.setattr(core, "compile_model", compiled)
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    family = load_to_serve(tiny_family, "float32", [2], runtime="openvino")
    make_executor(family, "openvino", threads=1)
    assert told == [PREPARED]


@pytest.mark.parametrize("max_length", [32, 100, 128, 512])
def test_there_are_few_lengths_and_each_is_padded_little(max_length):
    rounded = {length: rounded_length(length, max_length) for length in range(1, max_length + 1)}
    assert all(length <= to <= max_length for length, to in rounded.items())
    assert all(to - length <= length / 16 for length, to in rounded.items())
    assert len(set(rounded.values())) <= 32 + 16 * max(0, max_length // 32).bit_length()


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_batch_is_padded_to_one_of_the_few_lengths(runtime):
    family = load_to_serve("part-of-speech", "float32", [1], runtime=runtime)
    executor = make_executor(family, runtime, threads=1)
    executor.prepare()
    rows = [np.full(length, 7, np.int64) for length in (65, 40)]
    logits = executor.run(1, rows)
    assert logits.shape[:2] == (2, 68)
    alone = executor.run(1, rows[:1])
    np.testing.assert_allclose(logits[0, :65], alone[0, :65], atol=1e-4)


def test_freed_memory_goes_back_to_the_system_when_that_is_due():
    process = psutil.Process()
    trimmer = Trimmer(every_s=10.0)
    if not trimmer.step(0.0):
        pytest.skip("not glibc")
    # Every second block is kept, so the allocator cannot shorten its heap.
    blocks = [np.ones(32 * 1024, np.uint8) for _ in range(4000)]
    kept = blocks[::2]
    del blocks
    before = process.memory_info().rss
    assert not trimmer.step(9.0)
    assert trimmer.step(10.0)
    assert before - process.memory_info().rss > 30e6
    assert len(kept) == 2000
