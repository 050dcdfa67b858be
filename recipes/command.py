"""The command line of a recipe, which tells a user's mistakes as ``muxserve`` does."""

from collections.abc import Callable
from typing import Any

import typer

from muxserve.cli.app import told_in_one_line


def run(command: Callable[..., Any]) -> None:
    """Run a function as a command whose flags are its parameters."""
    typer.run(told_in_one_line()(command))
