"""``muxserve export triton`` as a user types it."""

import json

import pytest

from muxserve.triton.model_config import parse_text
from tests.conftest import program


def test_a_family_is_exported(tiny_family, tmp_path):
    done = program(
        f"muxserve export triton {tiny_family} models --num-instances 5 --instances 2 --json",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "repository": "models",
        "models": [{"name": "tiny_n5", "kind": "member", "num_instances": [5]}],
    }
    assert done.stderr == ""
    config = parse_text((tmp_path / "models" / "tiny_n5" / "config.pbtxt").read_text())
    assert config.instance_group[0].count == 2
    assert [one.name for one in tmp_path.iterdir()] == ["models"]
    # Exporting into the same folder again is an error of one line.
    again = program(f"muxserve export triton {tiny_family} models", tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("error: models is not empty: name a new folder")
    assert len(again.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nothing models", "no family 'nothing'"),
        ("sentiment models --num-instances 3", "no member with num_instances 3"),
        ("sentiment models --threads -1", "threads: Input should be greater than or equal to 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, tmp_path):
    done = program(f"muxserve export triton {arguments}", tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_has_examples(tmp_path):
    done = program("muxserve export triton --help", tmp_path)
    assert done.returncode == 0
    assert "muxserve export triton sentiment models/" in done.stdout
    assert "--max-waiting-texts" in done.stdout
