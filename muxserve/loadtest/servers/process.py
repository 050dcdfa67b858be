"""The processes of a server: start, processor time and end. Reads ``/proc`` of Linux."""

import math
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
_FREE_PORTS = (10_000, 20_000)
#: Characters of a log that an error shows.
_LOG_TAIL = 3000


class ProcessFailed(RuntimeError):
    """A server ended or was not ready in time; the message has the end of its log."""


@dataclass(frozen=True)
class _Process:
    """One line of ``/proc/PID/stat``; times in clock ticks."""

    parent: int
    session: int
    ticks: int
    started: int


def free_port() -> int:
    """A port of this machine that nothing listens on.

    It lies below those that the kernel gives to clients and to Ray's processes: one of them would
    take it before the server does.
    """
    while True:
        port = random.SystemRandom().randrange(*_FREE_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


@contextmanager
def running_process(
    command: Sequence[str],
    is_ready: Callable[[], bool],
    why_not: Callable[[int | None], str],
    *,
    start_limit_s: float,
    stop_limit_s: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[int]:
    """A server in a session of its own, from when it is ready until the block ends.

    Args:
        command: starts it.
        is_ready: asked four times a second.
        why_not: what an error says first, from the exit code; None where the time was over.
        start_limit_s, stop_limit_s: seconds until it must be ready, and have ended.
        environment: variables beside those of this process.
        folder: that it is started in.

    Yields:
        Its process id.

    Raises:
        ProcessFailed: it ended, or was not ready in time.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell without job control starts background programs with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            end = time.monotonic() + start_limit_s
            while not is_ready():
                code = process.poll()
                if code is not None or time.monotonic() > end:
                    log.seek(0)
                    tail = log.read().decode(errors="replace")[-_LOG_TAIL:]
                    raise ProcessFailed(f"{why_not(code)}\n{tail}")
                time.sleep(0.25)
            yield process.pid
        finally:
            stop(process, stop_limit_s)


def cpu_seconds(root: int) -> float:
    """User and system time of a process, its session and its descendants; NaN without ``/proc``.

    Counts the processes that live, and those that they have waited for.
    """
    tree = _tree(root)
    if not tree:
        return math.nan
    return sum(one.ticks for one in tree.values()) / os.sysconf("SC_CLK_TCK")


def stop(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """SIGINT to a process, and SIGKILL to what is left of its tree when it has ended, or in time.

    Args:
        process: started in a session of its own.
        limit_s: how long it may take to end.
    """
    before = _tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # Some have left the session by now. A number that is used again has started later.
    left = _processes()
    for pid, one in before.items():
        if pid in left and left[pid].started == one.started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tree(root: int) -> dict[int, _Process]:
    """A process, its session and the descendants of both, by number."""
    every = _processes()
    found = {pid for pid, one in every.items() if pid == root or one.session == root}
    while grown := {p for p, one in every.items() if one.parent in found and p not in found}:
        found |= grown
    return {pid: every[pid] for pid in found}


def _processes() -> dict[int, _Process]:
    every: dict[int, _Process] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name stands in parentheses and may hold spaces; the rest are numbers.
            fields = file.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        every[int(file.parent.name)] = _Process(
            parent=int(fields[1]),
            session=int(fields[3]),
            # User and system time, its own and that of the children it has waited for.
            ticks=sum(int(field) for field in fields[11:15]),
            started=int(fields[19]),
        )
    return every
