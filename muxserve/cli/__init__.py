"""The command line: ``muxserve classify | serve | plan | loadtest | families | evaluate | ...``.

Arguments in, calls of the package out. Commands import what they need themselves, so that
``--help`` answers at once.
"""

# Importing a module registers its commands, in the order of ``--help``.
from muxserve.cli import classify, serve, plan, loadtest, families, train, export, kubernetes  # noqa: F401, I001
from muxserve.cli.app import app


def main() -> None:
    """Entry point of the ``muxserve`` command."""
    app(prog_name="muxserve")
