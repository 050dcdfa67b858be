"""Served throughput, latency and a burst: muxserve at every N against its ceiling and its peers.

    python benchmarks/serving.py                        # everything, about 45 minutes on 2 cores
    python benchmarks/serving.py --seconds 3 --families shipped --no-peers --no-burst
    python benchmarks/serving.py --out results.json --plot results.svg

One text per request, texts of 5 to 60 words. Clients, in a process of their own, and servers share
this machine's cores. Peers serve a plain BERT of the same size, each from an environment of its
own, in the same run. The offline ceiling runs torch whatever is served, as the peers do; the bare
forward beside a lone client runs in the runtime that is served. Every figure in the JSON's flat
``summary`` comes from this run.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from offline import TEXTS, WIDTHS, ceiling, tell
from transformers.utils import logging

from muxserve.bench.burst import measure_burst
from muxserve.bench.closed_loop import LoadResult, closed_loop, in_own_process
from muxserve.bench.serving_report import as_markdown, plot, summary
from muxserve.engine.config import available_cores
from muxserve.loadtest.scenario.shapes import Burst
from muxserve.loadtest.servers.muxserve import RunningServer, running_muxserve
from muxserve.loadtest.servers.peers import PEERS, PeerFailed, environment, running
from muxserve.loadtest.servers.plain_model import write_plain_model_like
from muxserve.loadtest.servers.process import HOST, free_port
from muxserve.loadtest.servers.watch import Look, stages_ms
from muxserve.measure.families import write_random_family
from muxserve.measure.machine import describe
from muxserve.measure.texts import generated_texts
from muxserve.models.family import Family, resolve
from muxserve.models.precision import fastest_dtype

#: Other ways of serving the shipped family, each beside ``--settings`` at N=1 and at the widest N:
#: name, what stands before the ingress (None: ``--proxy``), settings, environment.
VARIANTS: tuple[tuple[str, str | None, list[str], dict[str, str]], ...] = (
    ("torch", None, ["engine.runtime=torch"], {}),
    ("torch, int8", None, ["engine.runtime=torch", "engine.dtype=int8"], {}),
    ("separate", None, ["arrangement=separate"], {}),
    (
        "separate without gRPC",
        None,
        ["arrangement=separate"],
        {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "0"},
    ),
    ("haproxy", "haproxy", [], {}),
    ("python proxy", "python", [], {}),
)


def main() -> None:
    options = parse()
    logging.disable_progress_bar()
    # Servers are started from here, and Ray's makers need not know.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    report: dict[str, Any] = {
        "machine": describe(),
        "clients": options.clients,
        "seconds": options.seconds,
        "settings": options.settings,
        "proxy": options.proxy,
        "families": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families:
            report["families"][name] = measure_family(name, Path(folder), options)
            save(report, options.out)  # a run takes long; what is measured is kept
    report["summary"] = summary(report)
    save(report, options.out)
    print(as_markdown(report))
    if options.plot:
        plot(report, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", nargs="+", choices=["base", "shipped"], default=["shipped", "base"]
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of each load")
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--proxy", default="none", help="as of `muxserve serve`")
    parser.add_argument(
        "--settings",
        nargs="*",
        default=["arrangement=together", "engine.runtime=openvino"],
        help="key=value settings of muxserve, beside N and the CPUs",
    )
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--environments", type=Path, default=Path(".cache/peers"), help="of the peers, made once"
    )
    parser.add_argument("--variants", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--burst", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--target-ms", type=float, default=250.0, help="of the burst")
    parser.add_argument("--burst-seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw them (.svg, .png)")
    return parser.parse_args()


def measure_family(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The ceiling, our server at every N, and the peers, for one size of network."""
    path = write_random_family(folder / "base") if name == "base" else resolve("sentiment")
    texts = generated_texts(Family.load(path, []).tokenizer, TEXTS)
    result: dict[str, Any] = {
        **ceiling(name, path, options.settings),
        "ours": {},
        "variants": {},
        "peers": {},
    }
    for n in [*WIDTHS, None]:
        key = "elastic" if n is None else str(n)
        settings = [*options.settings, f"replicas.num_cpus={available_cores()}"]
        if n is not None:
            settings.append(f"engine.num_instances={n}")
        with running_muxserve(path, settings, proxy=options.proxy) as server:
            result["ours"][key] = loads(server, f"{name}: {key}", texts, options)
            if n is None:
                result["lone"] = lone(server, texts, options)
    if options.variants and name == "shipped":
        for variant, proxy, settings, variables in VARIANTS:
            for n in (WIDTHS[0], WIDTHS[-1]):
                key = f"{variant}, N={n}"
                result["variants"][key] = measure_variant(
                    f"{name}: {key}",
                    path,
                    [*options.settings, *settings, f"engine.num_instances={n}"],
                    proxy or options.proxy,
                    variables,
                    texts,
                    options,
                )
    if options.burst:
        alone = at(result["ours"]["1"], max(options.clients))
        result["burst"] = measure_bursts(name, path, alone["texts_per_s"], options)
    if options.peers:
        plain = write_plain_model_like(folder / f"plain-{name}", path)
        for peer_name in PEERS:
            result["peers"][peer_name] = measure_peer(peer_name, plain, name, texts, options)
    return result


