"""What runs next: whose turn it is, at which N, with which texts.

In: the texts that wait, by turns, those in forwards that run, and who floods. Out: a batch, or how
many texts are worth waiting for. A pure function, so that the simulation and the engine do the
same; it joins the policy and the planner.
"""

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from muxserve.engine.policy import decide, turn_s
from muxserve.engine.slots import Plan, Waiting, plan
from muxserve.engine.times import ForwardTimes


class WaitingOfCaller(Waiting, Protocol):
    """A text that waits, and whose it is."""

    @property
    def caller(self) -> str:
        """Who asks."""


W = TypeVar("W", bound=WaitingOfCaller)


def next_batch(
    waiting: Sequence[W],
    running: Sequence[W],
    floods: Collection[str],
    times: ForwardTimes,
    widths: Sequence[int],
    target_s: float,
    *,
    in_flight: int,
    max_groups: int,
    behind: int = 0,
    last: bool = False,
) -> Plan[W] | int:
    """The next batch, or how many texts are enough for one.

    Where a caller floods, who asks for little is served as if there were no flood: his texts are in
    batches of their own, at the N that they need, and he waits for a turn of the flood at most.
    Turns of a flood are short.

    Args:
        waiting: each text that waits, the one with the next turn first; not empty.
        running: each text in the forwards that run now.
        floods: callers who ask for much beside others who ask for little; empty where there are
            none.
        times, widths, target_s, in_flight, max_groups: as of ``policy.decide``.
        behind: texts that wait behind ``waiting``, where the line is too long to look at.
        last: no more texts come, so that none are waited for.
    """
    of_flood = waiting[0].caller in floods
    if floods:
        waiting = [text for text in waiting if (text.caller in floods) == of_flood]
        if not of_flood:
            running = [text for text in running if text.caller not in floods]
            behind = 0
    decision = decide(
        waiting,
        running,
        times,
        widths,
        target_s,
        in_flight=in_flight,
        max_groups=max_groups,
        behind=behind,
    )
    n, groups = decision.num_instances, decision.max_groups
    # Who has waited for a flood's turn waits for no other texts.
    waits = of_flood or not floods
    if waits and len(waiting) < decision.enough and not last:
        return decision.enough
    most_s = turn_s(waiting[0], n, times, target_s) if of_flood else None
    return plan(waiting, n, times, widths, groups, most_s)
