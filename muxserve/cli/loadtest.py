"""``muxserve loadtest``: a scenario in, a report out; and two reports beside each other."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from muxserve.cli.app import (
    EXIT_INTERRUPTED,
    JsonOption,
    app,
    table,
    told_in_one_line,
)
from muxserve.extras import require

if TYPE_CHECKING:
    from muxserve.loadtest.run import Progress

#: Exit codes: a threshold failed the run; a server did not start, died or answered nothing.
EXIT_THRESHOLD, EXIT_INCOMPLETE = 1, 3


class _RunByDefault(TyperGroup):
    """``muxserve loadtest FILE`` is ``muxserve loadtest run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


_loadtest = typer.Typer(cls=_RunByDefault, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_loadtest, name="loadtest")


@_loadtest.callback()
def _group() -> None:
    """Measure what multiplexing gives under load, and what it costs; with a report.

    \b
    Examples:
      muxserve loadtest loadtests/scenarios/gain.yaml
      muxserve loadtest loadtests/scenarios/gain.yaml --set engine.runtime=openvino
      muxserve loadtest loadtests/scenarios/url.yaml --url http://127.0.0.1:8000
      muxserve loadtest my.yaml --fail-if 'p99_ms > 200' --fail-if 'elastic: accuracy < 0.8'
      muxserve loadtest compare before/ after/
    """


@_loadtest.command()
@told_in_one_line()
def run(
    scenario: Annotated[Path, typer.Argument(help="YAML file; see docs/loadtests.md.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default loadtest-NAME.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Test this server instead of the scenario's servers.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Setting of every server that is started here; may be given again.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 where this holds: 'FIGURE > NUMBER'; may be given again."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with the API key of the server; it stands in no report."),
    ] = None,
    time_scale: Annotated[
        float, typer.Option(min=0.01, max=100, help="Make every load so many times as long.")
    ] = 1.0,
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Show Locust's web UI on 127.0.0.1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario: start its servers one after the other, load them, write the report.

    Exit codes: 0 measured, 1 a --fail-if holds, 2 a mistake in the scenario or the flags, 3 a
    server did not start, died, or answered nothing, 130 Ctrl-C or SIGTERM. Whatever was measured
    is in the report.

    \b
    Examples:
      muxserve loadtest loadtests/scenarios/gain.yaml
      muxserve loadtest loadtests/scenarios/burst.yaml --out burst --fail-if 'error_rate > 0'
    """
    from muxserve.loadtest.report.files import prepare_folder, write_report
    from muxserve.loadtest.report.thresholds import check, parse_threshold
    from muxserve.loadtest.scenario.overrides import at_url, lengthened, with_key
    from muxserve.loadtest.scenario.scenario import read_scenario

    thresholds = [parse_threshold(one) for one in fail_if or []]
    chosen = lengthened(read_scenario(scenario), time_scale)
    chosen = chosen.model_copy(update={"settings": [*chosen.settings, *(settings or [])]})
    if url is not None:
        chosen = at_url(chosen, url)
    require("a load test", "loadtest", "locust")
    if key_file is not None:
        chosen = with_key(chosen, key_file)
    folder = out or Path(f"loadtest-{chosen.name}")
    prepare_folder(folder)

    from muxserve.loadtest.run import Runner

    # However the test ends, nothing that was started for it may stay behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with _Display() as display:
        report = Runner(chosen, display.show, web_port).run()
    report["thresholds"] = check(report, thresholds)
    page = write_report(report, folder)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        typer.echo(_summary(report))
        typer.echo(f"report: {page}")
    failed = [one for one in report["thresholds"] if one["failed"]]
    for problem in report["problems"]:
        typer.echo(f"error: {problem}", err=True)
    for one in failed:
        typer.echo(f"error: --fail-if {one['rule']!r}: {one['where']}", err=True)
    if report["status"] == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)
    if report["status"] == "incomplete":
        raise typer.Exit(EXIT_INCOMPLETE)
    if failed:
        raise typer.Exit(EXIT_THRESHOLD)


@_loadtest.command()
@told_in_one_line()
def compare(
    a: Annotated[Path, typer.Argument(help="Report's folder, or its report.json.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    as_json: JsonOption = False,
) -> None:
    """Show two reports beside each other, with the ratio of each figure.

    \b
    Examples:
      muxserve loadtest compare loadtest-gain before/
      muxserve loadtest compare before/report.json after/report.json --json
    """
    from muxserve.loadtest.report.compare import as_rows
    from muxserve.loadtest.report.compare import compare as compare_reports
    from muxserve.loadtest.report.files import read_report

    compared = compare_reports(read_report(a), read_report(b))
    if as_json:
        typer.echo(json.dumps(compared, indent=1))
        return
    typer.echo(table(as_rows(compared)))
    for side in ("a", "b"):
        for place in compared[f"only_in_{side}"]:
            typer.echo(f"only in {side}: {place}")
    for difference in compared["differences"]:
        typer.echo(f"not the same: {difference}")


def _summary(report: dict[str, Any]) -> str:
    from muxserve.loadtest.report.page import COLUMNS

    rows: list[tuple[str, ...]] = [("server", "load", *(name for name, _ in COLUMNS))]
    for server in report["servers"]:
        for load in server["loads"]:
            shown = (show(load) for _, show in COLUMNS)
            rows.append((server["name"], load["shape"]["shape"], *shown))
    return f"{table(rows)}\n\n{report['verdict']}"


class _Display:
    """A bar on a terminal; elsewhere a line for each new step."""

    def __enter__(self) -> "_Display":
        from tqdm import tqdm

        self._bar: Any = None
        self._last = ""
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=1, bar_format="{percentage:3.0f}% |{bar:20}| {elapsed} {desc}", leave=False
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: "Progress") -> None:
        """The state of a run."""
        if self._bar is not None:
            self._bar.n = progress.done_s / progress.total_s
            self._bar.set_description_str(f"{progress.what} {progress.detail}")
        elif progress.what != self._last:
            typer.echo(f"... {progress.what}", err=True)
        self._last = progress.what
