"""Start muxserve as its users do, in processes of its own."""

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxserve.loadtest.servers.http_request import request
from muxserve.loadtest.servers.process import HOST, cpu_seconds, free_port, running_process


@dataclass(frozen=True)
class RunningServer:
    """A server that answers.

    Attributes:
        port: its HTTP port on 127.0.0.1.
        pid: its first process.
    """

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://{HOST}:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time of its processes until now."""
        return cpu_seconds(self.pid)

    def stats(self) -> dict[str, Any]:
        """What ``GET /stats`` answers."""
        answer: dict[str, Any] = json.loads(request(self.url, "/stats")[1])
        return answer


@contextmanager
def running_muxserve(
    family: str | Path,
    settings: Sequence[str] = (),
    *,
    proxy: str = "none",
    environment: Mapping[str, str] | None = None,
    module: str = "muxserve",
    start_limit_s: float = 180.0,
    stop_limit_s: float = 30.0,
) -> Iterator[RunningServer]:
    """``muxserve serve``, from its first answer until the block ends.

    Args:
        family: name or folder.
        settings: as ``key=value``.
        proxy: of the command's option.
        environment: variables beside those of this process.
        module: what is run, with the arguments of ``muxserve``.
        start_limit_s, stop_limit_s: seconds until it must be ready, and have ended.

    Raises:
        ProcessFailed: it ended, or was not ready in time; the message has its log.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", module, "serve", "--family", str(family)),
        *("--port", str(port), "--proxy", proxy, *settings),
    ]
    url = f"http://{HOST}:{port}"

    def is_ready() -> bool:
        try:
            return request(url, "/ready", timeout_s=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    with running_process(
        command,
        is_ready,
        lambda _: f"{' '.join(command)} does not answer",
        start_limit_s=start_limit_s,
        stop_limit_s=stop_limit_s,
        environment=environment,
    ) as pid:
        yield RunningServer(port, pid)
