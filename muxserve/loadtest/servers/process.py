"""The processes of a server: their processor time, and their end. Reads ``/proc`` of Linux."""

import math
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Process:
    """One line of ``/proc/PID/stat``; times in clock ticks."""

    parent: int
    session: int
    ticks: int
    started: int


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
