"""A scenario: which servers, which texts, which load. YAML in, a checked value out.

An error is one sentence with the file, the field, what it holds and what was expected.
"""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from muxserve.errors import InvalidInput
from muxserve.loadtest.scenario import shapes
from muxserve.loadtest.scenario.shapes import Shape

RequestKind = Literal["text", "texts", "mixed", "tokens", "ready", "oip-http", "oip-grpc", "handle"]
Proxy = Literal["none", "haproxy", "python"]
#: In place of a family's name: random weights of BERT base's size.
RANDOM_BASE = "random-base"
PeerName = Literal["infinity-emb", "litserve", "mosec", "ray-serve"]


class ScenarioError(InvalidInput):
    """A scenario file cannot be used; the message names the file and the field."""


class ServerSpec(BaseModel):
    """One server: started for the test, or one that runs already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=60, description="In tables and figures.")
    num_instances: int | None = Field(
        None, ge=1, description="Pin N; by default N follows the load."
    )
    replicas: int = Field(1, ge=1, le=64, description="Engine processes.")
    settings: list[str] = Field([], description="More settings of muxserve, as key=value.")
    peer: PeerName | None = Field(
        None, description="Another server on a plain model of the family's size."
    )
    url: str | None = Field(
        None, description="A server that runs already: http://host:port, or host:port for gRPC."
    )
    triton: Literal["alone", "behind"] | None = Field(
        None,
        description="alone: Triton with the exported family; behind: muxserve with that Triton "
        "behind it. Needs `make triton-server`.",
    )
    proxy: Proxy | None = Field(None, description="Instead of the scenario's.")
    environment: dict[str, str] = Field(
        {}, description="Environment variables of muxserve; the report shows them."
    )
    requests: RequestKind | None = Field(None, description="Instead of the scenario's.")
    load: list[Shape] = Field([], description="Instead of the scenario's.")

    @field_validator("settings")
    @classmethod
    def _key_values(cls, given: list[str]) -> list[str]:
        for one in given:
            if "=" not in one:
                raise ValueError(f"settings are given as key=value, got {one!r}")
        return given

    @field_validator("url")
    @classmethod
    def _is_url(cls, given: str | None) -> str | None:
        if given is not None:
            parts = urlsplit(given if "://" in given else f"http://{given}")
            try:
                known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:  # of a port that is none
                known = False
            if not known:
                raise ValueError(f"expected http://host:port, got {given!r}")
        return given

    @model_validator(mode="after")
    def _one_kind(self) -> "ServerSpec":
        configured = bool(self.replicas != 1 or self.settings or self.proxy or self.environment)
        own = self.num_instances is not None or configured or self.triton is not None
        if (self.peer is not None) + (self.url is not None) + own > 1:
            raise ValueError(
                "a server is either started here (num_instances, replicas, settings), "
                "a peer, or at a url"
            )
        if self.triton == "alone" and configured:
            raise ValueError("Triton alone takes no replicas, settings, proxy or environment")
        return self


class TextsSpec(BaseModel):
    """Where texts and their labels come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["opinions", "generated", "file"] = Field(
        "opinions",
        description="opinions: about films, with labels; generated: words without meaning, without "
        "labels; file: your own.",
    )
    count: int = Field(
        6000, ge=1, le=1_000_000, description="Different texts; of a file, the most that are read."
    )
    words: tuple[int, int] = Field((5, 60), description="Fewest and most words of a text.")
    file: Path | None = Field(
        None,
        description="CSV with a header, JSONL, or TXT with a text per line; from the scenario.",
    )
    text_field: str = Field("text", description="Column of the texts; or 'tokens' with word lists.")
    label_field: str | None = Field(
        None, description="Column of the labels' names; of lists of names where words are labelled."
    )

    @model_validator(mode="after")
    def _complete(self) -> "TextsSpec":
        if (self.source == "file") != (self.file is not None):
            raise ValueError("source 'file' and the field 'file' go together")
        if not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"words are [fewest, most], got {list(self.words)}")
        return self


