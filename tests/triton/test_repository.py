"""Exported repositories: every config parses, nothing is missing, and nothing needs muxserve."""

import ast
import json
import subprocess
from pathlib import Path

import pytest
from google.protobuf import text_format

from muxserve.engine import policy, slots, times
from muxserve.errors import InvalidInput
from muxserve.models import words
from muxserve.triton import repository as repository_module
from muxserve.triton.copied_modules import required_modules
from muxserve.triton.graph import check_graph
from muxserve.triton.model_config import parse_text
from muxserve.triton.repository import export
from muxserve.triton.settings import ExportSettings


def configs(folder: Path):
    found = {one.parent.name: parse_text(one.read_text()) for one in folder.glob("*/config.pbtxt")}
    assert found
    return found


@pytest.mark.parametrize("fixture", ["exported", "exported_tokens", "exported_graphs"])
def test_every_config_is_triton_s_and_every_graph_is_valid(fixture, request):
    made = request.getfixturevalue(fixture)
    found = configs(made.folder)
    assert set(found) == {one.name for one in made.models}
    for name, config in found.items():
        assert config.name == name
        assert (made.folder / name / "1").is_dir()
        for output in config.output:
            if output.label_filename:
                labels = (made.folder / name / output.label_filename).read_text().splitlines()
                assert labels == ["negative", "positive"]
        for sample in config.model_warmup:
            for key in sample.inputs:
                assert (made.folder / name / "warmup" / key).stat().st_size
    graphs = list(made.folder.glob("*/1/*.onnx"))
    assert graphs
    for graph in graphs:
        check_graph(graph)


def test_a_config_with_an_unknown_field_would_be_noticed():
    with pytest.raises(text_format.ParseError):
        parse_text('name: "x"\nmax_batch_sise: 4\n')


def test_batches_are_sized_by_n(exported):
    found = configs(exported.folder)
    for n in (2, 5):
        config = found[f"tiny_n{n}"]
        preferred = config.dynamic_batching.preferred_batch_size
        assert preferred[0] == n
        assert all(size % n == 0 for size in preferred)
        assert config.max_batch_size % n == 0
        assert config.model_warmup[0].batch_size == n
    elastic = found["tiny"]
    assert elastic.max_batch_size % 5 == 0
    assert not elastic.dynamic_batching.preferred_batch_size
    assert elastic.parameters["num_instances"].string_value == "1,2,5"
    # With any policy the batcher of Triton 24.10 sleeps now and then.
    assert not any(one.dynamic_batching.HasField("default_queue_policy") for one in found.values())


def test_the_planner_in_a_model_is_the_engine_s(exported):
    for model in ("tiny", "tiny_n5"):
        copied = exported.folder / model / "1" / "muxserve" / "engine"
        for module in (policy, slots, times):
            source = Path(module.__file__)
            assert (copied / source.name).read_bytes() == source.read_bytes()
    copied = exported.folder / "tiny_tokenizer" / "1" / "muxserve" / "models" / "words.py"
    assert copied.read_bytes() == Path(words.__file__).read_bytes()


@pytest.mark.parametrize("model", ["mux_model", "tokenizer_model", "tagger_model"])
def test_copied_modules_are_pure_and_run_on_python_3_10(model):
    root = Path(repository_module.__file__).parents[2]
    allowed = {"numpy", "onnxruntime", "tokenizers", "triton_python_backend_utils", "muxserve"}
    allowed |= {"abc", "ast", "bisect", "collections", "dataclasses", "json", "math", "pathlib"}
    allowed |= {"operator", "time", "typing"}
    for name in required_modules(f"muxserve.triton.runtime.{model}"):
        source = (root / name.replace(".", "/")).with_suffix(".py").read_text()
        for node in ast.walk(ast.parse(source, feature_version=(3, 10))):
            if isinstance(node, ast.Import):
                used = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used = {str(node.module).split(".")[0]}
            else:
                continue
            assert used <= allowed, f"{name} imports {used - allowed}"


@pytest.mark.triton
def test_a_model_runs_where_muxserve_is_not_installed(exported, triton_environment):
    """The planner of the exported folder, in the server's own Python."""
    script = """
import importlib.util, json, sys
assert importlib.util.find_spec("muxserve") is None, "muxserve is installed here"
sys.path.insert(0, sys.argv[1])
import numpy, onnxruntime
from pathlib import Path
from muxserve.triton.runtime.batches import SlotFiller, Text
from muxserve.triton.runtime.facts import Facts, Tuning
from muxserve.triton.runtime.rows import Options
folder = Path(sys.argv[1])
facts = Facts.read(folder)
sessions = {n: onnxruntime.InferenceSession(str(folder / f"n{n}.onnx")) for n in facts.widths}
forward = lambda n, ids: sessions[n].run(None, {"input_ids": ids})[0]
filler = SlotFiller(facts, Tuning(warm_up_s=0.1), forward)
filler.warm_up()
texts = [Text(numpy.array([2, 4 + i, 3]), Options()) for i in range(7)]
list(filler.answer(texts))
assert all(one.logits.shape == (2,) for one in texts)
print(json.dumps([numpy.__version__.split(".")[0], facts.widths]))
"""
    done = subprocess.run(
        [triton_environment / "bin" / "python", "-c", script, exported.folder / "tiny" / "1"],
        cwd=exported.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1", [1, 2, 5]]


def test_readme_and_requirements_stand_beside_the_models(exported, exported_graphs):
    readme = (exported.folder / "README.md").read_text()
    for model in exported.models:
        assert f"`{model.name}`" in readme
    requirements = (exported.folder / "requirements.txt").read_text()
    assert "numpy>=1.22,<2" in requirements
    assert "onnxruntime" in requirements
    assert "tokenizers" in requirements
    of_graphs = (exported_graphs.folder / "requirements.txt").read_text()
    assert "onnxruntime" not in of_graphs


def test_a_folder_with_content_is_refused(tiny_family, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InvalidInput, match="is not empty: name a new folder"):
        export(tiny_family, tmp_path)


def test_a_failed_export_leaves_nothing_behind(tiny_family, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository_module, "store_graphs", full)
    with pytest.raises(OSError, match="No space left"):
        export(tiny_family, tmp_path / "models", ExportSettings(num_instances=[1]))
    assert list(tmp_path.iterdir()) == []
