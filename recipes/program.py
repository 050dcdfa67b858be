"""What the programs of this package share: how a run is logged, and how a mistake is told."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from muxserve.errors import MuxserveError, one_line

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def run(command: Callable[..., Any]) -> None:
    """Run a command of flags; a user's mistake is one line on stderr and exit code 2."""
    try:
        typer.run(command)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except (MuxserveError, ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"error: {one_line(error)}", err=True)
        sys.exit(EXIT_MISTAKE)


@contextmanager
def logged_plainly() -> Iterator[None]:
    """Our lines with the time, above a bar; of the libraries, only what went wrong."""
    from tqdm.contrib.logging import logging_redirect_tqdm
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for library in ("httpx", "huggingface_hub", "accelerate", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with logging_redirect_tqdm():
        yield
