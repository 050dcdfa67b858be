"""The command line: ``muxserve classify | serve | families | evaluate``.

Arguments in, calls of the package out. Commands import what they need themselves, so that
``--help`` answers at once; a user's mistake is one line on stderr and exit code 2.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from muxserve import __version__
from muxserve.errors import InvalidInput, MuxserveError

if TYPE_CHECKING:
    from muxserve.engine.engine import Classification
    from muxserve.training.evaluation import Measured

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
#: Texts read, answered and printed at a time: enough to fill every slot of a few batches.
CHUNK_TEXTS = 1024
#: Forward times only size the batches here, so a rough measurement does.
WARM_UP_S = 0.5
#: A bar appears only where the work takes longer than this.
BAR_DELAY_S = 2.0

app = typer.Typer(
    help="Serve MUX-PLMs: N texts in one forward pass, where N follows the load.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FamilyOption = Annotated[
    str, typer.Option("--family", help="A shipped family's name, or a folder with family.json.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point of the ``muxserve`` command."""
    app(prog_name="muxserve")


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Make a user's mistake one line and exit code 2; let Ctrl-C and ``| head`` end quietly."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; there is nobody to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None
    except (MuxserveError, ValueError, OSError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    elif hasattr(error, "errors") and callable(error.errors):  # pydantic's ValidationError
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}"
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(EXIT_MISTAKE) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"muxserve {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command()
@_told_in_one_line()
def classify(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to classify.")
    ] = None,
    family: FamilyOption = "sentiment",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read texts from a file, one per line; - is stdin."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per text, with every label.")
    ] = False,
    raw_scores: Annotated[
        bool, typer.Option("--raw-scores", help="Print logits instead of probabilities.")
    ] = False,
    num_instances: Annotated[
        int | None,
        typer.Option(min=1, help="N texts share a forward; by default the family's narrowest."),
    ] = None,
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Refuse a text over the family's length limit.")
    ] = False,
) -> None:
    """Classify texts in this process, without Ray.

    Texts come as arguments, from a file, or from stdin (one per line, UTF-8). Each output line has
    the best label, its score, the N that served it, and the text. Nobody waits here, so accuracy
    comes first: N is 1 unless a wider one is asked for.

    \b
    Examples:
      muxserve classify "A moving, beautifully shot film." "Two hours of my life, gone."
      muxserve classify --file reviews.txt --json > scored.jsonl
      cat reviews.txt | muxserve classify --num-instances 5
    """
    if texts and file:
        raise InvalidInput("give texts as arguments or with --file, not both")
    if not texts and file is None and sys.stdin.isatty():
        raise InvalidInput("no text given: pass texts as arguments, with --file, or on stdin")
    if file is not None and str(file) != "-" and not file.is_file():
        raise InvalidInput(f"{file}: no such file")

    source = iter(texts) if texts else _lines(file)
    chunk = list(islice(source, CHUNK_TEXTS))
    if not chunk:
        raise InvalidInput("no text given: the input is empty")

    from tqdm import tqdm

    from muxserve.engine.config import EngineConfig
    from muxserve.engine.engine import Engine
    from muxserve.models.family import Family, read_spec, resolve

    folder = resolve(family)
    n = num_instances or read_spec(folder).members[0].num_instances
    config = EngineConfig(num_instances=n, warm_up_s=WARM_UP_S)
    show = sys.stderr.isatty()
    total = len(texts) if texts else _count_lines(file) if show else None
    with (
        Engine(Family.load(folder, [n]), config) as engine,
        tqdm(total=total, unit="text", delay=BAR_DELAY_S, disable=not show, leave=False) as bar,
    ):
        render = _as_json if as_json else _as_line
        while chunk:
            answers = engine.classify(chunk, truncate=not no_truncate, raw_scores=raw_scores)
            # The bar and the answers may share one terminal.
            with tqdm.external_write_mode() if show else nullcontext():
                for text, answer in zip(chunk, answers, strict=True):
                    typer.echo(render(text, answer))
            bar.update(len(chunk))
            chunk = list(islice(source, CHUNK_TEXTS))


