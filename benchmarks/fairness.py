"""One client asks for little while another floods: what the first one sees of it.

    python benchmarks/fairness.py                        # about 4 minutes
    python benchmarks/fairness.py --settings arrangement=together --out fairness.json

A real server, and two load generators with addresses of their own (127.0.0.x), which is how the
server tells them apart. The quiet one sends one text at a time, at random moments of a given rate;
its latency counts from when it was due. The other one holds twelve connections and sends 512 texts
in each request, the next as soon as it has an answer (50 ms after a refusal); with
``max_num_instances: 1`` and without. All share this machine's cores. The quiet client is measured
alone before each flood, and ratios are those of such a pair.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from muxserve.engine.config import available_cores
from muxserve.loadtest.generator.load_spec import Job
from muxserve.loadtest.one_load import run_load
from muxserve.loadtest.scenario.shapes import Constant, Saturate, Shape
from muxserve.loadtest.scenario.texts import Text, write_texts
from muxserve.loadtest.servers.muxserve import RunningServer, running_muxserve
from muxserve.loadtest.servers.targets import Target
from muxserve.measure.machine import describe
from muxserve.measure.texts import generated_texts
from muxserve.models.family import Family

CONNECTIONS, TEXTS_EACH = 12, 512
#: Where each of them comes from.
QUIET, FLOOD = "127.0.0.2", "127.0.0.3"
#: Seconds that a flood has to fill the server before the quiet client is measured.
FILL_S = 5.0
#: The flood goes on for so much longer than the quiet client, whose generator takes time to start.
LONGER_S = 5.0
TIMEOUT_S = 120.0
#: What a flood asks for beside its texts.
FLOODS: dict[str, dict[str, Any]] = {"N=1": {"max_num_instances": 1}, "uncapped": {}}


def main() -> None:
    options = parse()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    tokenizer = Family.load("sentiment", []).tokenizer
    texts = generated_texts(tokenizer, CONNECTIONS * TEXTS_EACH)
    report: dict[str, Any] = {
        "machine": describe(),
        "settings": options.settings,
        "proxy": options.proxy,
        "quiet": {"texts_per_s": options.rate, "seconds": options.seconds},
        "flood": {"connections": CONNECTIONS, "texts_per_request": TEXTS_EACH},
        "runs": [],
    }
    settings = [*options.settings, f"replicas.num_cpus={available_cores()}"]
    with running_muxserve("sentiment", settings, proxy=options.proxy) as server:
        measure_quiet(server, texts, 3.0, options.rate)  # the first texts find everything cold
        for name, asked in FLOODS.items():
            tell("the quiet client alone")
            alone = measure_quiet(server, texts, options.seconds, options.rate)
            tell(f"beside a flood, {name}")
            beside, flood = measure_beside(server, texts, options, asked)
            report["runs"].append({"flood": name, "alone": alone, "beside": beside, **flood})
    print(as_markdown(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="measured time of each run")
    parser.add_argument("--rate", type=float, default=20.0, help="the quiet client's texts per s")
    parser.add_argument("--proxy", default="none", help="as of `muxserve serve`")
    parser.add_argument("--settings", nargs="*", default=[], help="key=value settings of muxserve")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def measure_quiet(
    server: RunningServer, texts: Sequence[str], seconds: float, rate: float
) -> dict[str, Any]:
    """What the quiet client sees: latencies of what was answered, and what was not."""
    shape = Constant(shape="constant", rate_per_s=rate, seconds=seconds, warm_up_s=0)
    row = measure(server, [Text(text) for text in texts], shape, QUIET)
    return {
        "answered": row["answered"],
        "refused": sum(row["errors"].values()),
        **{name: row[name] for name in ("p50_ms", "p99_ms", "mean_num_instances")},
    }


def measure_beside(
    server: RunningServer,
    texts: Sequence[str],
    options: argparse.Namespace,
    asked: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the quiet client sees beside a flood, and what the flood sees."""
    requests = [
        Text("", body=json.dumps({"inputs": texts[start : start + TEXTS_EACH], **asked}))
        for start in range(0, len(texts), TEXTS_EACH)
    ]
    shape = Saturate(
        shape="saturate",
        clients=CONNECTIONS,
        seconds=FILL_S + options.seconds + LONGER_S,
        warm_up_s=FILL_S,
    )
    with ThreadPoolExecutor(1) as thread:
        flood = thread.submit(measure, server, requests, shape, FLOOD)
        time.sleep(FILL_S)
        beside = measure_quiet(server, texts, options.seconds, options.rate)
        row = flood.result()
    return beside, {
        "flood_texts_per_s": TEXTS_EACH * row["texts_per_s"],  # each request counts as one
        "flood_refused": row["errors"].get("503", 0),
    }


def measure(server: RunningServer, texts: list[Text], shape: Shape, source: str) -> dict[str, Any]:
    """One load from one address."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        write_texts(file, texts)
        job = Job(
            url=server.url,
            kind="text",
            shape=shape,
            texts=file,
            source=source,
            timeout_s=TIMEOUT_S,
        )
        row, cut = run_load(
            source,
            Target(server.url, server.cpu_seconds, server.stats),
            job,
            Path(folder),
            workers=0,
            web_port=None,
            quality={},
            tell=lambda *_: None,
        )
    if cut is not None or row is None:
        raise SystemExit(f"error: {cut or 'nothing was sent'}")
    return row


def as_markdown(report: Mapping[str, Any]) -> str:
    """The table of the docs."""
    lines = [
        "| beside | answered | refused | p50 ms | p99 ms | p50, times alone | p99, times alone "
        "| flood's texts/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in report["runs"]:
        alone, beside = run["alone"], run["beside"]
        for name, one, flood in (
            ("nobody", alone, ""),
            (f"a flood, {run['flood']}", beside, f"{run['flood_texts_per_s']:,.0f}"),
        ):
            ratios = [f"{one[key] / alone[key]:.1f}" for key in ("p50_ms", "p99_ms")]
            lines.append(
                f"| {name} | {one['answered']} | {one['refused']} | {one['p50_ms']:.0f} "
                f"| {one['p99_ms']:.0f} | {' | '.join(ratios)} | {flood} |"
            )
    return "\n".join(lines)


def tell(what: str) -> None:
    """Progress on standard error."""
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
