"""What can be set about one replica's engine."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EngineConfig(BaseModel):
    """Settings of one engine; every field has a default that serves."""

    model_config = ConfigDict(extra="forbid")

    latency_target_ms: float = Field(
        50.0,
        gt=0,
        description="Texts are to be answered within this time; N widens when they would not be.",
    )
    num_instances: int | None = Field(
        None, ge=1, description="Pin N; by default N follows the load."
    )
    max_num_instances: int | None = Field(
        None, ge=1, description="Widest N that load may choose; by default the family's widest."
    )
    max_quality_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Load never chooses an N whose measured quality is further below the "
        "narrowest member's than this; 1 allows every N. A pinned N is not affected.",
    )
    max_groups: int = Field(
        32, ge=1, le=1024, description="Most groups (encoder rows) of one forward."
    )
    max_waiting_texts: int = Field(
        4096, ge=1, description="Texts that may wait; more are refused with 503."
    )
    runtime: Literal["torch", "openvino"] = Field(
        "torch",
        description="What runs the forward. openvino (a CPU only; needs muxserve[openvino], some "
        "seconds more to start) is quicker, most of all where the ingress is in the same process.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Of weights and forward. auto: bfloat16 where the CPU has instructions for it, "
        "but float32 for weights that were trained without an encoder mask. int8: the encoder's "
        "products in 8 bits, on a CPU with torch; measure its quality before (muxserve evaluate "
        "--dtype int8).",
    )
    torch_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the forward; by default the cores of the process or replica.",
    )
    forwards_in_flight: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Forwards that run at once; by default 2, and 1 on a CPU with a single thread. "
        "On a CPU each has its part of the threads, and a lone one has all.",
    )
    warm_up_s: float = Field(
        5.0, gt=0, description="Seconds after which measuring forward times at start gives way."
    )

    verify_checksums: bool = Field(
        True,
        description="Compare the family's files with the checksums in `family.json` at start; "
        "false saves the time that huge weights take.",
    )

    @model_validator(mode="after")
    def _int8_is_torchs(self) -> "EngineConfig":
        if self.dtype == "int8" and self.runtime == "openvino":
            raise ValueError("dtype int8 is computed by torch: leave out runtime, or take bfloat16")
        return self
