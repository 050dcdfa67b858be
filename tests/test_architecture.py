"""The arrows between packages, the size of modules, and what must run without Ray."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "muxserve"
MODULES = sorted(PACKAGE.rglob("*.py"))
#: What each package may import of muxserve, beside itself.
ALLOWED = {
    "errors": set(),
    "extras": {"errors"},
    "models": {"errors"},
    "engine": {"errors", "extras", "models"},
    "training": {"errors", "extras", "models"},
    "triton": {"errors", "extras", "models", "engine"},
    "serving": {"errors", "extras", "models", "engine", "triton"},
    "planning": {"errors", "models", "engine"},
    "measure": {"errors", "models", "engine"},
    "loadtest": {"errors", "extras", "models", "engine", "triton", "measure", "planning"},
}
#: What each room of ``serving`` may import of the others: folders, and modules that stand alone.
#: Every other module is ``core``.
SERVING = {
    "errors": set(),
    "security": set(),
    "listening": {"errors"},
    "config": {"listening", "security"},
    "access": {"errors", "security", "config"},
    "core": {"errors", "security", "config", "listening", "access"},
    "protocols": {"errors", "security", "config", "listening", "access", "core"},
    "ray": {"errors", "security", "config", "listening", "access", "core", "protocols"},
    "app": {"errors", "security", "config", "access", "ray"},
    "manifest": {"config", "app"},
}
WITHOUT_RAY = {"errors", "extras", "models", "engine", "training", "triton", "planning", "measure"}
MOST_LINES = 400


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    package = package_of(file)
    if package not in ALLOWED:
        return  # the command line and the package's own door may import everything
    used = {
        name.split(".")[1]
        for name in imports(file)
        if name.startswith("muxserve.") and name != "muxserve.__version__"
    }
    assert used <= ALLOWED[package] | {package}
    if package in WITHOUT_RAY:
        assert not any(name.split(".")[0] == "ray" for name in imports(file))


def room_of(parts: Sequence[str]) -> str:
    """The room of ``serving`` that a module is in, by its path below it."""
    return parts[0] if parts[0] in SERVING else "core"


@pytest.mark.parametrize(
    "file",
    [file for file in MODULES if package_of(file) == "serving" and file.stem != "__init__"],
    ids=lambda file: str(file.relative_to(PACKAGE / "serving")),
)
def test_imports_within_serving_go_one_way(file):
    room = room_of(file.relative_to(PACKAGE / "serving").with_suffix("").parts)
    modules = {str(one.relative_to(PACKAGE.parent).with_suffix("")) for one in MODULES}
    used = {
        room_of(name.split(".")[2:])
        for name in imports(file)
        if name.startswith("muxserve.serving.") and name.replace(".", "/") in modules
    }
    assert used <= SERVING[room] | {room}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_are_small_and_named_for_what_they_do(file):
    assert len(file.read_text().splitlines()) <= MOST_LINES
    assert file.stem not in {"utils", "helpers", "common", "misc"}


def test_models_and_engine_run_where_ray_is_not_installed(tiny_family):
    script = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, NoRay())
from muxserve import Engine
from muxserve.engine.config import EngineConfig

with Engine.from_family(sys.argv[1], EngineConfig(warm_up_s=0.1)) as engine:
    print(engine.classify(["good film"])[0].num_instances)
assert not any(name.split(".")[0] == "ray" for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_family)],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    assert done.stderr == ""
