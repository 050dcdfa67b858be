"""An overlay in, its documents out, as ``kubectl apply -k`` would send them."""

import copy
import functools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KUBECTL = ROOT / ".cache" / "kubectl" / "kubectl"
#: What users apply, and what they might make of it: prefixes, hashes, every component.
OVERLAYS = ["cpu", "gpu", "triton", "loadtest", "incremental"]
COMPOSED = ["everything", "hashed", "namespace", "prefixed"]

Doc = dict[str, Any]


def folder_of(overlay: str) -> Path:
    if overlay in COMPOSED:
        return Path(__file__).parent / "composed" / overlay
    return K8S / "overlays" / overlay


@functools.cache
def _rendered(folder: Path) -> list[Doc]:
    if not KUBECTL.is_file():
        pytest.fail(f"{KUBECTL} is missing: make test-kubernetes fetches it")
    done = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    # A warning of kustomize (a field that goes away) is to be mended, not to be lived with.
    assert not done.stderr, f"{folder}: {done.stderr}"
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def render(overlay: str) -> list[Doc]:
    """Documents of an overlay; the caller's own."""
    return copy.deepcopy(_rendered(folder_of(overlay)))


def title(doc: Doc) -> str:
    return f"{doc['kind']}/{doc['metadata']['name']}"


def of_kind(docs: list[Doc], *kinds: str) -> list[Doc]:
    return [doc for doc in docs if doc["kind"] in kinds]


def find(docs: list[Doc], kind: str, name: str) -> Doc:
    (found,) = (doc for doc in of_kind(docs, kind) if doc["metadata"]["name"] == name)
    return found