def measure_variant(
    what: str,
    path: Path,
    settings: Sequence[str],
    proxy: str,
    variables: Mapping[str, str],
    texts: Sequence[str],
    options: argparse.Namespace,
) -> Any:
    """The closed loop with the most clients; one that does not start is said, not hidden."""
    settings = [*settings, f"replicas.num_cpus={available_cores()}"]
    try:
        with running_muxserve(path, settings, proxy=proxy, environment=variables) as server:
            return loads(server, what, texts, options, [max(options.clients)])
    except RuntimeError as error:
        tell(str(error))
        return {"failed": str(error).splitlines()[-1][:200]}


def loads(
    server: Any,
    what: str,
    texts: Sequence[str],
    options: argparse.Namespace,
    clients_each: Sequence[int] | None = None,
    **request: Any,
) -> list[dict[str, Any]]:
    """The closed loop at each number of clients."""
    measured = []
    for clients in clients_each or options.clients:
        tell(f"{what}, {clients} clients")
        before = server.cpu_seconds()
        stages = server.stats() if isinstance(server, RunningServer) else None
        load = partial(
            closed_loop,
            HOST,
            server.port,
            texts,
            clients=clients,
            seconds=options.seconds,
            **request,
        )
        result = in_own_process(load, options.seconds + 120)
        measured.append(figures(result, clients, server.cpu_seconds() - before))
        if stages is not None:
            measured[-1]["stages_ms"] = stages_ms(Look.of(stages), Look.of(server.stats()))
    return measured


def figures(result: LoadResult, clients: int, server_cpu_s: float) -> dict[str, Any]:
    """The figures of one load; CPU time counts the warm-up's requests too, and so do its texts."""
    answered = max(1, result.sent)
    served = sum(n * count for n, count in result.num_instances.items())
    return {
        "clients": clients,
        "texts_per_s": result.texts_per_s,
        "p50_ms": result.quantile_ms(0.5),
        "p99_ms": result.quantile_ms(0.99),
        "errors": sum(count for status, count in result.statuses.items() if status != 200),
        "mean_num_instances": served / max(1, sum(result.num_instances.values())),
        "server_cpu_ms_per_text": 1000 * server_cpu_s / answered,
        "client_cpu_ms_per_text": 1000 * result.cpu_s / answered,
    }


def lone(
    server: RunningServer, texts: Sequence[str], options: argparse.Namespace
) -> dict[str, float]:
    """One client alone, and the same client asking for nothing through the same path."""
    tell("a lone client")
    ask = partial(closed_loop, HOST, server.port, clients=1, seconds=options.seconds)
    # Whether a replica is ready is asked of the replica, where there is one behind the ingress.
    nothing = in_own_process(partial(ask, texts[:1], path="/ready", method="GET"), 120)
    text = in_own_process(partial(ask, texts), 120)
    return {"p50_ms": text.quantile_ms(0.5), "no_op_p50_ms": nothing.quantile_ms(0.5)}


def measure_peer(
    name: str, model: Path, size: str, texts: Sequence[str], options: argparse.Namespace
) -> Any:
    """The closed loop on one peer; a peer that does not start is said, not hidden."""
    peer = PEERS[name]
    dtype = str(fastest_dtype([])).removeprefix("torch.")
    try:
        python = environment(peer, options.environments)
        with running(
            peer, python, model, port=free_port(), threads=available_cores(), dtype=dtype
        ) as server:
            return loads(server, f"{size}: {name}", texts, options, path=peer.path, body=peer.body)
    except PeerFailed as error:
        tell(str(error))
        return {"failed": str(error).splitlines()[0]}


def measure_bursts(
    name: str, path: Path, alone_per_s: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Half of N=1's capacity, ten times that, and half again: elastic, and N=1 pinned."""
    spec = Family.load(path, []).spec
    quality = {m.num_instances: m.quality.value for m in spec.members if m.quality}
    shape = Burst(
        shape="burst",
        rate_per_s=0.5 * alone_per_s,
        factor=10.0,
        steady_s=options.burst_seconds / 2,
        burst_s=options.burst_seconds,
    )
    result: dict[str, Any] = {
        "target_ms": options.target_ms,
        "shape": {
            "steady_per_s": shape.rate_per_s,
            **shape.model_dump(include={"factor", "steady_s", "burst_s"}),
        },
    }
    for key, pinned in (("elastic", None), ("fixed1", 1)):
        settings = [
            *options.settings,
            f"replicas.num_cpus={available_cores()}",
            f"engine.latency_target_ms={options.target_ms}",
            # As long as a client would wait, so that what is late is told so.
            "limits.request_timeout_s=30",
        ]
        if pinned is not None:
            settings.append(f"engine.num_instances={pinned}")
        tell(f"{name}: burst, {key}")
        with running_muxserve(path, settings, proxy=options.proxy) as server:
            result[key] = measure_burst(server, shape, quality)
    return result


def at(measured: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    """The figures at a number of clients."""
    return next(one for one in measured if one["clients"] == clients)


def save(report: dict[str, Any], file: Path | None) -> None:
    """Write the report, whole or not at all."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(file)


if __name__ == "__main__":
    main()
