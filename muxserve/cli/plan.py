"""``muxserve plan``: how many replicas a load needs at each N, by simulation."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muxserve.cli.app import FamilyOption, JsonOption, app, table, told_in_one_line
from muxserve.errors import InvalidInput

if TYPE_CHECKING:
    from muxserve.engine.times import ForwardTimes
    from muxserve.models.family import FamilySpec
    from muxserve.planning.simulation import Phase, Simulated, SimulatedText

#: More than this many simulated texts take minutes.
MOST_TEXTS = 200_000
#: Timeline entries that are printed.
TIMELINE = 12


@dataclass(frozen=True)
class Measured:
    """Forward times of a family on some machine."""

    family: str
    in_flight: int
    times: "ForwardTimes"
    machine: dict[str, str]


@app.command()
@told_in_one_line()
def plan(
    rate: Annotated[
        str,
        typer.Option(
            help="Texts per second, or stretches of them: RATE:SECONDS,RATE:SECONDS,...",
        ),
    ],
    family: FamilyOption = "sentiment",
    target_ms: Annotated[
        float, typer.Option(min=0.1, help="99% of the texts are to be answered within this time.")
    ] = 50.0,
    texts: Annotated[
        Path | None,
        typer.Option(help="File with a text per line, for the lengths; default 5 to 60 words."),
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option(help="Forward times that --save-times wrote, of this or another machine."),
    ] = None,
    save_times: Annotated[
        Path | None, typer.Option(help="Write the forward times that are measured here.")
    ] = None,
    max_replicas: Annotated[int, typer.Option(min=1, max=256, help="Most replicas to try.")] = 32,
    cost_per_hour: Annotated[
        float, typer.Option(min=0, help="Price of one replica's machine or GPU per hour.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say how many replicas a load needs at each N, and what N would be over time.

    Simulates the engine's own policy and planner on forward times measured here or read from a
    file. It counts forwards only: the cores that HTTP and tokenizing take come on top.

    \b
    Examples:
      muxserve plan --rate 300
      muxserve plan --rate 100:30,1000:30,100:30 --target-ms 100 --cost-per-hour 1.2
      muxserve plan --rate 50 --save-times times.json
      muxserve plan --rate 5000 --times times.json --texts mine.txt --json
    """
    from muxserve.engine.tokens import TextEncoder
    from muxserve.models.family import Family
    from muxserve.planning.simulation import poisson_arrivals

    phases = parse_rate(rate)
    expected = sum(phase.rate * phase.seconds for phase in phases)
    if expected > MOST_TEXTS:
        raise InvalidInput(
            f"--rate: about {expected:,.0f} texts would be simulated, at most {MOST_TEXTS:,}; "
            "shorten the stretches",
            field="rate",
        )
    if times is not None and save_times is not None:
        raise InvalidInput("--save-times writes what is measured; leave --times out", field="times")
    loaded = Family.load(family, widths=[])
    lengths = [
        len(one.ids)
        for one in TextEncoder(loaded.tokenizer, loaded.spec.max_length).encode(
            _texts(texts) if texts else _generated(loaded.tokenizer)
        )
    ]
    measured = _read(times) if times else _measure(family)
    if save_times is not None:
        save_times.write_text(json.dumps(_dump(measured), indent=1) + "\n", encoding="utf-8")
    arrivals = poisson_arrivals(phases, lengths, seed)
    if not arrivals:
        raise InvalidInput("--rate: no text would arrive; raise it or make it longer", field="rate")
    rows = _answers(arrivals, measured, loaded.spec, target_ms / 1000, max_replicas)
    seconds = sum(phase.seconds for phase in phases)
    report = {
        "family": loaded.spec.name,
        "texts": len(arrivals),
        "mean_tokens": sum(lengths) / len(lengths),
        "target_ms": target_ms,
        "machine": measured.machine,
        "in_flight": measured.in_flight,
        "plans": [
            {
                **row.summary(),
                "cost_per_hour": row.replicas * cost_per_hour,
                "cost_per_million_texts": row.replicas * cost_per_hour * seconds / 3600
                / len(arrivals) * 1e6,
            }
            for row in rows
        ],
    }  # fmt: skip
    typer.echo(
        json.dumps(report, indent=2, allow_nan=False)
        if as_json
        else _as_text(report, bool(cost_per_hour))
    )


