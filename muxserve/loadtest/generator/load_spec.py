"""A job for the load generator, as a file: which server, which texts, which load."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from muxserve.loadtest.scenario.scenario import RequestKind
from muxserve.loadtest.scenario.shapes import Shape

#: Environment variable with the path of a job, for Locust's processes.
JOB_VARIABLE = "MUXSERVE_LOADTEST_JOB"


class Job(BaseModel):
    """One shape of load on one server.

    Attributes:
        url: of the server; host:port for gRPC and for a handle's bridge.
        path: of the HTTP route, where it is not the kind's own.
        source: address to connect from, of requests to ``/predict``.
        scale: share of the load that each Locust user sends.
        users: Locust users in all, one per process.
        texts: JSONL file that ``write_texts`` wrote.
        results: file to which parts of the tally are appended, one JSON object per line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    kind: RequestKind
    shape: Shape
    texts: Path
    results: Path | None = None
    path: str | None = None
    source: str | None = None
    model: str = ""
    texts_per_request: int = 16
    headers: dict[str, str] = {}
    timeout_s: float = 30.0
    seed: int = 0
    users: int = Field(1, ge=1)

    @property
    def scale(self) -> float:
        """Share of the load that each user sends."""
        return 1 / self.users


def job_of_environment() -> Job | None:
    """The job that this process was started for, if any."""
    file = os.environ.get(JOB_VARIABLE)
    return Job.model_validate_json(Path(file).read_text(encoding="utf-8")) if file else None
