"""An hour at 80% of capacity: memory, descriptors and threads of the processes must not grow.

A sample is written every ten seconds as a line of JSON, so an interrupted run keeps its samples.
"""

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.harness import Server, running, settled
from tests.chaos.load import Load

SAMPLE_EVERY_S = 10.0
#: Clients are counted and checked once per window.
WINDOW_S = 60.0
#: Load as a share of the measured capacity.
SHARE = 0.8
#: Growth before this is warm-up: pools, arenas, compilation of shapes.
WARM_S = 600.0
#: Allowed growth between then and the end, both by a line through all samples and from the first
#: minute to the last: this share of the first value, or at least this amount.
GROWTH_SHARE = 0.05
LEAST_GROWTH = {"rss": 30 * 2**20, "descriptors": 128, "threads": 4}
#: Part of the names that Ray gives to processes of deployments, which are ingress and engine.
_SERVING = "ServeReplica:"
#: Capacity is measured again while it grows by this factor, up to this many times.
_STILL_WARMING = 1.05
_MOST_WARM_UPS = 6
#: Samples in a minute.
_A_MINUTE = 6
SETTINGS = {
    "torch": ["engine.runtime=torch"],
    "openvino": ["engine.runtime=openvino"],
}


async def soak(
    runtime: str, minutes: float, file: Path, ready: asyncio.Barrier, cores: set[int]
) -> dict[str, Any]:
    """Serve for ``minutes`` and judge the samples written to ``file``.

    Args:
        runtime: a key of ``SETTINGS``.
        minutes: duration, without the start and the measurement of capacity.
        file: file of samples; lines are appended.
        ready: shared by all soaks that run at once, so that they measure capacity together.
        cores: that the server may run on. Servers that share cores wait for each other's threads
            in the middle of a forward, which costs most of their capacity.
    """
    with contextlib.ExitStack() as stack:
        try:
            server = await asyncio.to_thread(_start, stack, SETTINGS[runtime], cores)
        except BaseException:
            await ready.abort()
            raise
        lines = stack.enter_context(file.open("a", buffering=1))

        def note(**what: Any) -> None:
            lines.write(json.dumps(what) + "\n")

        load = server.load_at(1.0, every_second_elastic=True)
        await ready.wait()
        capacity = await _warm_capacity(load)
        rate = SHARE * capacity
        note(kind="start", runtime=runtime, capacity=capacity, rate=rate, at=time.time())
        began_s = time.monotonic()
        sampling = asyncio.create_task(_sample(server, began_s, note))
        try:
            while (left_s := began_s + 60 * minutes - time.monotonic()) > 0:
                window = server.load_at(rate, every_second_elastic=True)
                await window.run(min(WINDOW_S, left_s))
                note(
                    kind="window",
                    at_s=round(time.monotonic() - began_s),
                    **window.figures(),
                    failure=_broken_promise(window),
                )
        finally:
            sampling.cancel()
        await asyncio.to_thread(settled, server)
        await asyncio.to_thread(stack.close)
    return verdict(file)


def _start(stack: contextlib.ExitStack, settings: Sequence[str], cores: set[int]) -> Server:
    """A server whose processes inherit the cores of this thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return stack.enter_context(running(settings))
    finally:
        os.sched_setaffinity(0, before)


async def _warm_capacity(load: Load) -> float:
    """Requests per second when warm; at first, code is compiled for each shape."""
    capacity = 0.0
    for _ in range(_MOST_WARM_UPS):
        before, capacity = capacity, await load.capacity(30.0)
        if capacity < _STILL_WARMING * before:
            break
    return capacity


def _broken_promise(window: Load) -> str | None:
    """What went wrong in a window; the soak continues all the same."""
    try:
        # On a shared machine a burst may find no room; nothing else may happen.
        window.check(allowed=["overloaded", "deadline_exceeded"])
    except AssertionError as error:
        return str(error)
    return None


async def _sample(server: Server, began_s: float, note: Any) -> None:
    while True:
        sample = await asyncio.to_thread(_look, server)
        note(kind="sample", at_s=round(time.monotonic() - began_s, 1), **sample)
        await asyncio.sleep(SAMPLE_EVERY_S)


def _look(server: Server) -> dict[str, Any]:
    """The current memory, descriptors and threads of each process of the server, and the sums."""
    each = []
    for process in server.processes():
        try:
            with process.oneshot():
                each.append(
                    {
                        "pid": process.pid,
                        "name": " ".join(process.cmdline())[:120],
                        "rss": process.memory_info().rss,
                        "descriptors": process.num_fds(),
                        "threads": process.num_threads(),
                    }
                )
        except psutil.Error:
            continue  # it has just ended
    serving = [one for one in each if _SERVING in one["name"]]
    return {
        "serving": {**_sum(serving), "pids": [one["pid"] for one in serving]},
        "tree": _sum(each),
        "processes": each,
    }


def _sum(each: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    found = list(each)
    return {what: sum(one[what] for one in found) for what in LEAST_GROWTH}


def verdict(file: Path) -> dict[str, Any]:
    """Whether the samples of a soak are flat, for muxserve's processes and for all."""
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    (start, *_) = (line for line in lines if line["kind"] == "start")
    samples = [line for line in lines if line["kind"] == "sample"]
    windows = [line for line in lines if line["kind"] == "window"]
    lasted_s = samples[-1]["at_s"]
    warm_s = min(WARM_S, lasted_s / 2)
    warm = [one for one in samples if one["at_s"] >= warm_s]
    found = {
        scope: {what: growth(warm, scope, what) for what in LEAST_GROWTH}
        for scope in ("serving", "tree")
    }
    failures = [one["failure"] for one in windows if one["failure"]]
    same = len({tuple(one["serving"]["pids"]) for one in samples}) == 1
    return {
        "runtime": start["runtime"],
        "minutes": round(lasted_s / 60, 1),
        "warm_s": warm_s,
        "capacity": round(start["capacity"], 1),
        "rate": round(start["rate"], 1),
        "requests": sum(one["requests"] for one in windows),
        "right": sum(one["right"] for one in windows),
        "errors": _added(one["errors"] for one in windows),
        "p50_ms": statistics.median(one["p50_ms"] for one in windows) if windows else None,
        "p99_ms": statistics.median(one["p99_ms"] for one in windows) if windows else None,
        **found,
        "same_processes": same,
        "failures": failures,
        # Ray's own processes are reported too, but the guarantee covers only those that serve.
        "flat": all(one["flat"] for one in found["serving"].values()),
        "kept": all(one["flat"] for one in found["serving"].values()) and same and not failures,
    }


def growth(samples: Sequence[Mapping[str, Any]], scope: str, what: str) -> dict[str, Any]:
    """How much a figure grew, by a line through it and from its first minute to its last."""
    times = [one["at_s"] for one in samples]
    values = [one[scope][what] for one in samples]
    first = statistics.fmean(values[:_A_MINUTE])
    last = statistics.fmean(values[-_A_MINUTE:])
    slope = statistics.linear_regression(times, values).slope if len(set(times)) > 1 else 0.0
    by_line = slope * (times[-1] - times[0])
    allowed = max(GROWTH_SHARE * first, LEAST_GROWTH[what])
    return {
        "first": round(first),
        "last": round(last),
        "by_line": round(by_line),
        "allowed": round(allowed),
        "flat": by_line <= allowed and last - first <= allowed,
    }


def _added(each: Iterable[Mapping[str, int]]) -> dict[str, int]:
    added: dict[str, int] = {}
    for one in each:
        for code, count in one.items():
            added[code] = added.get(code, 0) + count
    return added
