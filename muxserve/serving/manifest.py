"""A short settings file in, Ray's own configuration of an application out.

``serve deploy`` takes that configuration, and so does ``serveConfigV2`` of a RayService in
Kubernetes. The settings are checked by the model of the application that they are for, so that a
mistake is found before anything is deployed. Nothing here starts Ray.
"""

import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray.serve.schema import ServeDeploySchema

from muxserve.errors import InvalidInput, MuxserveError, one_line
from muxserve.models.family import shipped_families
from muxserve.serving.app import checked_family
from muxserve.serving.config import ServeConfig

#: The file that a settings file becomes, in the same folder.
PATCH_FILE = "serve-config.yaml"

#: Where KubeRay's probes and Services look for Ray Serve.
KUBERNETES_PORT = 8000


class Deployment(BaseModel):
    """What a settings file says: which application, under which name, with which settings."""

    model_config = ConfigDict(extra="forbid")

    import_path: str = Field(
        pattern=r"^[\w.]+:\w+$", description="module:function, as for serve run."
    )
    application: str = Field("default", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    route_prefix: str = Field("/", pattern="^/")
    settings: dict[str, Any] = Field(default_factory=dict)


def read_deployment(file: Path) -> Deployment:
    """A settings file.

    Raises:
        InvalidInput: naming the file and the field.
        OSError: it cannot be read.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Deployment.model_validate(content)
    except UnicodeDecodeError:
        raise InvalidInput(f"{file}: not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InvalidInput(f"{file}{where}: not YAML") from None
    except ValidationError as error:
        raise InvalidInput(f"{file}: {one_line(error)}") from None


def serve_config(deployment: Deployment) -> dict[str, Any]:
    """Ray's configuration of a cluster with this one application.

    Its ``args`` hold the settings that differ from the defaults, so that a default that changes
    with a release changes here too.

    Raises:
        InvalidInput: naming the field of the settings file.
    """
    try:
        config = config_model(deployment.import_path).model_validate(deployment.settings)
    except ValidationError as error:
        told = one_line(error).removeprefix("settings: ").removeprefix("Value error, ")
        raise InvalidInput(f"settings: {told}", field="settings") from None
    if config.family in shipped_families():
        # Another family's folder exists in the cluster, where it is checked when it starts.
        try:
            checked_family(config)
        except MuxserveError as error:
            raise InvalidInput(f"settings: {error.message}", field=error.field) from None
    application: dict[str, Any] = {
        "name": deployment.application,
        "route_prefix": deployment.route_prefix,
        "import_path": deployment.import_path,
        "args": _without_empty_groups(config.model_dump(mode="json", exclude_defaults=True)),
    }
    content: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": KUBERNETES_PORT},
        "applications": [application],
    }
    ServeDeploySchema.model_validate(content)
    return content


def config_model(import_path: str) -> type[ServeConfig]:
    """The settings that an application takes: the type of its builder's parameter.

    Raises:
        InvalidInput: there is no such application, or it takes other settings.
    """
    module, _, name = import_path.partition(":")
    try:
        builder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"import_path {import_path}: {error}", field="import_path") from None
    if inspect.isfunction(builder):
        hints = get_type_hints(builder)
        hints.pop("return", None)
        for kind in hints.values():
            if inspect.isclass(kind) and issubclass(kind, ServeConfig):
                return kind
    raise InvalidInput(
        f"import_path {import_path}: expected a function that takes a ServeConfig",
        field="import_path",
    )


def rayservice_patch(content: dict[str, Any], source: str) -> str:
    """A patch for kustomize that gives a RayService this configuration, as YAML.

    Args:
        content: what ``serve_config`` made.
        source: the settings file's name, for readers of the patch.
    """
    text = yaml.safe_dump(content, sort_keys=False)
    return (
        f"# Written by `muxserve kubernetes --write` from {source}; edit that one.\n"
        "apiVersion: ray.io/v1\n"
        "kind: RayService\n"
        "metadata:\n"
        "  name: muxserve\n"
        "spec:\n"
        "  serveConfigV2: |\n"
        f"{textwrap.indent(text, '    ')}"
    )


def _without_empty_groups(values: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _without_empty_groups(value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return {name: value for name, value in nested.items() if value != {}}
