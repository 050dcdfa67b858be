"""A part that is not installed is one line that names it, before anything is loaded or started."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Python's own finder knows no such package, as where it is not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder
missing, find = sys.argv[1], PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.split(".")[0] == missing else find(name, *more)
)
sys.argv = ["muxserve", *sys.argv[2:]]
from muxserve.cli import main
main()
"""
STAGE = ["train", "finetune", "--start", "nowhere", "--data", "no.csv", "--out", "none"]


def muxserve(package: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command where this package is not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("openvino", "openvino", ["serve", "engine.runtime=openvino"]),
        ("tritonclient", "triton", ["serve", "backend=triton", "triton.url=127.0.0.1:1"]),
        ("tritonclient", "triton", ["serve", "ingress.grpc_port=1"]),
        ("tritonclient", "triton", ["export", "triton", "sentiment", "none"]),
        ("onnx", "triton", ["export", "triton", "sentiment", "none"]),
        ("onnxscript", "triton", ["export", "triton", "sentiment", "none"]),
        ("locust", "loadtest", ["loadtest", "loadtests/scenarios/gain.yaml"]),
        ("accelerate", "training", STAGE),
        ("datasets", "training", STAGE),
        ("datasets", "training", ["evaluate", "sentiment", "--data", "{parquet}"]),
    ],
)
def test_a_missing_extra_is_one_line(package, extra, command, tmp_path):
    parquet = tmp_path / "texts.parquet"
    parquet.write_bytes(b"")
    ended = muxserve(package, *(part.format(parquet=parquet) for part in command))
    assert ended.returncode == 2, ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert f"needs {package}: pip install 'muxserve[{extra}]'" in lines[0]


def test_what_needs_no_extra_goes_without():
    ended = muxserve("openvino", "classify", "A moving film.")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
