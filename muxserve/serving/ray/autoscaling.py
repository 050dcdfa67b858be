"""How many replicas: as many as keep the line short at the widest allowed N, and no more.

In: what the replicas measured (``demand``), bounds and delays, the time. Out: a number. Width is
spent first, because both measures are taken at the widest N: a line that a wider N would drain in
time asks for nothing. ``needed`` and ``target_replicas`` are pure; ``DrainPolicy`` hands them what
Ray Serve knows. Ray pickles this module by value into its controller, so it imports nothing heavy.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

#: Replicas are busy enough at this share of their time at the widest N: nearer to all of it, a line
#: grows with every small burst.
BUSY = 0.85
#: Fewer replicas are enough only where they would be busy for at most this share of their time. The
#: distance to ``BUSY`` is what keeps one replica more or less from being asked for in turns.
BUSY_WITH_FEWER = 0.6
#: Below this share a line is of bursts that are over before a replica has started, or of forwards
#: that take longer than the target by themselves: more replicas would shorten neither.
BUSY_WITH_A_LINE = 0.5


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds, target and delays, as in ``ReplicasConfig``."""

    min_replicas: int
    max_replicas: int
    target_drain_s: float
    upscale_delay_s: float
    downscale_delay_s: float
    downscale_to_zero_delay_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured, averaged over the look-back period.

    Attributes:
        replicas: how many are asked for now.
        running: how many of them run and have measured something.
        drain_s: seconds until a running replica, on average, has served what waits for it and what
            it runs, each text at the widest N that it allows; what ingresses hold back included.
        load: how many replicas the texts that come would keep busy all of the time at the widest
            N. Texts that were refused for want of room count as those that were served.
    """

    replicas: int
    running: int
    drain_s: float
    load: float


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that has been called for without a break, and waits for its delay.

    Attributes:
        replicas: how many were asked for when it began; another number begins anew.
        since_s: when it began.
        wanted: the least that was called for since, where it is more; the most, where it is fewer.
        drain_s: the line when it began.
    """

    replicas: int
    since_s: float
    wanted: int
    drain_s: float


def needed(seen: Seen, scaling: Scaling) -> int:
    """Replicas that the load calls for now, before any delay; within the bounds.

    More where the line is longer than the target or the replicas have too little time left, and
    then enough for everything that comes. Fewer where those would have time to spare. Never falls
    as load or line grow. None at all where that is allowed, one is left, and nothing came.
    """
    wanted = seen.replicas
    if seen.running:
        enough = _replicas(seen.load, BUSY)
        has_a_line = seen.drain_s > scaling.target_drain_s
        if has_a_line and seen.load >= BUSY_WITH_A_LINE * seen.running:
            # Those that were asked for and do not run yet are part of the answer.
            wanted = max(seen.replicas, enough, seen.running + 1)
        elif enough > seen.replicas:
            wanted = enough
        elif not has_a_line:
            idle = seen.replicas == 1 and seen.load == seen.drain_s == 0
            fewest = 0 if idle else 1
            wanted = min(seen.replicas, max(fewest, _replicas(seen.load, BUSY_WITH_FEWER)))
    return min(max(wanted, scaling.min_replicas), scaling.max_replicas)


def target_replicas(
    seen: Seen, scaling: Scaling, pending: Pending | None, now_s: float
) -> tuple[int, Pending | None]:
    """Replicas to ask for now, and what waits for its delay.

    A change must have been called for all through its delay. Then the smallest step of those that
    were called for is made, so that neither a short burst nor a short lull is followed. None is
    added for a line alone that will be gone before the added one could go again.

    Args:
        seen: measurements.
        scaling: settings.
        pending: what this function gave the last time; None at first.
        now_s: seconds on any clock that does not go back.
    """
    wanted = needed(seen, scaling)
    if wanted == seen.replicas:
        return wanted, None
    if not scaling.min_replicas <= seen.replicas <= scaling.max_replicas:
        return wanted, None  # the bounds were changed: that waits for nothing
    more = wanted > seen.replicas
    begun = Pending(seen.replicas, now_s, wanted, seen.drain_s)
    if (
        pending is None
        or pending.replicas != seen.replicas
        or (pending.wanted > seen.replicas) != more
    ):
        pending = begun
    step = min if more else max
    pending = replace(pending, wanted=step(pending.wanted, wanted))
    if more:
        delay_s = scaling.upscale_delay_s
    elif pending.wanted == 0:
        delay_s = scaling.downscale_to_zero_delay_s
    else:
        delay_s = scaling.downscale_delay_s
    if now_s - pending.since_s < delay_s:
        return seen.replicas, pending
    if more and _is_going(seen, pending, now_s, scaling.downscale_delay_s):
        return seen.replicas, begun
    return pending.wanted, None


def _is_going(seen: Seen, pending: Pending, now_s: float, within_s: float) -> bool:
    """Whether there is only a line from before, which at its pace is soon enough gone."""
    if _replicas(seen.load, BUSY) > seen.replicas:
        return False
    shrank_s = pending.drain_s - seen.drain_s
    return shrank_s > 0 and seen.drain_s * (now_s - pending.since_s) <= shrank_s * within_s


def _replicas(load: float, busy: float) -> int:
    """Replicas for so much load, each busy for that share of its time."""
    return math.ceil(load / busy - 1e-9)


class DrainPolicy:
    """A Ray Serve autoscaling policy. Ray makes one for each deployment, in its controller.

    Ray's own delays must be 0: it would wait once more after those here, which know the smallest
    step that was called for meanwhile.
    """

    def __init__(
        self,
        *,
        target_drain_s: float,
        upscale_delay_s: float,
        downscale_delay_s: float,
        downscale_to_zero_delay_s: float,
    ) -> None:
        """Take the settings; the bounds come from Ray with every call.

        Args:
            target_drain_s, upscale_delay_s, downscale_delay_s, downscale_to_zero_delay_s: as in
                ``Scaling``.
        """
        self._settings = {
            "target_drain_s": target_drain_s,
            "upscale_delay_s": upscale_delay_s,
            "downscale_delay_s": downscale_delay_s,
            "downscale_to_zero_delay_s": downscale_to_zero_delay_s,
        }

    def __call__(self, context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """Replicas to ask for, and the state that Ray gives back the next time."""
        scaling = Scaling(
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
            **self._settings,
        )
        state = context.policy_state.get("pending")
        replicas, pending = target_replicas(
            seen_by(context.target_num_replicas, context.aggregated_metrics or {}),
            scaling,
            Pending(**state) if state else None,
            context.current_time or 0.0,
        )
        return replicas, {"pending": asdict(pending) if pending else None}


def seen_by(replicas: int, metrics: Mapping[str, Mapping[Any, float]]) -> Seen:
    """What all replicas measured, as one.

    Args:
        replicas: how many are asked for.
        metrics: by name and by replica, what ``DemandMeter.measure`` gave.
    """
    loads = metrics.get("load", {})
    if not loads:
        return Seen(replicas, 0, 0.0, 0.0)
    # Every replica was told by every ingress what that one holds back: it is the same texts.
    held_s = max(metrics.get("held_s", {}).values(), default=0.0)
    drain_s = (sum(metrics.get("drain_s", {}).values()) + held_s) / len(loads)
    return Seen(replicas, len(loads), drain_s, sum(loads.values()))
