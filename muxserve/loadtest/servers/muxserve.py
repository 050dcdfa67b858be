"""muxserve as its users start it, in processes of its own, to be measured from outside."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxserve.loadtest.servers.process import cpu_seconds, stop

HOST = "127.0.0.1"
_FREE_PORTS = (10_000, 20_000)


@dataclass(frozen=True)
class RunningServer:
    """A server that answers.

    Attributes:
        port: its HTTP port on 127.0.0.1.
        pid: its first process.
    """

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of its processes until now."""
        return cpu_seconds(self.pid)

    def stats(self) -> dict[str, Any]:
        """What ``GET /stats`` answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", "/stats")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


def free_port() -> int:
    """A port of this machine that nothing listens on.

    It lies below those that the kernel gives to clients and to Ray's processes: one of them would
    take it before the server does.
    """
    while True:
        port = random.SystemRandom().randrange(*_FREE_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


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
        RuntimeError: it ended, or was not ready in time; the message has its log.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", module, "serve", "--family", str(family)),
        *("--port", str(port), "--proxy", proxy, *settings),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            # A shell without job control starts background programs with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            end = time.monotonic() + start_limit_s
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    tail = log.read().decode(errors="replace")[-3000:]
                    raise RuntimeError(f"{' '.join(command)} does not answer\n{tail}")
                time.sleep(0.25)
            yield RunningServer(port, process.pid)
        finally:
            stop(process, stop_limit_s)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


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