class Scenario(BaseModel):
    """One load test."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=60, description="Of the report.")
    description: str = Field("", description="What it shows, in the report.")
    family: str = Field(
        "sentiment",
        description="A shipped family's name, or a folder; random-base: random weights of BERT "
        "base's size, for timing.",
    )
    settings: list[str] = Field(
        ["arrangement=together"], description="Settings of every server that is started here."
    )
    proxy: Proxy = Field("none", description="Of muxserve serve.")
    servers: list[ServerSpec] = Field(
        min_length=1, description="One after the other; N=1 first makes it the baseline."
    )
    requests: RequestKind = Field("text", description="What the users send.")
    texts_per_request: int = Field(16, ge=1, le=512, description="Of 'texts'.")
    model: str | None = Field(None, description="Model name of OIP; by default the family's.")
    headers: dict[str, str] = Field({}, description="More HTTP headers, such as authorization.")
    texts: TextsSpec = Field(TextsSpec(), description="What is sent.")
    load: list[Shape] = Field(min_length=1, description="One after the other, on each server.")
    workers: int = Field(0, ge=0, le=64, description="Locust workers; 0: one process without.")
    timeout_s: float = Field(30.0, gt=0, le=600, description="An answer later than this failed.")
    seed: int = Field(0, description="Of texts and arrivals.")

    @model_validator(mode="after")
    def _fits(self) -> "Scenario":
        names = [one.name for one in self.servers]
        if len(set(names)) < len(names):
            raise ValueError(f"servers need different names, got {names}")
        baseline: set[str] = set()  # shapes that the first server was loaded with
        for server in self.servers:
            own = self.seen_by(server)
            before: set[str] = set()
            for one in own.load:
                known = before if getattr(one, "of_baseline", None) is None else before | baseline
                relative = getattr(one, "of_capacity", None) or getattr(one, "of_baseline", None)
                if relative and "saturate" not in known:
                    raise ValueError(
                        "of_capacity and of_baseline need a load 'saturate' before them"
                    )
                before.add(one.shape)
            baseline = baseline or before
            if server.peer and own.requests != "text":
                raise ValueError("peers take one text per request: requests: text")
        return self

    def seen_by(self, server: ServerSpec) -> "Scenario":
        """This scenario with what a server has of its own in place of what all share."""
        own = {name: getattr(server, name) for name in ("proxy", "requests", "load")}
        return self.model_copy(update={name: value for name, value in own.items() if value})

    @property
    def texts_of_a_request(self) -> int:
        """Texts that each request carries."""
        return self.texts_per_request if self.requests == "texts" else 1

    @property
    def load_s(self) -> float:
        """Seconds of load in all, over all servers."""
        return sum(one.duration_s for server in self.servers for one in self.seen_by(server).load)


def read_scenario(file: Path) -> Scenario:
    """A scenario from a YAML file; paths in it are from its folder.

    Raises:
        ScenarioError: the file cannot be read or has a mistake.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{file}: not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ScenarioError(f"{file}{where}: not YAML: {problem}") from None
    if not isinstance(content, dict):
        raise ScenarioError(f"{file}: expected fields such as 'servers:' and 'load:'")
    try:
        scenario = Scenario.model_validate(content)
    except ValidationError as error:
        raise ScenarioError(f"{file}: {_explain(error)}") from None
    if scenario.texts.file is not None and not scenario.texts.file.is_absolute():
        texts = scenario.texts.model_copy(update={"file": file.parent / scenario.texts.file})
        scenario = scenario.model_copy(update={"texts": texts})
    return scenario


def _explain(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    tags = {"constant", "soak", "burst", "diurnal", "saturate", "search"}
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in tags or not where.endswith("]"):
            where += f".{part}" if where else str(part)
    kind, message = first["type"], first["msg"]
    if kind == "extra_forbidden":
        message = f"no such field; known are {', '.join(_known(first['loc']))}"
    elif kind == "missing":
        message = "this field is required"
    elif kind == "union_tag_not_found":
        message = f"needs the field 'shape', one of {', '.join(sorted(tags))}"
    elif kind == "union_tag_invalid":
        message = f"shape: expected one of {', '.join(sorted(tags))}, got {first['ctx']['tag']!r}"
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    else:
        message = f"{message[0].lower()}{message[1:]}, got {first['input']!r}"
    return f"{where or 'scenario'}: {message}"


def _known(loc: tuple[Any, ...]) -> list[str]:
    """Fields of the model that a location is in."""
    if "load" in loc and len(loc) > loc.index("load") + 3:
        shape = str(loc[loc.index("load") + 2])
        return list(getattr(shapes, shape.capitalize()).model_fields)
    if loc[0] == "servers":
        return list(ServerSpec.model_fields)
    if loc[0] == "texts" and len(loc) > 1:
        return list(TextsSpec.model_fields)
    return list(Scenario.model_fields)
