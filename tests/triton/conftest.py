"""Exported repositories of the tiny families, and a real Triton server that serves them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxserve.loadtest.servers.triton import ENVIRONMENT, TritonServer
from muxserve.triton.repository import Exported, export
from muxserve.triton.settings import ExportSettings

#: Short, because every model of every server measures forward times when it loads.
WARM_UP_S = 0.2
#: Texts in a line so short that many clients overflow it.
SHORT_LINE = 4


@pytest.fixture(scope="session")
def exported(tiny_family, tmp_path_factory) -> Exported:
    """The family that labels texts, for the Python backend, with a text front; do not change it."""
    folder = tmp_path_factory.mktemp("export") / "texts"
    settings = ExportSettings(text=True, warm_up_s=WARM_UP_S, threads=1)
    return export(tiny_family, folder, settings)


@pytest.fixture(scope="session")
def exported_tokens(tiny_token_family, tmp_path_factory) -> Exported:
    """The family that labels words, at two N, with a text front; do not change it."""
    folder = tmp_path_factory.mktemp("export") / "words"
    settings = ExportSettings(num_instances=[1, 5], text=True, warm_up_s=WARM_UP_S, threads=1)
    return export(tiny_token_family, folder, settings)


@pytest.fixture(scope="session")
def exported_graphs(tiny_family, tmp_path_factory) -> Exported:
    """The family that labels texts, for Triton's own ONNX Runtime backend; do not change it."""
    folder = tmp_path_factory.mktemp("export") / "graphs"
    settings = ExportSettings(num_instances=[1, 5], backend="onnxruntime", text=True)
    return export(tiny_family, folder, settings)


@pytest.fixture(scope="session")
def repository(exported, exported_tokens, tmp_path_factory) -> Path:
    """Both families in one repository, as a team would have it, and a model with a short line."""
    folder = tmp_path_factory.mktemp("models")
    for one in (exported, exported_tokens):
        for model in one.models:
            shutil.copytree(one.folder / model.name, folder / model.name)
    shutil.copytree(exported.folder / "tiny_n1", folder / "short_line")
    config = folder / "short_line" / "config.pbtxt"
    text = config.read_text().replace('name: "tiny_n1"', 'name: "short_line"')
    config.write_text(text.replace('"512"', f'"{SHORT_LINE}"'))
    return folder


@pytest.fixture(scope="session")
def triton_environment() -> Path:
    """The environment that `make triton-server` creates."""
    if not (ENVIRONMENT / ".installed").exists():
        message = "no Triton server; make triton-server installs one"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return ENVIRONMENT


@pytest.fixture(scope="session")
def server(triton_environment, repository) -> Iterator[TritonServer]:
    """A real Triton server with every model ready."""
    with TritonServer(repository, environment=triton_environment) as running:
        yield running
