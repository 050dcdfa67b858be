"""The serving benchmark as a flat summary, as tables and as a figure.

    muxserve loadtest loadtests/scenarios/serving.yaml            # about 20 minutes on 2 cores
    muxserve loadtest loadtests/scenarios/serving-base.yaml
    python benchmarks/offline.py --out offline.json
    python benchmarks/serving.py --offline offline.json \\
        --shipped loadtest-serving --base loadtest-serving-base --out serving.json

``make bench`` does all of it. Nothing is measured here: figures come from the reports of the load
tests and from the ceiling, which all have to be of one machine.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muxserve.loadtest.report.files import read_report

WIDTHS = ("1", "2", "5", "10")


def main() -> None:
    """Load tests and the ceiling in, tables out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--offline", type=Path, required=True, help="from benchmarks/offline.py")
    parser.add_argument("--shipped", type=Path, required=True, help="report of serving.yaml")
    parser.add_argument("--base", type=Path, help="report of serving-base.yaml")
    parser.add_argument("--out", type=Path, help="write the figures and their summary as JSON")
    parser.add_argument("--plot", type=Path, help="draw them (.svg, .png)")
    options = parser.parse_args()
    folders = {"shipped": options.shipped, "base": options.base}
    reports = {name: read_report(folder) for name, folder in folders.items() if folder}
    report = from_load_tests(reports, json.loads(options.offline.read_text()))
    report["summary"] = summary(report)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(report, options.plot)
    print(as_markdown(report))


def from_load_tests(
    reports: Mapping[str, Mapping[str, Any]], ceiling: Mapping[str, Any]
) -> dict[str, Any]:
    """What the load tests and the ceiling measured, in the form of results/serving.json.

    Args:
        reports: of each family's load test.
        ceiling: what ``benchmarks/offline.py`` measured.
    """
    first = next(iter(reports.values()))
    families = {
        name: {**ceiling["families"][name], **_measured(one)} for name, one in reports.items()
    }
    return {
        "machine": first["environment"],
        "clients": sorted({one["clients"] for one in families["shipped"]["ours"]["1"]}),
        "settings": first["scenario"]["settings"],
        "proxy": first["scenario"]["proxy"],
        "families": families,
    }


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """One family: each server's figures at the place that its part of the scenario gives it."""
    found: dict[str, Any] = {"ours": {}, "variants": {}, "peers": {}, "lone": {}}
    bursts: dict[str, Any] = {}
    for server in report["servers"]:
        spec, loads = server["spec"], server["loads"]
        n = spec["num_instances"]
        shapes = spec["load"] or report["scenario"]["load"]
        if spec["peer"]:
            found["peers"][spec["peer"]] = _rows(server)
        elif shapes[0]["shape"] == "burst" and loads:
            bursts["elastic" if n is None else f"fixed{n}"] = _burst(loads[0], report)
            bursts["shape"] = {
                "steady_per_s": loads[0]["shape"]["rate_per_s"],
                **{key: loads[0]["shape"][key] for key in ("factor", "steady_s", "burst_s")},
            }
            settings = dict(one.split("=", 1) for one in spec["settings"])
            bursts["target_ms"] = float(settings["engine.latency_target_ms"])
        elif shapes[0].get("clients") == 1 and loads:
            name = "no_op_p50_ms" if spec["requests"] == "ready" else "p50_ms"
            found["lone"][name] = loads[0]["p50_ms"]
        elif spec["load"]:
            found["variants"][server["name"]] = _rows(server)
        else:
            found["ours"]["elastic" if n is None else str(n)] = _rows(server)
    return {**found, **({"burst": bursts} if bursts else {})}


