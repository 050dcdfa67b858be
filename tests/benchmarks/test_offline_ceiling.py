"""``benchmarks/offline.py``: what a lone client is compared with."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from muxserve.engine import forward

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "offline.py"


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_bare_forward_is_that_of_a_lone_text_in_the_served_runtime(
    tiny_family, runtime, monkeypatch
):
    # Not imported to see whether it is there: that would bring its telemetry with it.
    if runtime == "openvino" and find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    real, made, alone = forward.make_executor, [], []

    def watched(family, runtime, *, threads, in_flight):
        executor = real(family, runtime, threads=threads, in_flight=in_flight)
        made.append((runtime, threads, executor.in_flight, type(executor).__name__))
        run = executor.run

        def noted(n, rows, **options):
            alone.append((n, len(rows), options))
            return run(n, rows, **options)

        executor.run = noted
        return executor

    monkeypatch.setattr(forward, "make_executor", watched)
    bare_forward_ms = runpy.run_path(str(SCRIPT))["bare_forward_ms"]
    settings = ["arrangement=together", f"engine.runtime={runtime}", "engine.torch_threads=2"]
    rows = [np.array([2, 4, 6, 3])] * 5
    assert bare_forward_ms(tiny_family, settings, rows) > 0
    kind = {"torch": "TorchExecutor", "openvino": "OpenVinoExecutor"}[runtime]
    assert made == [(runtime, 2, 2, kind)]
    assert len(alone) >= len(rows)
    assert all(one == (1, 1, {"alone": True}) for one in alone)
