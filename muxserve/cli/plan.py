"""``muxserve plan``: how many replicas a load needs at each N, by simulation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muxserve.cli.app import FamilyOption, JsonOption, app, table, told_in_one_line
from muxserve.errors import InvalidInput

if TYPE_CHECKING:
    from muxserve.planning.simulation import Phase
    from muxserve.planning.times_file import MachineTimes

#: More simulated texts than this take minutes.
MOST_TEXTS = 200_000
#: Texts that are generated for their lengths, where none are given.
GENERATED_TEXTS = 500


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

    from muxserve.engine.tokens import TextEncoder
    from muxserve.measure.texts import generated_texts
    from muxserve.models.family import Family
    from muxserve.planning.simulation import poisson_arrivals
    from muxserve.planning.sizing import size_each_choice
    from muxserve.planning.times_file import MachineTimes

    loaded = Family.load(family, widths=[])
    sample = _texts(texts) if texts else generated_texts(loaded.tokenizer, GENERATED_TEXTS)
    encoder = TextEncoder(loaded.tokenizer, loaded.spec.max_length)
    lengths = [len(one.ids) for one in encoder.encode(sample)]
    measured = MachineTimes.read(times) if times else _measure(family)
    if save_times is not None:
        measured.write(save_times)
    arrivals = poisson_arrivals(phases, lengths, seed)
    if not arrivals:
        raise InvalidInput("--rate: no text would arrive; raise it or make it longer", field="rate")
    sizings = size_each_choice(arrivals, measured, loaded.spec, target_ms / 1000, max_replicas)
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
                **one.summary(),
                "cost_per_hour": one.replicas * cost_per_hour,
                "cost_per_million_texts": one.replicas * cost_per_hour * seconds / 3600
                / len(arrivals) * 1e6,
            }
            for one in sizings
        ],
    }  # fmt: skip
    typer.echo(
        json.dumps(report, indent=2, allow_nan=False)
        if as_json
        else _as_text(report, bool(cost_per_hour))
    )


def parse_rate(rate: str) -> "list[Phase]":
    """Parse ``"100:30,1000:5"``, in texts per second and seconds; ``"300"`` lasts 30 seconds.

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


def _texts(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file}: not UTF-8 at byte {error.start}", field="texts") from None
    if not lines:
        raise InvalidInput(f"{file}: no text in it", field="texts")
    return lines


def _measure(family: str) -> "MachineTimes":
    from muxserve.engine.engine import Engine
    from muxserve.measure.machine import describe
    from muxserve.planning.times_file import MachineTimes

    typer.echo(f"measuring forward times of {family} here ...", err=True)
    with Engine.from_family(family) as engine:
        return MachineTimes(family, engine.in_flight, engine.times, describe())


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
