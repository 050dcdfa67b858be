"""Whether a replica's memory stays flat: an engine under texts of all lengths, minute by minute.

    python benchmarks/memory.py                          # ten minutes of each runtime
    python benchmarks/memory.py --runtimes torch --minutes 60
    python benchmarks/memory.py --kept 5000              # as it would be with a larger cache

Each runtime has a process of its own. Clients send bundles of random size, each with a random cap
on N, of texts of 5 to 120 words, and pause for a quarter of the time that each took: about 80% of
load. Every shape counts (N, groups and padded tokens of a forward): the runtimes prepare each anew.
The slope is of a line through what was sampled after the warm-up. A machine that others use serves
fewer texts in a minute, so beside it stands the slope over a thousand forwards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from muxserve.engine.config import EngineConfig, available_cores
from muxserve.engine.engine import Engine
from muxserve.engine.forward import Executor, load_to_serve, make_executor
from muxserve.engine.memory import PREPARED, keep_few_shapes
from muxserve.engine.request import RequestOptions
from muxserve.measure.machine import describe
from muxserve.measure.texts import generated_texts

OUT = Path(__file__).parent / "results" / "memory.json"
RUNTIMES = ["torch", "openvino"]
CLIENTS = 6
MOST_TEXTS = 96
#: Of the time that a bundle took, what a client waits before its next.
PAUSE = 0.25
SAMPLE_S = 10.0


class Counted:
    """An executor, and the shapes of what it ran."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.in_flight, self.spreads = executor.in_flight, executor.spreads
        self.shapes: set[tuple[int, int, int]] = set()
        self.forwards = 0

    def prepare(self) -> None:
        self._executor.prepare()

    def run(self, n: int, rows: Sequence[np.ndarray], *, alone: bool = False) -> np.ndarray:
        self.forwards += 1
        self.shapes.add((n, len(rows) // n, max(map(len, rows))))
        return self._executor.run(n, rows, alone=alone)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="sentiment")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each runtime")
    parser.add_argument(
        "--kept", type=int, help="products that torch keeps prepared; default: as the engine"
    )
    parser.add_argument("--out", type=Path, help=f"where the figures go, such as {OUT.name}")
    parser.add_argument("--child", choices=RUNTIMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        serve(args.child, args)
        return
    rows = [measured(runtime, args) for runtime in args.runtimes]
    report = {"machine": {**describe(), "threads": str(available_cores())}, "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))


def measured(runtime: str, args: argparse.Namespace) -> dict[str, Any]:
    """One runtime's samples and slopes; progress goes to the error stream."""
    command = [sys.executable, __file__, "--child", runtime, "--family", args.family]
    command += ["--minutes", str(args.minutes)]
    command += [] if args.kept is None else ["--kept", str(args.kept)]
    samples = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            samples.append(json.loads(line))
            tell(runtime, samples[-1])
    if child.returncode or len(samples) < 3:
        raise SystemExit(f"{runtime}: the engine's process ended with {child.returncode}")
    # The first third, ten minutes at most, is the warm-up.
    from_s = min(600.0, samples[-1]["seconds"] / 3)
    warm = [one for one in samples if one["seconds"] >= from_s]
    return {
        "runtime": runtime,
        "kept": samples[-1]["kept"],
        "minutes": round(samples[-1]["seconds"] / 60, 1),
        "warm_up_minutes": round(from_s / 60, 1),
        "mb_per_minute": round(60 * slope(warm, "seconds"), 2),
        "mb_per_1000_forwards": round(1000 * slope(warm, "forwards"), 1),
        "samples": samples,
    }


def slope(samples: Sequence[dict[str, float]], over: str) -> float:
    """MB for each unit of another column, of the line of least squares."""
    return statistics.linear_regression(
        [one[over] for one in samples], [one["rss_mb"] for one in samples]
    ).slope


def serve(runtime: str, args: argparse.Namespace) -> None:
    """Load one engine for some minutes; a line of JSON for each sample."""
    if args.kept is not None and runtime == "torch":
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(args.kept)
    kept = keep_few_shapes() if runtime == "torch" else PREPARED
    family = load_to_serve(args.family, runtime=runtime)
    executor = Counted(make_executor(family, runtime, threads=available_cores()))
    texts = generated_texts(family.tokenizer, 20_000, words=(5, 120))
    with Engine(family, EngineConfig(runtime=runtime), executor=executor) as engine:
        started = time.perf_counter()
        end = threading.Event()
        clients = [
            threading.Thread(target=client, args=(engine, texts, seed, end))
            for seed in range(CLIENTS)
        ]
        for one in clients:
            one.start()
        process = psutil.Process()
        while (seconds := time.perf_counter() - started) < 60 * args.minutes:
            stats = engine.stats()
            sample = {
                "seconds": round(seconds, 1),
                "rss_mb": round(process.memory_info().rss / 1e6, 1),
                "texts": stats.texts,
                "forwards": executor.forwards,
                "shapes": len(executor.shapes),
                "kept": kept,
            }
            print(json.dumps(sample), flush=True)
            time.sleep(SAMPLE_S)
        end.set()
        for one in clients:
            one.join()


def client(engine: Engine, texts: Sequence[str], seed: int, end: threading.Event) -> None:
    """One caller's bundles, until the end."""
    rng = np.random.default_rng(seed)
    while not end.is_set():
        count = int(rng.integers(1, MOST_TEXTS + 1))
        chosen = [texts[i] for i in rng.integers(0, len(texts), count)]
        cap = int(rng.choice(engine.widths))
        at = time.perf_counter()
        engine.classify(chosen, options=RequestOptions(max_num_instances=cap))
        end.wait(PAUSE * (time.perf_counter() - at))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Memory at the warm-up's end and at the end, and its slopes."""
    lines = [
        "| runtime | kept | minutes | texts | forwards | shapes | MB at first | after warm-up "
        "| at the end | MB/minute | MB/1,000 forwards |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        first, last = row["samples"][0], row["samples"][-1]
        warm = next(
            one for one in row["samples"] if one["seconds"] >= 60 * row["warm_up_minutes"] - 6
        )
        lines.append(
            f"| {row['runtime']} | {row['kept']} | {row['minutes']} "
            f"| {last['texts']:,} | {last['forwards']:,} | {last['shapes']:,} "
            f"| {first['rss_mb']:,.0f} | {warm['rss_mb']:,.0f} | {last['rss_mb']:,.0f} "
            f"| {row['mb_per_minute']} | {row['mb_per_1000_forwards']} |"
        )
    return "\n".join(lines)


def tell(runtime: str, sample: dict[str, Any]) -> None:
    print(
        f"... {runtime}: {sample['seconds']:.0f} s, {sample['rss_mb']:,.0f} MB, "
        f"{sample['texts']:,} texts, {sample['forwards']:,} forwards, {sample['shapes']:,} shapes",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
