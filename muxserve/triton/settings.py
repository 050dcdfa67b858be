"""The settings of an export; ``muxserve export triton`` has a flag for each field."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ExportSettings(BaseModel):
    """The settings of one export; every field has a usable default."""

    model_config = ConfigDict(extra="forbid")

    num_instances: list[int] | None = Field(
        None, min_length=1, description="Export only this N; may be given again. Default: every N."
    )
    backend: Literal["python", "onnxruntime"] = Field(
        "python",
        description="python: models that fill slots from requests of any lengths, and an elastic "
        "one that chooses N; needs onnxruntime in Triton's Python. onnxruntime: graphs for the "
        "backend of that name in the stock image; requests share a batch only at equal lengths.",
    )
    text: bool = Field(
        False, description="Add a text front to every model: texts in, labels with scores out."
    )
    device: Literal["cpu", "gpu"] = Field("cpu", description="What the models run on.")
    instances: int = Field(
        1, ge=1, le=64, description="Instances of each model, per GPU if there are GPUs."
    )
    max_batch_size: int = Field(
        1024,
        ge=1,
        le=65_536,
        description="Most texts that Triton gives one execution; rounded down to groups of N.",
    )
    queue_delay_us: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Microseconds that a batch waits for more requests. With 0, requests that "
        "arrive during one execution form the next.",
    )
    max_waiting_texts: int = Field(
        512,
        ge=1,
        le=65_536,
        description="Texts that one execution answers; more are refused. Only for the python "
        "backend.",
    )
    max_queue_size: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Requests that Triton's own queue holds; 0 for no bound. With a bound, "
        "Triton 24.10 lets batches wait for up to half a second.",
    )
    latency_target_ms: float = Field(
        50.0,
        gt=0,
        description="The elastic model takes a wider N if the waiting texts would take longer.",
    )
    max_quality_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="The elastic model never takes an N whose measured quality is further below "
        "the narrowest member's.",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of one forward; 0 for every core."
    )
    warm_up_s: float = Field(
        2.0, gt=0, le=600, description="Seconds for measuring forward times when a model loads."
    )
