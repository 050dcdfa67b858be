"""Copies the modules that an exported model needs: its own module and everything that it imports.

They are copied byte for byte, so the planner that runs in Triton is the engine's own.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
#: The ``__init__.py`` of a copied package; its own one may import modules that are not copied.
_INIT = '"""Part of muxserve, copied here so that this model needs no other installation."""\n'
_LOADER = '''"""Loaded by Triton's Python backend; the model is in {module}, beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from {module} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''


def required_modules(module: str) -> list[str]:
    """A module of muxserve and every one that it imports, directly or indirectly, sorted."""
    found: set[str] = set()
    unread = [module]
    while unread:
        name = unread.pop()
        if name not in found:
            found.add(name)
            unread += _imported(_file_of(name))
    return sorted(found)


def write_model_code(module: str, folder: Path) -> None:
    """Write ``model.py`` for a module with a ``TritonPythonModel``, and the modules it needs."""
    (folder / "model.py").write_text(_LOADER.format(module=module), encoding="utf-8")
    for name in required_modules(module):
        source = _file_of(name)
        target = folder / "muxserve" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for package in {folder / "muxserve", *(folder / "muxserve").rglob("*")}:
        if package.is_dir():
            (package / "__init__.py").write_text(_INIT, encoding="utf-8")


def _file_of(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _imported(file: Path) -> list[str]:
    """The modules of muxserve that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("muxserve.") and _file_of(name).is_file()]
