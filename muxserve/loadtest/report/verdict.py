"""One sentence (or two) that says what multiplexing gave, and what it cost."""

from collections.abc import Mapping
from typing import Any


def main_load(server: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The load that stands for a server.

    The 'saturate' with the most clients, or a search, or else the last one.
    """
    loads: list[Mapping[str, Any]] = server["loads"]
    rated = [one for one in loads if rate_of(one) is not None]
    if rated:
        return max(rated, key=lambda one: one["shape"].get("clients", 0))
    return loads[-1] if loads else None


def asked(load: Mapping[str, Any]) -> Mapping[str, Any]:
    """The shape as the scenario has it, where a rate may be a share of another."""
    shape: Mapping[str, Any] = load.get("asked", load["shape"])
    return shape


def rate_of(load: Mapping[str, Any]) -> float | None:
    """Texts per second that a server reached under a load that looks for that.

    Of a search those of its best step. None of any other load: it gets what it was offered.
    """
    if "highest_rate_per_s" in load:
        return float(load["texts_per_s"]) if load["highest_rate_per_s"] else 0.0
    return float(load["texts_per_s"]) if load["shape"]["shape"] == "saturate" else None


def gains(report: Mapping[str, Any]) -> dict[str, float]:
    """Throughput of every server over the first one's, where both have one of the same load."""
    loads = {server["name"]: main_load(server) for server in report["servers"]}
    first = next(iter(loads.values()), None)
    if first is None or not rate_of(first):
        return {}
    return {
        name: rate / first["texts_per_s"]
        for name, load in loads.items()
        if load is not None and (rate := rate_of(load)) is not None and asked(load) == asked(first)
    }


def price(report: Mapping[str, Any], name: str) -> str:
    """What a server's answers are worth beside the first one's: the end of a sentence."""
    servers = {server["name"]: main_load(server) for server in report["servers"]}
    first, own = servers[report["servers"][0]["name"]], servers[name]
    if first is None or own is None:
        return ""
    words = []
    if own["accuracy"] is not None and first["accuracy"] is not None:
        points = 100 * (own["accuracy"] - first["accuracy"])
        words.append(
            f"at {points:+.1f} points of accuracy under load "
            f"({100 * own['accuracy']:.1f} % against {100 * first['accuracy']:.1f} %)"
        )
    if own["agreement_with_n1"] is not None:
        words.append(f"{100 * own['agreement_with_n1']:.1f} % of its answers are those of N=1")
    if own["measured_quality"] is not None and first["measured_quality"] is not None:
        points = 100 * (own["measured_quality"] - first["measured_quality"])
        words.append(f"the family's own figures say {points:+.1f} points")
    return "".join(f"{', ' if one is words[0] else '; '}{one}" for one in words)


def _under_the_same_load(report: Mapping[str, Any], name: str) -> list[str]:
    """A server beside the first one, at each load that came at its own times to both."""
    first = report["servers"][0]
    own = next(server for server in report["servers"] if server["name"] == name)
    return [
        f"Under the same '{theirs['shape']['shape']}' of {theirs['offered_per_s']:,.0f} requests "
        f"per second {name} has {_served(ours)}; {first['name']} {_served(theirs)}."
        for theirs, ours in zip(first["loads"], own["loads"], strict=False)
        if theirs["answered"]
        and ours["answered"]
        and theirs["offered_per_s"]
        and ours["offered_per_s"]
        and abs(ours["offered_per_s"] / theirs["offered_per_s"] - 1) < _SAME_RATE
    ]


def _served(load: Mapping[str, Any]) -> str:
    words = [f"a p99 of {load['p99_ms']:,.0f} ms"]
    if load["mean_num_instances"]:
        words.append(f"a mean N of {load['mean_num_instances']:.1f}")
    if load["accuracy"] is not None:
        words.append(f"{100 * load['accuracy']:.1f} % accuracy")
    words.append(f"{sum(load['errors'].values()):,} errors")
    return ", ".join(words)


def verdict(report: Mapping[str, Any]) -> str:
    """The report in a few sentences, beginning with whatever went wrong."""
    sentences = []
    if report["status"] != "complete":
        sentences.append(f"Not a whole measurement: {'; '.join(report['problems'])}.")
    found = gains(report)
    first = report["servers"][0]["name"] if report["servers"] else ""
    others = {name: gain for name, gain in found.items() if name != first}
    if others:
        best = max(others, key=lambda name: others[name])
        cost = price(report, best)
        kind = "answers" if others[best] >= 1 else "answers only"
        sentences.append(
            f"{best} {kind} {others[best]:.2f} times as many texts per second as {first}{cost}."
        )
        elastic = [name for name in others if "elastic" in name.lower()]
        sentences += [
            f"{name} reaches {others[name]:.2f} times{price(report, name)}."
            for name in elastic
            if name != best
        ]
        sentences += [one for name in elastic for one in _under_the_same_load(report, name)]
    elif len(report["servers"]) > 1 and main_load(report["servers"][0]) is not None:
        names = [server["name"] for server in report["servers"][1:]]
        sentences += [one for name in names for one in _under_the_same_load(report, name)]
    elif report["servers"] and (load := main_load(report["servers"][0])) is not None:
        p99 = load["p99_ms"]
        sentences.append(
            f"{first} answered {load['texts_per_s']:,.1f} texts per second"
            + (f" with a p99 of {p99:,.0f} ms" if p99 is not None else "")
            + f", {sum(load['errors'].values())} of {load['requests']:,} requests failed."
        )
    late = [
        server["name"]
        for server in report["servers"]
        for load in server["loads"]
        if load["offered_per_s"] and (load["generator_late_p99_ms"] or 0) > LATE_MS
    ]
    if late:
        sentences.append(
            f"The load generator itself was late (p99 over {LATE_MS:g} ms) on "
            f"{', '.join(sorted(set(late)))}: its waits are in those "
            "latencies; give it cores of its own or more workers."
        )
    sentences += [f"{note[0].upper()}{note[1:]}." for note in report.get("notes", [])]
    return " ".join(sentences) or "Nothing was measured."


#: Poisson arrivals of the same seed differ by less; another load differs by more.
_SAME_RATE = 0.02
#: A generator that sends one request in a hundred later than this adds to what it measures.
LATE_MS = 20.0
