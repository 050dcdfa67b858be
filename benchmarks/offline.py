"""The ceiling of serving: a plain loop of forwards at every N, and one forward of a lone text.

    python benchmarks/offline.py --out offline.json     # about ten minutes on 2 cores
    python benchmarks/offline.py --families shipped

The loops run torch over texts sorted by length, whatever is served. The lone forward runs as the
engine runs it, in the runtime that ``--settings`` name. Nothing else should use the machine.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from muxserve.engine.config import available_cores
from muxserve.engine.forward import load_to_serve, make_executor
from muxserve.engine.tokens import TextEncoder
from muxserve.measure.families import write_random_family
from muxserve.measure.machine import describe
from muxserve.measure.offline import offline_rate
from muxserve.measure.texts import generated_texts
from muxserve.models.family import resolve
from muxserve.serving.config import ServeConfig

TEXTS = 2000
#: Texts of the loops; all 2,000 of the base size take minutes at N=1.
LOOP_TEXTS = {"base": 400, "shipped": TEXTS}
WIDTHS = (1, 2, 5, 10)
#: As loadtests/scenarios/serving.yaml serves.
SETTINGS = ["engine.runtime=openvino"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", nargs="+", choices=["base", "shipped"], default=["shipped", "base"]
    )
    parser.add_argument(
        "--settings", nargs="*", default=SETTINGS, help="key=value settings of the lone forward"
    )
    parser.add_argument("--out", type=Path, help="write the figures here instead of printing them")
    options = parser.parse_args()
    logging.disable_progress_bar()
    report: dict[str, Any] = {"machine": describe(), "families": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families:
            base = name == "base"
            path = write_random_family(Path(folder) / name) if base else resolve("sentiment")
            report["families"][name] = ceiling(name, path, options.settings)
    text = json.dumps(report, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")


def ceiling(name: str, path: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Everything about one size of network."""
    family = load_to_serve(path)
    texts = generated_texts(family.tokenizer, TEXTS)
    rows = [t.ids for t in TextEncoder(family.tokenizer, family.spec.max_length).encode(texts)]
    offline = {
        str(n): vars(
            offline_rate(
                family,
                n,
                rows[: LOOP_TEXTS[name]],
                threads=available_cores(),
                on_progress=lambda what: tell(f"{name}: {what}"),
            )
        )
        for n in WIDTHS
    }
    return {
        "mean_tokens": float(np.mean([len(row) for row in rows])),
        "dtype": str(family.models[1].dtype).removeprefix("torch."),
        "offline": offline,
        "bare_forward_p50_ms": bare_forward_ms(path, settings, rows[:200]),
    }


def bare_forward_ms(path: Path, settings: Sequence[str], rows: Sequence[np.ndarray]) -> float:
    """Median milliseconds of a forward of one text at N=1, as the engine runs a text that is alone:
    on every core, in the runtime and number format that are served.
    """
    values = dict(setting.split("=", 1) for setting in settings)
    config = ServeConfig.model_validate({"family": str(path), **values}).engine
    threads = config.torch_threads or available_cores()
    family = load_to_serve(path, config.dtype, [1], runtime=config.runtime)
    executor = make_executor(
        family, config.runtime, threads=threads, in_flight=config.forwards_in_flight
    )
    executor.prepare()
    for row in rows[:3]:  # the first ones start threads
        executor.run(1, [row], alone=True)
    seconds = []
    for row in rows:
        started = time.perf_counter()
        executor.run(1, [row], alone=True)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def tell(what: str) -> None:
    """Progress on standard error."""
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
