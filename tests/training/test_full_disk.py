"""Where the disk is full: one line that names the file, and nothing half-written.

A limit on the size of a file stands for the disk: what fails is the same call, in the same place.
"""

import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from muxserve.models.family import read_spec
from muxserve.training.curves import Curves
from muxserve.training.distil.distillation import distill_family
from muxserve.training.distil.family import save_family
from muxserve.training.evaluation.stated import store_measured
from muxserve.training.stages.run import run_stage
from muxserve.training.stages.trainer import StageTrainer
from muxserve.training.work_folder import built_whole, claimed
from tests.conftest import tiny_tokenizer
from tests.training import test_stages as stages
from tests.training import test_your_own_family as own
from tests.training.test_distillation import learner
from tests.training.test_stages import folder
from tests.training.test_your_own_family import teacher, texts

__all__ = ["folder", "teacher", "texts"]


@contextmanager
def room_for(most_bytes: int) -> Iterator[None]:
    """No file may grow over this."""
    sys.stderr.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left(root) -> set[str]:
    """Files that are not whole, of a run and of its result."""
    return {path.name for path in root.rglob("*") if "tmp" in path.name or path.name[0] == "."}


def test_a_work_folder_on_a_full_disk_is_named(tmp_path):
    with (
        room_for(0),
        pytest.raises(OSError, match=r"recipe\.json: could not be written: File too large"),
        claimed(tmp_path / "work", {"seed": 1}),
    ):
        pass
    assert not left(tmp_path)
    with (
        room_for(0),
        pytest.raises(OSError, match=r"events\.\S+: could not be written: File too large"),
        Curves(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("most_bytes", "names"),
    [(4000, r"soft_labels-000000000\.safetensors"), (100_000, r"distil\.pt")],
)
def test_a_state_that_does_not_fit_is_named(teacher, texts, most_bytes, names):
    made = own.recipe(teacher, texts)
    with room_for(most_bytes), pytest.raises(OSError, match=rf"{names}: could not be written"):
        distill_family(made)
    assert not made.out.exists()
    assert not left(made.work_folder)
    distill_family(made)


@pytest.mark.parametrize("most_bytes", [100, 3000, 20_000])
def test_a_family_that_does_not_fit_is_named_and_nothing_is_left(tmp_path, most_bytes):
    with (
        room_for(most_bytes),
        pytest.raises(OSError, match="family: could not be written"),
        built_whole(tmp_path / "family") as building,
    ):
        save_family(learner(), tiny_tokenizer(), building, name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_does_not_fit_is_named_and_goes_on_later(folder, tmp_path, monkeypatch):
    made = stages.recipe(folder, "finetune", folder / "bert", tmp_path / "out", num_instances=2)
    with (
        room_for(60_000),
        pytest.raises(OSError, match=r"trainer: could not be written.*the same command goes on"),
    ):
        run_stage(made)
    assert not list((made.work_folder / "trainer").glob("checkpoint-*"))
    measured = run_stage(made)
    shutil.rmtree(made.out)
    with monkeypatch.context() as patch:
        # All is trained; only the result is to be written.
        patch.setattr(StageTrainer, "_save_checkpoint", lambda *_: None)
        with room_for(60_000), pytest.raises(OSError, match="out: could not be written"):
            run_stage(made)
    assert not made.out.exists()
    assert not left(tmp_path)
    assert run_stage(made) == measured


def test_figures_that_do_not_fit_leave_the_old_ones(tmp_path, tiny_family):
    shutil.copy(tiny_family / "family.json", tmp_path)
    spec = read_spec(tmp_path)
    before = (tmp_path / "family.json").read_text()
    with room_for(100), pytest.raises(OSError, match=r"family\.json: could not be written: File"):
        store_measured(spec, [], tmp_path)
    assert (tmp_path / "family.json").read_text() == before
    assert not left(tmp_path)
