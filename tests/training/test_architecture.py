"""The arrows between the rooms of training, and that the package needs no recipe."""

from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.test_architecture import MODULES, PACKAGE, imports

TRAINING = PACKAGE / "training"
FILES = [file for file in MODULES if TRAINING in file.parents and file.stem != "__init__"]
#: What each room, a folder or a module, may import of training beside itself.
ROOMS: dict[str, set[str]] = {
    "checksums": set(),
    "pretrained": set(),
    "recipe": set(),
    "run_log": set(),
    "work_folder": set(),
    "curves": {"work_folder"},
    "saving": {"pretrained"},
    "data": {"recipe"},
    "evaluation": {"checksums", "data", "work_folder"},
}
_BELOW = set(ROOMS) - {"run_log"}
ROOMS |= {"distil": _BELOW, "stages": _BELOW}


def modules_used(file: Path) -> set[str]:
    """The modules of training that one of them imports, as ``data.rows``."""
    known = {named(one) for one in FILES}
    return {name.removeprefix("muxserve.training.") for name in imports(file)} & known


def named(file: Path) -> str:
    return ".".join(file.relative_to(TRAINING).with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_rooms_import_one_way(file):
    room = named(file).split(".")[0]
    used = {name.split(".")[0] for name in modules_used(file)}
    assert used <= ROOMS[room] | {room}


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({named(file): modules_used(file) for file in FILES}).prepare()


def test_nothing_in_the_package_imports_a_recipe():
    for file in MODULES:
        assert not any(name.split(".")[0] == "recipes" for name in imports(file)), file