def _rows(server: Mapping[str, Any]) -> list[dict[str, Any]] | dict[str, str]:
    """Figures at each number of clients; a server that does not start is said, not hidden."""
    if not server["loads"]:
        return {"failed": server["failed"].strip().splitlines()[-1][:200]}
    return [
        {
            "clients": one["shape"]["clients"],
            "texts_per_s": one["texts_per_s"],
            "p50_ms": one["p50_ms"],
            "p99_ms": one["p99_ms"],
            "errors": sum(one["errors"].values()),
            "mean_num_instances": one["mean_num_instances"],
            "server_cpu_ms_per_text": one["server_cpu_s_per_1000_texts"],
            "client_cpu_ms_per_text": one["generator_cpu_s_per_1000_texts"],
            "stages_ms": one["stages_ms"],
        }
        for one in server["loads"]
    ]


def _burst(load: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    quality: Mapping[str, float] = report["measured_quality"]

    def price(served: float | None) -> float | None:
        """How far the mean quality of what served is below N=1's."""
        return quality["1"] - served if served is not None and "1" in quality else None

    return {
        "requests": load["requests"],
        "shed": sum(load["errors"].values()),
        "p50_ms": load["p50_ms"],
        "p99_ms": load["p99_ms"],
        "mean_num_instances": load["mean_num_instances"],
        "accuracy_price": price(load["measured_quality"]),
        "timeline": [
            {
                "from_s": one["at_s"],
                "texts_per_s": one["due_per_s"],
                "p50_ms": one["p50_ms"],
                "p99_ms": one["p99_ms"],
                "mean_num_instances": one["mean_num_instances"],
                "accuracy_price": price(one["measured_quality"]),
            }
            for one in load["timeline"]
        ],
        "occupancy": [
            {"at_s": one["at_s"], "occupancy": one["occupancy"]} for one in load["timeline"]
        ],
    }


def summary(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Name -> number. Loads are those with the most clients; ``.at_N_clients`` are the others.

    ``burst.`` is the shipped family's, ``base.burst.`` the other's.
    """
    flat: dict[str, float | None] = {}
    most = max(report["clients"])
    for name, family in report["families"].items():
        for clients in sorted(report["clients"], reverse=True):
            suffix = "" if clients == most else f".at_{clients}_clients"
            rates = {key: _at(loads, clients) for key, loads in family["ours"].items()}
            peers = {
                peer: _at(loads, clients)
                for peer, loads in family["peers"].items()
                if isinstance(loads, list)
            }
            best = max(peers.values(), key=lambda one: one["texts_per_s"], default=None)
            for key, one in rates.items():
                if key != "1":
                    flat[f"{name}.gain_over_n1.{key}{suffix}"] = _ratio(one, rates["1"])
                if best is not None:
                    flat[f"{name}.gain_over_best_peer.{key}{suffix}"] = _ratio(one, best)
                if key in family["offline"]:
                    flat[f"{name}.served_over_offline.{key}{suffix}"] = (
                        one["texts_per_s"] / family["offline"][key]["texts_per_s"]
                    )
            if best is not None:
                flat[f"{name}.n1_p99_over_best_peer{suffix}"] = (
                    rates["1"]["p99_ms"] / best["p99_ms"]
                )
        for n in WIDTHS[1:]:
            flat[f"{name}.offline_gain_over_n1.{n}"] = (
                family["offline"][n]["texts_per_s"] / family["offline"]["1"]["texts_per_s"]
            )
        floor = family["bare_forward_p50_ms"] + family["lone"]["no_op_p50_ms"]
        flat[f"{name}.lone_p50_over_floor"] = family["lone"]["p50_ms"] / floor
        if "burst" in family:
            prefix = "burst" if name == "shipped" else f"{name}.burst"
            for key in ("elastic", "fixed1"):
                for figure in ("p99_ms", "shed", "accuracy_price", "mean_num_instances"):
                    flat[f"{prefix}.{key}.{figure}"] = family["burst"][key][figure]
            flat[f"{prefix}.target_ms"] = family["burst"]["target_ms"]
    return flat


def as_markdown(report: Mapping[str, Any]) -> str:
    """Tables for people."""
    machine = report["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores shared by clients and server; "
        f"torch {machine['torch']}, Ray {machine['ray']}, {machine['date']}; one text per request; "
        f"`--proxy {report['proxy']}` {' '.join(report['settings'])}",
    ]
    for name, family in report["families"].items():
        for clients in report["clients"]:
            lines += ["", *_family_table(name, family, clients)]
        if family.get("variants"):
            lines += ["", *_variants_table(name, family, max(report["clients"]))]
        lines += ["", *_stages_table(name, family, max(report["clients"]))]
        lone, floor = family["lone"], family["bare_forward_p50_ms"]
        lines += [
            "",
            f"{name}, a lone client: p50 {lone['p50_ms']:.1f} ms; bare forward {floor:.1f} ms and "
            f"an empty request {lone['no_op_p50_ms']:.1f} ms.",
        ]
        if "burst" in family:
            lines += ["", *_burst_table(name, family["burst"])]
    return "\n".join(lines)


def _family_table(name: str, family: Mapping[str, Any], clients: int) -> list[str]:
    lines = [
        f"**{name}**, {family['dtype']}, {clients} clients",
        "",
        "| server | texts/s | over N=1 | of offline | p50 ms | p99 ms | errors "
        "| server CPU ms/text | clients' |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    alone = _at(family["ours"]["1"], clients)
    for key, loads in [*family["ours"].items(), *family["peers"].items()]:
        if not isinstance(loads, list):
            lines.append(f"| {key} | {loads['failed']} | | | | | | | |")
            continue
        one = _at(loads, clients)
        label = key if key in family["peers"] else f"muxserve N={key}"
        if key == "elastic":
            label = f"muxserve elastic (mean N {one['mean_num_instances']:.1f})"
        ceiling = family["offline"].get(key)
        of_offline = f"{one['texts_per_s'] / ceiling['texts_per_s']:.2f}" if ceiling else ""
        lines.append(
            f"| {label} | {one['texts_per_s']:.0f} | {_ratio(one, alone):.2f} "
            f"| {of_offline} "
            f"| {one['p50_ms']:.0f} | {one['p99_ms']:.0f} | {one['errors']} "
            f"| {one['server_cpu_ms_per_text']:.2f} | {one['client_cpu_ms_per_text']:.2f} |"
        )
    return lines


def _variants_table(name: str, family: Mapping[str, Any], clients: int) -> list[str]:
    """Other runtimes and paths, over the same N of the table above."""
    lines = [
        f"**{name}**, other ways of serving, {clients} clients",
        "",
        "| | texts/s | over the above | p50 ms | p99 ms | server CPU ms/text |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, loads in family["variants"].items():
        if not isinstance(loads, list):
            lines.append(f"| {key} | {loads['failed']} | | | | |")
            continue
        one = _at(loads, clients)
        usual = _at(family["ours"][key.rpartition("=")[2]], clients)
        lines.append(
            f"| {key} | {one['texts_per_s']:.0f} | {_ratio(one, usual):.2f} "
            f"| {one['p50_ms']:.0f} | {one['p99_ms']:.0f} | {one['server_cpu_ms_per_text']:.2f} |"
        )
    return lines


def _stages_table(name: str, family: Mapping[str, Any], clients: int) -> list[str]:
    """Where the time of a request goes."""
    loads = {
        f"N={key}" if key.isdigit() else key: _at(loads, clients)
        for key, loads in [*family["ours"].items(), *family.get("variants", {}).items()]
        if isinstance(loads, list)
    }
    stages = list(next(iter(loads.values()))["stages_ms"])
    return [
        f"**{name}**, mean ms of a request by stage, {clients} clients",
        "",
        f"| | {' | '.join(stages)} |",
        f"| --- |{' ---: |' * len(stages)}",
        *(
            f"| {key} | {' | '.join(format(one['stages_ms'][stage], '.1f') for stage in stages)} |"
            for key, one in loads.items()
        ),
    ]


def _burst_table(name: str, burst: Mapping[str, Any]) -> list[str]:
    shape = burst["shape"]
    lines = [
        f"**{name}**, a burst of {shape['factor']:g}x for {shape['burst_s']:g} s over "
        f"{shape['steady_per_s']:.0f} texts/s, target {burst['target_ms']:g} ms",
        "",
        "| | requests | refused or failed | p50 ms | p99 ms | mean N | accuracy price |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, label in (("elastic", "elastic"), ("fixed1", "N=1 pinned")):
        one = burst[key]
        price = one["accuracy_price"]
        lines.append(
            f"| {label} | {one['requests']} | {one['shed']} | {one['p50_ms']:.0f} "
            f"| {one['p99_ms']:.0f} | {one['mean_num_instances']:.1f} "
            f"| {f'{100 * price:.1f} points' if price is not None else ''} |"
        )
    return lines


def plot(report: Mapping[str, Any], file: Path) -> None:
    """Throughput of every server, and the burst over time; the file's ending says the format."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "muxserve"
    from matplotlib import pyplot

    families = report["families"]
    bursts = {name: family["burst"] for name, family in families.items() if "burst" in family}
    rows = 1 + 4 * len(bursts)
    figure, every = pyplot.subplots(rows, 1, figsize=(8, 2.6 * rows), layout="constrained")
    axes = list(every) if rows > 1 else [every]
    clients = max(report["clients"])
    _plot_rates(axes[0], families, clients)
    for index, (name, burst) in enumerate(bursts.items()):
        _plot_burst(name, axes[1 + 4 * index : 5 + 4 * index], burst)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _plot_rates(axes: Any, families: Mapping[str, Any], clients: int) -> None:
    for name, family in families.items():
        alone = _at(family["ours"]["1"], clients)["texts_per_s"]
        served = {
            key: _at(loads, clients)["texts_per_s"] / alone
            for key, loads in [*family["ours"].items(), *family["peers"].items()]
            if isinstance(loads, list)
        }
        axes.plot(list(served), list(served.values()), "o", label=f"{name}, served")
        axes.plot(
            list(family["offline"]),
            [one["texts_per_s"] / alone for one in family["offline"].values()],
            "_",
            markersize=16,
            label=f"{name}, offline",
        )
    axes.set(ylabel="texts/s over our N=1", title=f"Throughput, {clients} clients")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()


def _plot_burst(name: str, axes: Sequence[Any], burst: Mapping[str, Any]) -> None:
    for key, label in (("elastic", "elastic"), ("fixed1", "N=1 pinned")):
        timeline = burst[key]["timeline"]
        at = [one["from_s"] for one in timeline]
        axes[0].plot(at, [one["texts_per_s"] for one in timeline], label=label)
        axes[1].plot(at, [one["p99_ms"] for one in timeline], label=f"{label}, p99")
        axes[2].plot(at, [one["mean_num_instances"] for one in timeline], label=label)
        axes[3].plot(
            [one["at_s"] for one in burst[key]["occupancy"]],
            [one["occupancy"] for one in burst[key]["occupancy"]],
            label=f"{label}, occupancy",
        )
    price = [one["accuracy_price"] for one in burst["elastic"]["timeline"]]
    if any(one is not None for one in price):
        axes[3].plot(
            [one["from_s"] for one in burst["elastic"]["timeline"]],
            [None if one is None else 10 * one for one in price],
            linestyle=":",
            label="elastic, accuracy price x 10",
        )
    axes[1].axhline(burst["target_ms"], linestyle=":", color="grey", label="target")
    axes[1].set_yscale("log")
    for one, label in zip(axes, ("arrivals per s", "latency, ms", "mean N", "share"), strict=True):
        one.set(ylabel=label)
        one.grid(alpha=0.3)
        one.legend()
    axes[0].set(title=f"{name}, a burst")
    axes[-1].set(xlabel="seconds")


def _at(loads: Sequence[Mapping[str, Any]], clients: int) -> Mapping[str, Any]:
    return next(one for one in loads if one["clients"] == clients)


def _ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return float(one["texts_per_s"] / other["texts_per_s"])


if __name__ == "__main__":
    main()