@dataclass(frozen=True)
class Row:
    """The fewest replicas that hold the target at one choice of N, or the most that were tried.

    ``forwards`` is how many all replicas run at once.
    """

    choice: str
    replicas: int
    forwards: int
    meets_target: bool
    simulated: "Simulated"
    quality: float | None

    def summary(self) -> dict[str, Any]:
        """The figures of this row, and N over time; a quantile that was shed is None."""
        one = self.simulated
        return {
            "num_instances": self.choice,
            "replicas": self.replicas,
            "meets_target": self.meets_target,
            "mean_num_instances": _finite(one.mean_num_instances),
            "p50_ms": _finite(1000 * one.quantile_s(0.5)),
            "p99_ms": _finite(1000 * one.quantile_s(0.99)),
            "shed": one.shed,
            "utilization": one.busy_s / one.seconds / self.forwards if one.seconds else 0.0,
            "occupancy": one.filled_slots / one.slots if one.slots else 1.0,
            "quality": self.quality,
            "timeline": _timeline(one),
        }


def _finite(value: float) -> float | None:
    """What JSON can say: infinity and NaN are no numbers there."""
    return value if math.isfinite(value) else None


def parse_rate(rate: str) -> "list[Phase]":
    """``"300"`` as 30 seconds of 300 texts per second, ``"100:30,1000:5"`` as said.

    Raises:
        InvalidInput: for anything else.
    """
    from muxserve.planning.simulation import Phase

    phases = []
    for part in rate.split(","):
        per_s, _, seconds = part.partition(":")
        try:
            phase = Phase(float(per_s), float(seconds or 30))
        except ValueError:
            phase = Phase(-1, 0)
        if not (0 <= phase.rate < float("inf") and 0 < phase.seconds < float("inf")):
            raise InvalidInput(
                f"--rate: RATE or RATE:SECONDS,RATE:SECONDS,... expected, got {part!r}",
                field="rate",
            )
        phases.append(phase)
    return phases


def _answers(
    arrivals: "Sequence[SimulatedText]",
    measured: Measured,
    spec: "FamilySpec",
    target_s: float,
    max_replicas: int,
) -> list[Row]:
    from muxserve.engine.config import EngineConfig
    from muxserve.engine.widths import allowed_widths

    known = [n for n in measured.times.widths if n in {m.num_instances for m in spec.members}]
    if not known:
        raise InvalidInput(
            f"the times are of N={measured.times.widths}, the family has other members",
            field="times",
        )
    elastic = allowed_widths(spec, known, EngineConfig())
    choices = [(str(n), [n]) for n in known]
    if len(elastic) > 1:
        choices.append(("elastic", elastic))
    return [
        _fewest(name, widths, arrivals, measured, spec, target_s, max_replicas)
        for name, widths in choices
    ]


def _fewest(
    name: str,
    widths: list[int],
    arrivals: "Sequence[SimulatedText]",
    measured: Measured,
    spec: "FamilySpec",
    target_s: float,
    max_replicas: int,
) -> Row:
    """The fewest replicas that meet the target, found by doubling and then halving the step."""
    from muxserve.planning.simulation import Replicas, simulate

    done: dict[int, Simulated] = {}

    def meets(count: int) -> bool:
        replicas = Replicas(count, widths, target_s, in_flight=measured.in_flight)
        done[count] = simulate(arrivals, measured.times, replicas)
        return done[count].shed == 0 and done[count].quantile_s(0.99) <= target_s

    high = 1
    while not meets(high) and high < max_replicas:
        high = min(2 * high, max_replicas)
    low = high // 2
    while high - low > 1 and low >= 1:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle
    simulated = done[high]
    return Row(
        name,
        high,
        high * measured.in_flight,
        simulated.shed == 0 and simulated.quantile_s(0.99) <= target_s,
        simulated,
        _quality(simulated.num_instances, spec),
    )


