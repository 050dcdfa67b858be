"""muxserve as its users start it, in processes of its own, to be measured from outside."""

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxserve.loadtest.servers.http import request
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


def stages_ms(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Where the milliseconds of a request of one text went, on average between two looks.

    ``transport`` is what the way to the engine and back took, ``ingress`` what is neither
    tokenizing nor waiting for an answer: reading, checking, writing JSON.
    """
    ingress = {key: after["stages"][key] - before["stages"][key] for key in after["stages"]}
    engine = {
        key: sum(one[key] for one in after["engines"]) - sum(one[key] for one in before["engines"])
        for key in ("filled_slots", "line_s", "plan_s", "computed_s", "batches")
    }
    requests, texts = max(1, ingress["requests"]), max(1, engine["filled_slots"])
    line, computed = engine["line_s"] / texts, engine["computed_s"] / texts
    # A text waits while its batch is planned; the line's time has that in it.
    plan = engine["plan_s"] / max(1, engine["batches"])
    backend = ingress["backend_s"] / requests
    seconds = {
        "ingress": ingress["total_s"] / requests - backend - ingress["tokens_s"] / requests,
        "tokens": ingress["tokens_s"] / requests,
        "transport": backend - line - computed,
        "line": line - plan,
        "plan": plan,
        "forward": computed,
    }
    return {name: 1000 * value for name, value in seconds.items()}
