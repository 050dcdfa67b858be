"""One forward in every runtime of the engine, beside torch as it is and torch's own compiler.

    python benchmarks/runtimes.py                       # about ten minutes on 2 cores
    python benchmarks/runtimes.py --sizes shipped --lengths 32 --seconds 1
    python benchmarks/runtimes.py --threads 1 --out results.json

Batches of texts of one length, all groups filled, through ``member_logits`` as the engine calls it.
Number formats are the engine's own choice (``engine.dtype=auto``), but for the column of 8 bits.
``torch.compile`` gets static shapes and frozen weights: the most that it can do. Rounds of all
runtimes take turns, and each figure is a median, so that a noisy machine disturbs all alike.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from muxserve.engine.config import available_cores
from muxserve.engine.forward import load_to_serve, make_executor
from muxserve.measure.families import write_random_family
from muxserve.measure.machine import describe
from muxserve.models.family import Family, member_logits, resolve

WIDTHS = [1, 10]
#: Groups of a batch: a lone one, and enough to fill the cores.
GROUPS = [1, 16]
Forward = Callable[[int, Sequence[np.ndarray]], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=["base", "shipped"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seconds", type=float, default=3.0, help="of each runtime and batch")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    logging.disable_progress_bar()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes or ["shipped", "base"]:
            path = resolve("sentiment")
            if size == "base":
                path = write_random_family(Path(folder) / "base")
            rows += measure(size, path, args)
    report = {"machine": {**describe(), "threads": str(args.threads)}, "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))


def measure(size: str, path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of each batch in each runtime."""
    tell(f"{size}: loading")
    forwards = runtimes(path, args.threads)
    rows = []
    for n in WIDTHS:
        for length in args.lengths:
            for groups in GROUPS:
                rng = np.random.default_rng(0)
                texts = list(rng.integers(1000, 10_000, (groups * n, length)))
                tell(f"{size}: N={n}, {length} tokens, {groups} groups")
                seconds = timed(forwards, n, texts, args.seconds)
                rows.append(
                    {"size": size, "n": n, "length": length, "groups": groups, "seconds": seconds}
                )
    return rows


def runtimes(path: Path, threads: int) -> dict[str, Forward]:
    """Every runtime by name: what turns N and rows of token ids into logits."""
    plain = Family.load(path, WIDTHS, dtype=None)
    forwards: dict[str, Forward] = {"torch": direct(plain, member_logits)}
    torch._inductor.config.freezing = True
    # Each shape is compiled anew; past its limit the compiler would give up without a word.
    torch._dynamo.config.recompile_limit = 64
    forwards["torch.compile"] = direct(plain, torch.compile(member_logits, dynamic=False))
    for name, dtype, runtime in (
        ("packed", "auto", "torch"),
        ("packed, int8", "int8", "torch"),
        ("openvino", "auto", "openvino"),
    ):
        family = load_to_serve(path, dtype, WIDTHS, runtime=runtime)
        executor = make_executor(family, runtime, threads=threads, in_flight=1)
        executor.prepare()
        forwards[name] = executor.run
    # After the executors: loading sets the threads of this one aside.
    torch.set_num_threads(threads)
    return forwards


def direct(family: Family, logits: Callable[..., torch.Tensor]) -> Forward:
    """The family's models, not packed."""

    def forward(n: int, rows: Sequence[np.ndarray]) -> object:
        ids = torch.from_numpy(np.stack(rows))
        with torch.inference_mode():
            return logits(family.models[n], ids, torch.ones_like(ids), n).numpy()

    return forward


def timed(
    forwards: dict[str, Forward], n: int, rows: Sequence[np.ndarray], seconds: float
) -> dict[str, float]:
    """Median seconds of each, in turns; what is compiled is compiled before."""
    taken: dict[str, list[float]] = {name: [] for name in forwards}
    for forward in forwards.values():
        for _ in range(2):
            forward(n, rows)
    end = time.perf_counter() + seconds * len(forwards)
    while time.perf_counter() < end or len(taken["torch"]) < 5:
        for name, forward in forwards.items():
            at = time.perf_counter()
            forward(n, rows)
            taken[name].append(time.perf_counter() - at)
    return {name: statistics.median(all_of_it) for name, all_of_it in taken.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of torch as it is, and what share of that each runtime takes."""
    names = [name for name in rows[0]["seconds"] if name != "torch"]
    lines = [
        f"| size | N | tokens | groups | torch ms | {' | '.join(names)} |",
        f"| --- | ---: | ---: | ---: | ---: |{' ---: |' * len(names)}",
    ]
    for row in rows:
        base = row["seconds"]["torch"]
        shares = " | ".join(f"{row['seconds'][name] / base:.2f}" for name in names)
        lines.append(
            f"| {row['size']} | {row['n']} | {row['length']} | {row['groups']} | "
            f"{1000 * base:.1f} | {shares} |"
        )
    return "\n".join(lines)


def tell(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