def _quality(num_instances: Sequence[int], spec: "FamilySpec") -> float | None:
    """Mean measured quality of the N that served; None where one was not measured."""
    of = {m.num_instances: m.quality.value for m in spec.members if m.quality is not None}
    if not num_instances or any(n not in of for n in set(num_instances)):
        return None
    return sum(of[n] for n in num_instances) / len(num_instances)


def _timeline(one: "Simulated") -> list[dict[str, float]]:
    """Arrivals per second, mean N and mean latency of equal stretches of time, by arrival."""
    if not one.arrivals_s:
        return []
    width = max(one.arrivals_s) / TIMELINE or 1.0
    stretches: list[list[int]] = [[] for _ in range(TIMELINE)]
    for index, arrival_s in enumerate(one.arrivals_s):
        stretches[min(TIMELINE - 1, int(arrival_s / width))].append(index)
    return [
        {
            "from_s": number * width,
            "texts_per_s": len(stretch) / width,
            "mean_num_instances": sum(one.num_instances[i] for i in stretch) / len(stretch),
            "mean_ms": 1000 * sum(one.latencies_s[i] for i in stretch) / len(stretch),
        }
        for number, stretch in enumerate(stretches)
        if stretch
    ]


def _as_text(report: dict[str, Any], priced: bool) -> str:
    header = ["N", "replicas", "p50 ms", "p99 ms", "mean N", "busy", "quality"]
    rows = [tuple([*header, "cost/hour", "cost/1M texts"] if priced else header)]
    for one in report["plans"]:
        row = [
            one["num_instances"],
            f"{one['replicas']}{'' if one['meets_target'] else ' (not enough)'}",
            _or_dash(one["p50_ms"], ".0f"),
            _or_dash(one["p99_ms"], ".0f"),
            _or_dash(one["mean_num_instances"], ".1f"),
            f"{one['utilization']:.0%}",
            _or_dash(one["quality"], ".1%"),
        ]
        if priced:
            row += [f"{one['cost_per_hour']:.2f}", f"{one['cost_per_million_texts']:.2f}"]
        rows.append(tuple(row))
    lines = [
        f"{report['texts']:,} texts of {report['mean_tokens']:.0f} tokens on average, 99% within "
        f"{report['target_ms']:g} ms; forward times of {report['machine'].get('processor', '?')}",
        table(rows),
    ]
    elastic = report["plans"][-1]
    if elastic["num_instances"] == "elastic":
        lines += ["", "elastic over time"]
        timeline = [("second", "texts/s", "mean N", "mean ms")]
        timeline += [
            (
                f"{one['from_s']:.0f}",
                f"{one['texts_per_s']:.0f}",
                f"{one['mean_num_instances']:.1f}",
                f"{one['mean_ms']:.0f}",
            )
            for one in elastic["timeline"]
        ]
        lines.append(table(timeline))
    return "\n".join(lines)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _texts(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file}: not UTF-8 at byte {error.start}", field="texts") from None
    if not lines:
        raise InvalidInput(f"{file}: no text in it", field="texts")
    return lines


def _generated(tokenizer: Any) -> list[str]:
    from muxserve.measure.texts import generated_texts

    return generated_texts(tokenizer, 500)


def _measure(family: str) -> Measured:
    from muxserve.engine.engine import Engine
    from muxserve.measure.machine import describe

    typer.echo(f"measuring forward times of {family} here ...", err=True)
    with Engine.from_family(family) as engine:
        return Measured(family, engine.in_flight, engine.times, describe())


def _dump(measured: Measured) -> dict[str, Any]:
    return {
        "family": measured.family,
        "machine": measured.machine,
        "in_flight": measured.in_flight,
        **measured.times.dump(),
    }


def _read(file: Path) -> Measured:
    from muxserve.engine.times import ForwardTimes

    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Measured(
            str(values["family"]),
            int(values["in_flight"]),
            ForwardTimes.load(values),
            dict(values["machine"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{file}: not what --save-times writes ({error})", field="times"
        ) from None
