"""Documents against schemas: Kubernetes' own kinds, and those of the CRDs made strict.

Unknown fields are errors here, as with ``kubectl apply --validate=strict``.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.kubernetes.pods import as_document, pods_of
from tests.kubernetes.rendering import ROOT, Doc, title

#: The oldest and the newest Kubernetes that the manifests are for.
VERSIONS = ("1.32", "1.37")
CRDS = Path(os.environ.get("MUXSERVE_CRDS", ROOT.parent / "shared" / "crds"))
#: Files of kinds that Kubernetes does not bring; by apiVersion and kind.
FILES = {
    ("ray.io/v1", "RayService"): "ray.io_rayservices.yaml",
    ("monitoring.coreos.com/v1", "PodMonitor"): "monitoring.coreos.com_podmonitors.yaml",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "monitoring.coreos.com_servicemonitors.yaml",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "monitoring.coreos.com_prometheusrules.yaml",
}


def core_kinds(docs: list[Doc]) -> list[str]:
    """Kubernetes' own kinds, and the pods of a RayService, at each version."""
    own = [(title(doc), doc) for doc in docs if not _is_custom(doc)]
    own += [(f"{pod.owner}: {pod.path}", as_document(pod)) for pod in pods_of(docs) if pod.ray]
    return [
        f"{name}: {problem} (Kubernetes {version})"
        for version in VERSIONS
        for name, doc in own
        for problem in _core_problems(doc, version)
    ]


def _core_problems(doc: Doc, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(doc, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{_dotted(error.path)}: {error.message}"


def custom_kinds(docs: list[Doc]) -> list[str]:
    """Kinds of CRDs: fields, types, enums, what is required, and keys that must not repeat."""
    problems = []
    for doc in docs:
        if not _is_custom(doc):
            continue
        kind = (doc["apiVersion"], doc["kind"])
        if kind not in FILES:
            problems.append(f"{title(doc)}: apiVersion: no CRD is known for {kind}")
            continue
        validator, schema = _custom(FILES[kind], doc["apiVersion"].partition("/")[2], CRDS)
        problems += [
            f"{title(doc)}: {_dotted(error.absolute_path)}: {error.message}"
            for error in validator.iter_errors(doc)
        ]
        problems += [f"{title(doc)}: {problem}" for problem in _repeated(schema, doc, "")]
    return problems


def _is_custom(doc: Doc) -> bool:
    group, slash, _ = doc["apiVersion"].partition("/")
    return bool(slash) and "." in group and not group.endswith("k8s.io")


@functools.cache
def _custom(name: str, version: str, folder: Path) -> tuple[Any, Doc]:
    file = folder / name
    if not file.is_file():
        pytest.fail(
            f"{file} is missing: the checks of manifests need the CRDs of KubeRay and "
            "prometheus-operator; point MUXSERVE_CRDS at a folder with them"
        )
    crd = yaml.load(file.read_text(), yaml.CSafeLoader)
    (schema,) = (
        one["schema"]["openAPIV3Schema"]
        for one in crd["spec"]["versions"]
        if one["name"] == version
    )
    strict(schema)
    return jsonschema.Draft202012Validator(schema), schema


def strict(schema: Any) -> None:
    """Make a CRD's schema refuse what a strict API server would; in place."""
    if isinstance(schema, list):
        for one in schema:
            strict(one)
        return
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if isinstance(properties, dict):
        if "additionalProperties" not in schema and not schema.get(
            "x-kubernetes-preserve-unknown-fields"
        ):
            schema["additionalProperties"] = False
        if isinstance(schema.get("required"), list):
            # Defaults are filled in before the API server looks.
            schema["required"] = [
                name for name in schema["required"] if "default" not in properties.get(name, {})
            ]
        for one in properties.values():
            strict(one)
    if schema.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    # Not anyOf and the like: in a CRD these only narrow, and must not close the object again.
    strict(schema.get("items"))
    strict(schema.get("additionalProperties"))


def _repeated(schema: Doc, value: Any, path: str) -> Iterator[str]:
    """Lists that are maps or sets, with a key twice."""
    if isinstance(value, dict):
        for name, one in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                yield from _repeated(inner, one, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        kind = schema.get("x-kubernetes-list-type")
        keys = schema.get("x-kubernetes-list-map-keys", [])
        items = schema.get("items", {})
        defaults = {key: items.get("properties", {}).get(key, {}).get("default") for key in keys}
        seen = []
        for index, one in enumerate(value):
            if kind in {"map", "set"}:
                key = [one.get(name, defaults[name]) for name in keys] if kind == "map" else one
                if key in seen:
                    yield f"{path}[{index}]: {key} stands there twice"
                seen.append(key)
            yield from _repeated(items, one, f"{path}[{index}]")


def _dotted(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "the document"
