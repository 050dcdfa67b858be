"""What needs an optional part in, one line that names it out, before anything else is loaded."""

from importlib.util import find_spec

from muxserve.errors import InvalidInput


def require(what: str, extra: str, *packages: str, field: str | None = None) -> None:
    """Raise InvalidInput where a package of an extra is not installed.

    Args:
        what: needs it, as the user knows it.
        extra: of ``pyproject.toml``.
        packages: names as they are imported.
        field: the setting that asked for it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InvalidInput(
            f"{what} needs {', '.join(missing)}: pip install 'muxserve[{extra}]'", field=field
        )
