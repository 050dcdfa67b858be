"""Changes of rendered documents, of which a rule must tell: by object and field."""

import re
from collections.abc import Callable
from typing import Any

import yaml

from tests.kubernetes.pods import ray_groups
from tests.kubernetes.rendering import Doc, find, render
from tests.kubernetes.rules import RULES

CLUSTER = "spec.rayClusterConfig"
HEAD = f"{CLUSTER}.headGroupSpec.template.spec"
WORKERS = f"{CLUSTER}.workerGroupSpecs[0]"
POD = f"{WORKERS}.template.spec"
CONTAINER = f"{POD}.containers[0]"
GONE = object()
Change = Callable[[list[Doc]], None]


#: (rule, overlay, what is changed, what is told: the object and the field)
Mutation = tuple[str, str, Change, list[str]]


def put(path: str, value: Any, kind: str = "RayService", name: str = "muxserve") -> Change:
    """Set a field; GONE takes it away, and a path that ends in [+] adds to a list."""

    def change(docs: list[Doc]) -> None:
        target: Any = find(docs, kind, name)
        *way, last = re.findall(r"[^.\[\]]+", path)
        for part in way:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if last == "+":
            target.append(value)
        elif value is GONE:
            del target[int(last) if isinstance(target, list) else last]
        else:
            target[int(last) if isinstance(target, list) else last] = value

    return change


def served(path: str, value: Any) -> Change:
    """Set a field inside serveConfigV2."""

    def change(docs: list[Doc]) -> None:
        service = find(docs, "RayService", "muxserve")
        content = yaml.safe_load(service["spec"]["serveConfigV2"])
        target = content
        *way, last = re.findall(r"[^.\[\]]+", path)
        for part in way:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[last] = value
        service["spec"]["serveConfigV2"] = yaml.safe_dump(content)

    return change


def unlabelled(kind: str) -> Change:
    """Take the RayService's name away from the labels of the pods of one kind, head or worker."""

    def change(docs: list[Doc]) -> None:
        for of, _, group in ray_groups(find(docs, "RayService", "muxserve")):
            if of == kind:
                del group["template"]["metadata"]["labels"]["ray.io/originated-from-cr-name"]

    return change


def renamed(old: str, new: str) -> Change:
    """Rename a field of the RayService's spec."""

    def change(docs: list[Doc]) -> None:
        spec = find(docs, "RayService", "muxserve")["spec"]
        spec[new] = spec.pop(old)

    return change


def assert_told(rule: str, overlay: str, change: Change, told: list[str]) -> None:
    """The rule is kept before the change, and after it tells of it."""
    docs = render(overlay)
    assert not RULES[rule](docs)
    change(docs)
    problems = RULES[rule](docs)
    assert any(all(part in problem for part in told) for problem in problems), problems


def names(mutations: list[Mutation]) -> list[str]:
    return [f"{index}-{one[0]}" for index, one in enumerate(mutations)]
