"""Texts per second of a family on Triton and on Ray Serve, over HTTP, in one run.

    make triton-server                                  # once: a real tritonserver
    python benchmarks/triton_serving.py                 # about 3 minutes on 2 cores
    python benchmarks/triton_serving.py --seconds 5 --out results.json

Every arrangement takes the same texts over HTTP from the same clients, tokenizes them and answers
with labels and scores: Triton with its text front at each N and elastic, muxserve with its own
engine, and muxserve with Triton behind it. Clients and servers share this machine's cores. Triton
runs ONNX Runtime in float32; the engine takes --dtype.
"""

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from muxserve.bench.closed_loop import LoadResult, closed_loop, in_own_process, text_body
from muxserve.engine.config import available_cores
from muxserve.errors import MuxserveError
from muxserve.loadtest.servers.muxserve import running_muxserve
from muxserve.loadtest.servers.process import HOST
from muxserve.loadtest.servers.triton import TritonFailed, TritonServer
from muxserve.measure.machine import describe
from muxserve.measure.texts import generated_texts
from muxserve.models.family import Family

TRITON_VERSION = "2.51.0 (24.10)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="sentiment", help="a shipped family, or a folder")
    parser.add_argument(
        "--num-instances", type=int, action="append", help="N of Triton's models; default 1, 5, 10"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of each load")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before that")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    options.num_instances = options.num_instances or [1, 5, 10]
    try:
        report = measure(options)
    except (MuxserveError, TritonFailed) as error:
        sys.exit(f"error: {error}")
    print(format_table(report))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    else:
        print(json.dumps(report))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every arrangement, one after the other."""
    from muxserve.triton.repository import export
    from muxserve.triton.settings import ExportSettings

    family = Family.load(options.family, widths=[])
    texts = generated_texts(family.tokenizer, 4000, seed=1)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tell("exporting")
        settings = ExportSettings(text=True, num_instances=sorted(set(options.num_instances)))
        models = export(options.family, Path(folder) / "models", settings).models
        by_kind = {
            one.name: one
            for one in models
            if one.kind in ("elastic", "member")
            and (one.kind == "elastic" or one.widths[0] in options.num_instances)
        }
        with TritonServer(Path(folder) / "models") as triton:
            for name, model in by_kind.items():
                label = "elastic" if model.kind == "elastic" else f"N={model.widths[0]}"
                tell(f"Triton, {label}")
                before = executed(triton, name)
                result = load(options, triton.http_port, texts, f"/v2/models/{name}_text/infer")
                texts_run, runs = (
                    b - a for a, b in zip(before, executed(triton, name), strict=True)
                )
                rows[f"Triton, {label}"] = {
                    **summary(result),
                    "texts_per_execution": texts_run / max(1, runs),
                }
            elastic = next((one.name for one in models if one.kind == "elastic"), models[0].name)
            for label, deployed in (
                (
                    "muxserve, own engine",
                    [f"engine.dtype={options.dtype}", f"replicas.num_cpus={available_cores()}"],
                ),
                (
                    "muxserve, Triton behind it",
                    ["backend=triton", f"triton.url={triton.grpc}", f"triton.model={elastic}"],
                ),
            ):
                tell(label)
                with running_muxserve(options.family, deployed) as server:
                    rows[label] = summary(load(options, server.port, texts))
    return {
        "machine": {**describe(), "triton": TRITON_VERSION},
        "family": family.spec.name,
        "clients": options.clients,
        "seconds": options.seconds,
        "engine_dtype": options.dtype,
        "rows": rows,
    }


def load(
    options: argparse.Namespace, port: int, texts: list[str], path: str = "/predict"
) -> LoadResult:
    """The closed loop, in the words of whoever answers at ``path``."""
    clients = partial(
        closed_loop,
        HOST,
        port,
        texts,
        clients=options.clients,
        warm_up_s=options.warm_up,
        seconds=options.seconds,
        path=path,
        body=text_body if path == "/predict" else in_triton_s_words,
    )
    return in_own_process(clients, options.warm_up + options.seconds + 120)


def in_triton_s_words(text: str) -> bytes:
    """One text to labels with scores, through the classification extension."""
    content = {
        "inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}],
        "outputs": [{"name": "scores", "parameters": {"classification": 2}}],
    }
    return json.dumps(content).encode()


def executed(triton: TritonServer, model: str) -> tuple[int, int]:
    """Texts and executions of a model so far."""
    with urllib.request.urlopen(f"http://{triton.http}/v2/models/{model}/stats") as response:
        (stats,) = json.load(response)["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def summary(result: LoadResult) -> dict[str, Any]:
    """The figures of one load."""
    served = sum(n * count for n, count in result.num_instances.items())
    answers = sum(result.num_instances.values())
    return {
        "texts_per_s": result.texts_per_s,
        "p50_ms": result.quantile_ms(0.5),
        "p99_ms": result.quantile_ms(0.99),
        "errors": sum(count for status, count in result.statuses.items() if status != 200),
        "mean_num_instances": served / answers if answers else None,
    }


def format_table(report: dict[str, Any]) -> str:
    """A Markdown table; ratios are to the first row."""
    machine = report["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores shared by clients and servers; Triton "
        f"{machine['triton']}, torch {machine['torch']}, Ray {machine['ray']}, {machine['date']}; "
        f"family {report['family']}, {report['clients']} clients in a closed loop for "
        f"{report['seconds']:g} s each, no proxy, engine dtype {report['engine_dtype']}",
        "",
        "| arrangement | texts/s | over Triton N=1 | p50 ms | p99 ms | texts per execution "
        "| mean N | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    base = report["rows"].get("Triton, N=1", {}).get("texts_per_s")
    for name, row in report["rows"].items():
        ratio = f"{row['texts_per_s'] / base:.2f}" if base else ""
        per = f"{row['texts_per_execution']:.1f}" if "texts_per_execution" in row else ""
        mean = f"{row['mean_num_instances']:.1f}" if row["mean_num_instances"] else ""
        lines.append(
            f"| {name} | {row['texts_per_s']:.0f} | {ratio} | {row['p50_ms']:.0f} "
            f"| {row['p99_ms']:.0f} | {per} | {mean} | {row['errors']} |"
        )
    return "\n".join(lines)


def tell(what: str) -> None:
    """Progress on standard error."""
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
