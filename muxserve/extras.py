"""The check for optional packages: one line names what is missing, before anything is loaded."""

from importlib.util import find_spec

from muxserve.errors import InvalidInput


def require(what: str, extra: str, *packages: str, field: str | None = None) -> None:
    """Raise InvalidInput if a package of an extra is not installed.

    Args:
        what: what needs it, as the user knows it.
        extra: name of the extra in ``pyproject.toml``.
        packages: their names in import statements.
        field: the setting that asked for it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InvalidInput(
            f"{what} needs {', '.join(missing)}: pip install 'muxserve[{extra}]'", field=field
        )
