"""What is loaded is data: no code of a checkpoint runs, and nobody is asked whether to."""

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "muxserve").rglob("*.py"))


def loads(tree: ast.AST):
    """Calls of ``transformers`` that would run code from a folder where they are allowed to."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if name == "from_pretrained" or (
            isinstance(node.func, ast.Name) and node.func.id == "pipeline"
        ):
            yield node


def test_every_load_refuses_code():
    found = 0
    for module in MODULES:
        for call in loads(ast.parse(module.read_text(encoding="utf-8"))):
            found += 1
            trusts = [one.value for one in call.keywords if one.arg == "trust_remote_code"]
            said = [one.value for one in trusts if isinstance(one, ast.Constant)]
            assert said == [False], f"{module}:{call.lineno}: trust_remote_code=False is missing"
    assert found >= 6


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint's folder whose code would leave a file behind, and that file."""
    folder, sprung = tmp_path / "trap", tmp_path / "sprung"
    folder.mkdir()
    code = f"open({str(sprung)!r}, 'w').close()\n"
    for name in ("configuration_trap", "modeling_trap", "tokenization_trap"):
        (folder / f"{name}.py").write_text(code)
    config = {
        "model_type": "trap",
        "architectures": ["TrapForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "configuration_trap.TrapConfig",
            "AutoModel": "modeling_trap.TrapModel",
            "AutoModelForSequenceClassification": "modeling_trap.TrapModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_trap.Trap", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    member = {"num_instances": 1, "path": "."}
    family = {
        "name": "trap",
        "task": "sequence-classification",
        "labels": ["a", "b"],
        "max_length": 8,
        "members": [member],
    }
    (folder / "family.json").write_text(json.dumps(family))
    (folder / "texts.txt").write_text("a text\nanother\n")
    return folder, sprung


@pytest.mark.parametrize(
    "command",
    [
        "classify --family {folder} text",
        "serve --family {folder} --port 1",
        "convert {folder} {folder}-out",
        "train distill {folder} {folder}/texts.txt {folder}-out",
        "train finetune {folder} {folder}/texts.txt {folder}-out",
    ],
)
def test_code_in_a_checkpoints_folder_never_runs_at_a_terminal(trap, command):
    folder, sprung = trap
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "muxserve", *command.format(folder=folder).split()],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not sprung.exists()