def _lines(file: Path | None) -> Iterator[str]:
    """Texts of a file or stdin, one per line; blank lines may stand only at the end."""
    name = "stdin" if file is None or str(file) == "-" else str(file)
    blank: int | None = None
    with nullcontext(sys.stdin.buffer) if name == "stdin" else open(name, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise InvalidInput(f"{name}, line {number}: not UTF-8") from None
            if not line.strip():
                blank = blank or number
                continue
            if blank is not None:
                raise InvalidInput(f"{name}, line {blank}: the line is blank")
            yield line


def _count_lines(file: Path | None) -> int | None:
    """Lines of a regular file, for a bar that has an end; None for a stream."""
    if file is None or not file.is_file():
        return None
    with file.open("rb") as stream:
        return sum(1 for _ in stream)


def _as_json(text: str, answer: "Classification") -> str:
    labels = [{"label": one.label, "score": one.score} for one in answer.labels]
    return json.dumps(
        {
            "text": text,
            "labels": labels,
            "num_instances": answer.num_instances,
            "truncated": answer.truncated,
        },
        ensure_ascii=False,
    )


def _as_line(text: str, answer: "Classification") -> str:
    best = max(answer.labels, key=lambda one: one.score)
    cut = "  (truncated)" if answer.truncated else ""
    shown = " ".join(text.split())
    return f"{best.label:<10}  {best.score:>7.4f}  N={answer.num_instances:<2}  {shown}{cut}"


@app.command()
@_told_in_one_line()
def serve(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any setting of the app, as in `serve run`."),
    ] = None,
    family: FamilyOption = "sentiment",
    port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
) -> None:
    """Serve a family over HTTP with Ray Serve, until Ctrl-C or SIGTERM.

    \b
    Examples:
      muxserve serve
      muxserve serve --family ./my-family --port 9000
      muxserve serve --host 0.0.0.0 engine.latency_target_ms=20
    """
    try:
        from muxserve.serving.app import build_app
        from muxserve.serving.config import ServeConfig
        from muxserve.serving.local import check_port_is_free, serve_until_stopped
    except ModuleNotFoundError as error:
        raise InvalidInput(f"serving needs Ray ({error}): pip install 'ray[serve]'") from None

    check_port_is_free(host, port)
    values = dict(_key_value(setting) for setting in settings or [])
    built = build_app(ServeConfig.model_validate({"family": family, **values}))
    typer.echo(f"starting {family} on http://{host}:{port} ...", err=True)
    serve_until_stopped(built, host, port, lambda: typer.echo(_how_to_ask(host, port)))
    typer.echo("stopped", err=True)


def _key_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not key or not equals:
        raise InvalidInput(f"settings are given as key=value, got {setting!r}")
    return key, value


def _how_to_ask(host: str, port: int) -> str:
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    return (
        f"ready on {url} (docs: {url}/docs; Ctrl-C stops)\n"
        f"  curl -s {url}/predict -H 'content-type: application/json' \\\n"
        f'    -d \'{{"inputs": "A moving, beautifully shot film."}}\''
    )


@app.command()
@_told_in_one_line()
def families(as_json: JsonOption = False) -> None:
    """List the families that the package ships, with their measured quality.

    \b
    Examples:
      muxserve families
      muxserve families --json
    """
    from muxserve.models.family import read_spec, resolve, shipped_families

    specs = [read_spec(resolve(name)) for name in shipped_families()]
    if as_json:
        typer.echo(json.dumps([spec.model_dump(mode="json") for spec in specs], indent=2))
        return
    for spec in specs:
        typer.echo(f"{spec.name}: {spec.task}, {' | '.join(spec.labels)}, {spec.max_length} tokens")
        rows = [("N", "quality", "flip rate", "measured on")]
        for member in spec.members:
            quality = member.quality
            rows.append(
                (
                    str(member.num_instances),
                    _quality(quality.metric, quality.value, quality.std) if quality else "-",
                    "-" if member.flip_rate is None else f"{member.flip_rate:.1%}",
                    f"{quality.dataset} ({quality.examples:,})" if quality else "-",
                )
            )
        typer.echo(_table(rows))


@app.command()
@_told_in_one_line()
def evaluate(
    family: Annotated[str, typer.Argument(help="A shipped family's name, or a folder.")],
    data: Annotated[Path, typer.Option(help="CSV (with a header) or JSONL of labelled texts.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label names.")] = "label",
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set; by default the file's name.")
    ] = None,
    groupings: Annotated[
        int, typer.Option(min=2, help="Random groupings that each N is measured over.")
    ] = 5,
    write: Annotated[
        bool, typer.Option("--write", help="Store the figures in the family's family.json.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a family's quality and flip rate at each N on labelled texts.

    \b
    Examples:
      muxserve evaluate sentiment --data reviews.csv
      muxserve evaluate ./my-family --data test.jsonl --label-column stars --write
    """
    from muxserve.models.family import Family, read_spec, resolve, write_spec
    from muxserve.training.data import read_labelled
    from muxserve.training.evaluation import evaluate_family

    folder = resolve(family)
    texts = read_labelled(
        data, read_spec(folder).labels, text_column=text_column, label_column=label_column
    )
    loaded = Family.load(folder)
    measured = evaluate_family(
        loaded, texts, dataset or data.name, groupings=groupings, progress=sys.stderr.isatty()
    )
    if as_json:
        typer.echo(json.dumps([_measured_as_dict(one) for one in measured], indent=2))
    else:
        rows = [("N", "quality", "flip rate")]
        rows += [
            (
                str(one.num_instances),
                _quality(one.quality.metric, one.quality.value, one.quality.std),
                f"{one.flip_rate:.1%}",
            )
            for one in measured
        ]
        typer.echo(_table(rows))
    if write:
        by_n = {one.num_instances: one for one in measured}
        for member in loaded.spec.members:
            if member.num_instances in by_n:
                member.quality = by_n[member.num_instances].quality
                member.flip_rate = by_n[member.num_instances].flip_rate
        write_spec(folder, loaded.spec)
        typer.echo(f"written to {folder / 'family.json'}", err=True)


def _measured_as_dict(one: "Measured") -> dict[str, Any]:
    return {
        "num_instances": one.num_instances,
        "quality": one.quality.model_dump(mode="json"),
        "flip_rate": one.flip_rate,
    }


def _quality(metric: str, value: float, std: float) -> str:
    return f"{metric} {value:.4f} ± {std:.4f}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as columns aligned to the left, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    main()
