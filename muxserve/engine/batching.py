"""The next batch: whose turn it is, at which N, with which texts.

In: the waiting texts in order of turns, those in running forwards, and the callers that flood. Out:
a batch, or how many texts to wait for. A pure function that joins the policy and the planner, so
the simulation and the engine do the same.
"""

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from muxserve.engine.policy import decide, turn_s
from muxserve.engine.slots import Plan, Waiting, plan
from muxserve.engine.times import ForwardTimes


class WaitingOfCaller(Waiting, Protocol):
    """A waiting text and its caller."""

    @property
    def caller(self) -> str:
        """Name of the caller."""


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

    While a caller floods, callers that ask for little are served as if it did not: their texts get
    batches of their own, at the N that they need, and wait for at most one turn of the flood. Turns
    of a flood are short.

    Args:
        waiting: the waiting texts, the one with the next turn first; not empty.
        running: the texts in the forwards that run now.
        floods: callers that ask for much while others ask for little; may be empty.
        times, widths, target_s, in_flight, max_groups: as in ``policy.decide``.
        behind: texts that wait behind ``waiting``, if the line is too long to look at.
        last: no more texts will come, so none are waited for.
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
    # A text that has waited for a flood's turn does not wait for other texts too.
    waits = of_flood or not floods
    if waits and len(waiting) < decision.enough and not last:
        return decision.enough
    most_s = turn_s(waiting[0], n, times, target_s) if of_flood else None
    return plan(waiting, n, times, widths, groups, most_s)
