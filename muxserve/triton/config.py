"""Settings for the Triton server behind muxserve."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class TritonConfig(BaseModel):
    """Where the server is, and how long requests wait for it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    url: str = Field(
        "127.0.0.1:8001",
        pattern=r"^[^\s/]+:\d+$",
        description="Host and port of Triton's gRPC endpoint; used with backend 'triton'.",
    )
    model: str | None = Field(
        None, min_length=1, description="Name of the model in Triton; by default the family's."
    )
    tls: bool = Field(False, description="Whether to speak TLS with Triton.")
    tls_ca_file: Path | None = Field(
        None, description="Certificates to trust instead of the system's, in PEM."
    )
    wait_s: float = Field(
        2.0,
        gt=0,
        le=600,
        description="Seconds that texts wait for a Triton that cannot be reached; then 503.",
    )
    call_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Most seconds for one call of Triton; a request's own deadline may be sooner.",
    )
