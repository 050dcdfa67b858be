"""One load on one server: the generator and the watch side by side, and a row however it ends.

The row has everything that was counted before a server died, Locust ended or somebody stopped it.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muxserve.loadtest.generator.load_spec import Job
from muxserve.loadtest.generator.locust_process import Generator, GeneratorFailed
from muxserve.loadtest.generator.tally import OK, Tally, quantile_s
from muxserve.loadtest.report.figures import figures
from muxserve.loadtest.servers.targets import Target, TargetFailed
from muxserve.loadtest.servers.watch import Watch

_POLL_S = 0.5
#: A server that answers nothing but broken connections for so long has died; at the end of a load
#: the last second is enough, because nothing more will tell.
DEAD_S, _DEAD_AT_END_S = 5, 1
#: Beyond its last request and the time limit of that, a run is ended.
_GRACE_S = 20.0


def run_load(
    what: str,
    target: Target,
    job: Job,
    folder: Path,
    *,
    workers: int,
    web_port: int | None,
    quality: Mapping[int, float],
    tell: Callable[[str, float], None],
) -> tuple[dict[str, Any] | None, BaseException | None]:
    """Put a load on a server until it has ended.

    Args:
        what: server and load, for messages.
        target: the server.
        job: for the load generator.
        folder: for its files; a new one.
        workers: of Locust.
        web_port: of Locust's web UI.
        quality: measured quality of each N.
        tell: called twice a second with a line of progress, and the seconds since the start.

    Returns:
        The figures, None where nothing was sent; and what cut it short, if anything did: a
        TargetFailed, a GeneratorFailed or a KeyboardInterrupt.
    """
    shape = job.shape
    generator = Generator(job, folder, workers=workers, web_port=web_port)
    cut: BaseException | None = None
    ran_s, died = shape.duration_s, False
    with Watch(target.cpu_seconds, target.stats) as watch:
        try:
            with generator:
                try:
                    died = _follow(what, generator, job, tell)
                except BaseException:
                    # Now: the generator may take seconds to end.
                    ran_s = min(ran_s, generator.at_s)
                    raise
        except (KeyboardInterrupt, GeneratorFailed) as error:
            cut = error
    tally = generator.tally
    if cut is None and (died or has_died(tally, ran_s, _DEAD_AT_END_S)):
        died, ran_s = True, last_answer_s(tally)
        cut = TargetFailed(
            f"{what}: the server stopped answering {ran_s:.0f} s into it; figures are of the time "
            "before"
        )
    elif cut is None and generator.stopped:
        ran_s = min(ran_s, generator.ran_s)
        cut = GeneratorFailed(f"{what} was stopped in the web UI after {ran_s:.0f} s")
    if not tally.seconds:
        return None, cut
    start = generator.start_unix_s or time.time()
    row = figures(tally, shape, watch.looks, start, ran_s, quality)
    if cut is not None:
        row["died_at_s" if died else "interrupted_at_s"] = ran_s
    return row, cut


def _follow(what: str, generator: Generator, job: Job, tell: Callable[[str, float], None]) -> bool:
    """Wait for the end; whether that was the server's."""
    while generator.running:
        time.sleep(_POLL_S)
        generator.read()
        tell(_so_far(generator.tally, generator.at_s), generator.at_s)
        if has_died(generator.tally, generator.at_s):
            return True
        if generator.at_s > job.shape.duration_s + job.timeout_s + _GRACE_S:
            raise GeneratorFailed(f"{what} did not end in time")
    return False


def has_died(tally: Tally, at_s: float, seconds: int = DEAD_S) -> bool:
    """Whether a server's last seconds are broken connections and nothing else."""
    recent = tally.total(range(int(at_s) - seconds, int(at_s)))
    broken = recent.statuses["connection"]
    return (
        at_s > seconds
        and broken >= 3
        and broken == recent.statuses.total()
        and not recent.completed
    )


def last_answer_s(tally: Tally) -> float:
    """The end of the last second in which an answer came."""
    return max((number + 1 for number, one in tally.seconds.items() if one.completed), default=0)


def _so_far(tally: Tally, at_s: float) -> str:
    now = tally.total(range(max(0, int(at_s) - 3), int(at_s)))
    p99 = quantile_s(now.latencies, 0.99)
    rate = now.completed / min(3, max(1, int(at_s)))
    errors = sum(c for s, c in tally.total().statuses.items() if s != OK) if tally.seconds else 0
    return (
        f"{rate:,.0f} texts/s, p99 {1000 * p99:,.0f} ms, {errors} errors"
        if p99
        else "no answer yet"
    )
