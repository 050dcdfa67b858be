"""Settings in, one checked ``ServeConfig`` out: the same for ``serve run``, YAML files and Python.

Every field has a bound, a description and its unit in its name. An unknown setting is never
ignored: the error names it and lists those that exist.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from muxserve.engine.config import EngineConfig
from muxserve.serving.listening.connections import ConnectionsConfig
from muxserve.serving.security import SecurityConfig
from muxserve.triton.config import TritonConfig


class LimitsConfig(BaseModel):
    """What one request may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_texts_per_request: int = Field(
        512, ge=1, le=65_536, description="Texts of one request; more are refused with 413."
    )
    max_characters_per_text: int = Field(
        100_000,
        ge=1,
        le=10_000_000,
        description="Characters of one text; a longer one is refused with 413, whether it may be "
        "cut or not.",
    )
    max_body_bytes: int = Field(
        2 * 1024 * 1024,
        ge=1024,
        le=1024**3,
        description="Bytes of one request's body; more are refused with 413.",
    )
    max_bodies_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        le=1024**4,
        description="Bytes of one caller's bodies that are still coming to one ingress over HTTP, "
        "and as many over gRPC; all callers together may have a quarter more. What goes beyond is "
        "refused with 503.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Most seconds for one request, its body's arrival included; later is 504. "
        "A request may ask for less.",
    )


class IngressConfig(BaseModel):
    """The processes that speak HTTP; in the arrangement 'together' they hold the engine too."""

    model_config = ConfigDict(extra="forbid")

    num_replicas: int = Field(
        1, ge=1, le=1000, description="Ingress processes; 'together' follows replicas instead."
    )
    num_cpus: float = Field(
        0.0,
        ge=0,
        le=1024,
        description="CPUs that Ray reserves for each; 0 lets it run on a machine that is full.",
    )
    max_replicas_per_node: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Most ingress processes on one machine, so that the loss of one leaves others.",
    )
    max_ongoing_requests: int = Field(
        8192,
        ge=1,
        le=1_000_000,
        description="Requests that Ray gives one ingress at a time. Keep it above the line's "
        "length, so that a full line answers 503 in our words.",
    )
    max_waiting_texts: int = Field(
        4096,
        ge=1,
        description="Texts of one caller alone that one ingress holds, from before they are "
        "tokenized until they are answered; more are refused with 503. All callers together may "
        "have a quarter more.",
    )
    max_calls_in_flight: int = Field(
        4,
        ge=1,
        le=1024,
        description="Bundles that one ingress has under way; the next requests gather meanwhile. "
        "Beside a flood, those of callers who ask for little have as many again.",
    )
    max_texts_per_bundle: int = Field(
        256, ge=1, le=65_536, description="Texts of one bundle; a longer request travels alone."
    )
    direct_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on which each ingress listens by itself too, without Ray Serve's proxy: "
        "the quickest path. Ingresses of one machine share it.",
    )
    direct_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address of direct_port; 0.0.0.0 lets other machines in.",
    )
    grpc_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on direct_host for the Open Inference Protocol over gRPC; needs "
        "muxserve[triton]. Ingresses of one machine share it.",
    )
    replica_wait_s: float = Field(
        2.0,
        gt=0,
        le=600,
        description="Seconds that a request waits for some replica to be alive; then 503.",
    )


class ReplicasConfig(BaseModel):
    """The processes that hold an engine."""

    model_config = ConfigDict(extra="forbid")

    num_replicas: int = Field(1, ge=1, le=1000, description="Engine processes.")
    min_replicas: int | None = Field(
        None, ge=0, le=1000, description="Fewest replicas under autoscaling; default num_replicas."
    )
    max_replicas: int | None = Field(
        None, ge=1, le=1000, description="Most replicas; setting it turns autoscaling on."
    )
    target_drain_ms: float | None = Field(
        None,
        gt=0,
        description="Replicas are added where what waits would take longer than this at the widest "
        "N; by default engine.latency_target_ms.",
    )
    target_ongoing_requests: float = Field(
        64.0,
        gt=0,
        le=1_000_000,
        description="Requests under way for which one ingress is enough, under autoscaling with "
        "backend 'triton'; engines scale by target_drain_ms instead.",
    )
    upscale_delay_s: float = Field(
        30.0, ge=0, le=86_400, description="Seconds that more replicas must be called for."
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, le=86_400, description="Seconds that fewer replicas must be enough."
    )
    downscale_to_zero_delay_s: float | None = Field(
        None,
        ge=0,
        le=86_400,
        description="Seconds without a text before the last replica goes, where min_replicas is 0; "
        "by default downscale_delay_s.",
    )
    look_back_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds that autoscaling averages over."
    )
    measure_every_s: float = Field(
        5.0, gt=0, le=600, description="Seconds between measurements for autoscaling."
    )
    num_cpus: float = Field(
        1.0,
        ge=0,
        le=1024,
        description="CPUs that Ray reserves for each, and threads of its forward.",
    )
    num_gpus: float = Field(0.0, ge=0, le=64, description="GPUs that Ray reserves for each.")
    max_replicas_per_node: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Most replicas on one machine, so that the loss of one leaves others.",
    )
    health_check_period_s: float = Field(
        10.0, gt=0, le=600, description="Seconds between Ray's looks whether a replica is alive."
    )
    max_ongoing_bundles: int = Field(
        1024, ge=1, le=1_000_000, description="Calls that Ray gives one replica at a time."
    )

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> "ReplicasConfig":
        if self.min_replicas is not None and self.max_replicas is None:
            raise ValueError("min_replicas needs max_replicas: set both, or num_replicas")
        if self.max_replicas is not None and self.fewest > self.max_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is below the fewest replicas ({self.fewest})"
            )
        if self.measure_every_s >= self.look_back_s:
            raise ValueError(
                f"measure_every_s ({self.measure_every_s:g}) must be below look_back_s "
                f"({self.look_back_s:g}), or there is nothing to average"
            )
        return self

    @property
    def fewest(self) -> int:
        """Replicas that run without load."""
        return self.num_replicas if self.min_replicas is None else self.min_replicas

    @property
    def first(self) -> int:
        """Replicas that an application starts with."""
        most = self.num_replicas if self.max_replicas is None else self.max_replicas
        return min(max(self.num_replicas, self.fewest), most)


