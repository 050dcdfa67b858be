"""What the commands share: the app, its options, and how errors are reported.

A user's mistake is one line on stderr and exit code 2.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from muxserve import __version__
from muxserve.errors import MuxserveError, one_line

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
#: A bar appears only if the work takes longer than this.
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


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Make a user's mistake one line and exit code 2; let Ctrl-C and ``| head`` end quietly."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends, and nobody is left to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None
    except (MuxserveError, ValueError, OSError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"error: {one_line(error)}", err=True)
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


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as columns aligned to the left, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
