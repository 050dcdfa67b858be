"""Texts per second at every N: the offline forward loop, and HTTP under load, in one run.

    python benchmarks/throughput.py                      # everything, about 15 minutes on 2 cores
    python benchmarks/throughput.py --family shipped --seconds 5
    python benchmarks/throughput.py --proxy haproxy --out results.json

Clients, ingress and engine share this machine's cores. N=1 runs the plain model, length-sorted,
at its best batch size: what a gain is measured against.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")

from muxserve.bench.closed_loop import LoadResult, closed_loop
from muxserve.bench.families import write_random_family
from muxserve.bench.machine import describe
from muxserve.bench.offline import OfflineRate, offline_rate
from muxserve.bench.texts import generated_texts
from muxserve.cli.serve import RAY_SETTINGS, Proxy
from muxserve.engine.config import available_cores
from muxserve.engine.tokens import TextEncoder
from muxserve.models.family import Family, resolve

HOST = "127.0.0.1"
#: Texts of the offline loop; fewer of the base size, whose loop takes minutes otherwise.
TEXTS = {"shipped": 2000, "base": 400}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=["shipped", "base", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of each load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--proxy",
        choices=list(Proxy),
        default=Proxy.PYTHON,
        type=Proxy,
        help="what takes HTTP, set up as `muxserve serve --proxy` does",
    )
    parser.add_argument(
        "--arrangement", choices=["separate", "together"], default="separate", help="of processes"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()

    os.environ.update(RAY_SETTINGS[options.proxy])  # read when Ray is imported

    names = ["shipped", "base"] if options.family == "both" else [options.family]
    report: dict[str, Any] = {
        "machine": describe(),
        "clients": options.clients,
        "proxy": options.proxy,
        "arrangement": options.arrangement,
        "families": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        folders = {"shipped": resolve("sentiment")}
        if "base" in names:
            tokenizer = Family.load("sentiment", [1]).tokenizer
            folders["base"] = write_random_family(Path(folder) / "base", tokenizer)
        for name in names:
            report["families"][name] = measure_offline(folders[name], TEXTS[name])
        with serving(options.port, options.arrangement) as deploy:
            for name in names:
                rates = report["families"][name]
                widths = [int(n) for n in rates["offline"]]
                for width in [*widths, None]:
                    tell(f"{name}: HTTP, {f'N={width}' if width else 'elastic'}")
                    deploy(folders[name], width)
                    result = load(folders[name], options)
                    rates["http"]["elastic" if width is None else str(width)] = summary(result)
    table = format_table(report)
    print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    else:
        print(json.dumps(report))


def measure_offline(folder: Path, count: int) -> dict[str, Any]:
    """The offline loop at every N of a family."""
    family = Family.load(folder, dtype=None)  # as the engine does
    encoder = TextEncoder(family.tokenizer, family.spec.max_length)
    rows = [tokens.ids for tokens in encoder.encode(generated_texts(family.tokenizer, count))]
    rates: dict[int, OfflineRate] = {}
    for n in family.widths:
        rates[n] = offline_rate(
            family,
            n,
            rows,
            threads=available_cores(),
            on_progress=lambda what: tell(f"{family.spec.name}: offline, {what}"),
        )
    return {
        "mean_tokens": sum(map(len, rows)) / len(rows),
        "offline": {
            str(n): {"texts_per_s": rate.texts_per_s, "groups": rate.groups}
            for n, rate in rates.items()
        },
        "http": {},
    }


@contextmanager
def serving(port: int, arrangement: str) -> Iterator[Any]:
    """Ray Serve on a port of this machine; gives a function that deploys a family."""
    import ray
    from ray import serve

    from muxserve.serving.app import build_app
    from muxserve.serving.config import ServeConfig

    ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address=HOST)
    serve.start(http_options={"host": HOST, "port": port})

    def deploy(folder: Path, width: int | None) -> None:
        serve.delete("default", _blocking=True)
        config = ServeConfig.model_validate(
            {
                "family": str(folder),
                "arrangement": arrangement,
                "engine": {"num_instances": width},
                # As many threads as the offline loop has.
                "replicas": {"num_cpus": available_cores()},
            }
        )
        serve.run(build_app(config), name="default", route_prefix="/")

    try:
        yield deploy
    finally:
        serve.shutdown()
        ray.shutdown()


def load(folder: Path, options: argparse.Namespace) -> LoadResult:
    """Put the closed loop on the deployed family; other texts for every client."""
    texts = generated_texts(Family.load(folder, [1]).tokenizer, 4000, seed=1)
    return asyncio.run(
        closed_loop(HOST, options.port, texts, clients=options.clients, seconds=options.seconds)
    )


def summary(result: LoadResult) -> dict[str, Any]:
    """The figures of one load."""
    served = sum(n * count for n, count in result.num_instances.items())
    return {
        "texts_per_s": result.texts_per_s,
        "p50_ms": result.quantile_ms(0.5),
        "p99_ms": result.quantile_ms(0.99),
        "errors": sum(count for status, count in result.statuses.items() if status != 200),
        "mean_num_instances": served / max(1, sum(result.num_instances.values())),
    }


def format_table(report: dict[str, Any]) -> str:
    """A Markdown table: rates, their ratio to N=1, and HTTP over offline."""
    machine = report["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores shared by clients and server; "
        f"torch {machine['torch']}, Ray {machine['ray']}, {machine['date']}; "
        f"{report['clients']} clients in a closed loop, {report['proxy']} proxy, "
        f"arrangement {report['arrangement']}",
        "",
        "| family | N | offline texts/s | over N=1 | HTTP texts/s | over N=1 | HTTP / offline "
        "| p50 ms | p99 ms |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rates in report["families"].items():
        for n, http in rates["http"].items():
            offline = rates["offline"].get(n, {}).get("texts_per_s")
            alone = rates["offline"]["1"]["texts_per_s"]
            label = f"elastic (mean N {http['mean_num_instances']:.1f})" if n == "elastic" else n
            lines.append(
                f"| {name} | {label} "
                + (f"| {offline:.0f} | {offline / alone:.2f} " if offline else "| | ")
                + f"| {http['texts_per_s']:.0f} "
                f"| {http['texts_per_s'] / rates['http']['1']['texts_per_s']:.2f} "
                + (f"| {http['texts_per_s'] / offline:.2f} " if offline else "| ")
                + f"| {http['p50_ms']:.0f} | {http['p99_ms']:.0f} |"
            )
    return "\n".join(lines)


def tell(what: str) -> None:
    """Progress on standard error."""
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