class ServeConfig(BaseModel):
    """Everything about one application. Keys may be nested, or dotted as on a command line."""

    model_config = ConfigDict(extra="forbid")

    family: str = Field(min_length=1, description="A shipped family's name, or a folder.")
    arrangement: Literal["separate", "together"] = Field(
        "separate",
        description="separate: an ingress process, and engine processes that scale by themselves; "
        "together: ingress and engine in one process.",
    )
    backend: Literal["engine", "triton"] = Field(
        "engine",
        description="What runs the forwards. engine: ours; triton: a Triton server with an "
        "exported model, for which 'replicas' scales the ingress.",
    )
    access_log: bool = Field(
        False, description="Whether Ray logs every request of the ingress and the replicas."
    )
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="Of one request.")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="Of each engine.")
    ingress: IngressConfig = Field(default_factory=IngressConfig, description="HTTP processes.")
    connections: ConnectionsConfig = Field(
        default_factory=ConnectionsConfig, description="To direct_port and grpc_port."
    )
    security: SecurityConfig = Field(
        default_factory=SecurityConfig, description="Who may ask, and see what."
    )
    replicas: ReplicasConfig = Field(
        default_factory=ReplicasConfig, description="Engine processes."
    )
    triton: TritonConfig = Field(
        default_factory=TritonConfig, description="The Triton server, with backend 'triton'."
    )

    @model_validator(mode="after")
    def _triton_has_no_engine_beside_it(self) -> "ServeConfig":
        if self.backend != "triton":
            return self
        if self.arrangement == "together":
            raise ValueError(
                "backend 'triton' has no engine to put together with the ingress: leave out "
                "arrangement, or take backend 'engine'"
            )
        if self.engine != EngineConfig():
            raise ValueError(
                "with backend 'triton' there is no engine to set: leave out engine.*; the model's "
                "config.pbtxt has its settings"
            )
        return self

    @model_validator(mode="after")
    def _somebody_listens(self) -> "ServeConfig":
        if (
            self.arrangement == "together"
            and self.replicas.min_replicas == 0
            and self.ingress.direct_port is not None
        ):
            raise ValueError(
                "replicas.min_replicas 0 with arrangement 'together' leaves nobody to listen on "
                "ingress.direct_port: take arrangement 'separate', or leave out direct_port"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _expand_dotted_keys(cls, values: Any) -> Any:
        """``{"engine.max_groups": "8"}`` is ``{"engine": {"max_groups": "8"}}``."""
        if not isinstance(values, Mapping):
            return values
        nested: dict[str, Any] = {}
        for key, value in values.items():
            _put(nested, str(key).split("."), value)
        known = list(_settings(cls))
        for name in _given(nested):
            if name not in known and not any(one.startswith(f"{name}.") for one in known):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown setting {name!r}{hint} Settings: {', '.join(known)}")
        return nested


def _put(nested: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a value at its path; values of one group given in two ways are merged."""
    *groups, name = path
    for depth, group in enumerate(groups):
        nested = nested.setdefault(group, {})
        if not isinstance(nested, dict):
            raise ValueError(f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is not a group")
    if isinstance(value, Mapping) and isinstance(nested.get(name), dict):
        nested[name].update(value)
    else:
        nested[name] = dict(value) if isinstance(value, Mapping) else value


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _given(nested: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted name of every value in nested mappings."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _given(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
