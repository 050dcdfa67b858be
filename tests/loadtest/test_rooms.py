"""The rooms of ``muxserve/loadtest`` import one way: each only those before it."""

import pytest

from tests.test_architecture import PACKAGE, imports

ROOMS = ("scenario", "servers", "generator", "report")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_before_it(room):
    known = {f"muxserve.loadtest.{one}" for one in ROOMS[: ROOMS.index(room) + 1]}
    for file in (PACKAGE / "loadtest" / room).glob("*.py"):
        used = {
            ".".join(name.split(".")[:3])
            for name in imports(file)
            if name.startswith("muxserve.loadtest.")
        }
        assert used <= known, file.name
