"""Whose turn it is: start-time fair queueing of waiting items, by caller.

In: items with a caller, a cost and a weight. Out: the same in the order of their turns. Each caller
has a tag, the cost of what it was given over its weight; the lowest tag has the next turn. A caller
that had nothing waiting begins at the present tag: an unused share is lent and never saved up. With
one caller, this is the order of arrival. See Goyal, Vin and Cheng, "Start-time fair queueing",
1996. Not thread-safe: it has an owner with a lock or an event loop.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: Callers with nothing to remember are forgotten once there are this many more than before.
_FORGET_AFTER = 64


@dataclass(eq=False, slots=True)
class _Account(Generic[T]):
    """One caller: what it has waiting, with (cost, number in order of arrival), and its tag."""

    weight: float
    tag: float
    items: dict[T, tuple[float, int]] = field(default_factory=dict)


class Turns(Generic[T]):
    """Waiting items by caller; each item is there once."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[T]] = {}
        self._now = 0.0
        self._waiting = 0
        self._arrivals = 0
        self._forget_at = _FORGET_AFTER

    def __len__(self) -> int:
        return self._waiting

    @property
    def shared(self) -> bool:
        """Whether more than one caller is known."""
        return len(self._accounts) > 1

    def add(self, item: T, caller: str, cost: float, weight: float = 1.0) -> None:
        """Add a waiting item.

        Args:
            item: hashable.
            caller: name of its caller.
            cost: expected; more than 0.
            weight: of the caller from now on; more than 0.
        """
        account = self._accounts.get(caller)
        if account is None:
            if len(self._accounts) >= self._forget_at:
                self._forget()
            account = self._accounts[caller] = _Account(weight, self._now)
        account.weight = weight
        if not account.items and account.tag < self._now:
            account.tag = self._now
        self._arrivals += 1
        account.items[item] = cost, self._arrivals
        self._waiting += 1

    def holds(self, item: T, caller: str) -> bool:
        """Whether the item waits."""
        account = self._accounts.get(caller)
        return account is not None and item in account.items

    def remove(self, item: T, caller: str) -> None:
        """Take an item out without a turn."""
        del self._accounts[caller].items[item]
        self._waiting -= 1

    def take(
        self, items: Sequence[T], callers: Sequence[str], costs: Sequence[float] | None = None
    ) -> None:
        """Give items their turns: charge their callers, and remove them.

        Args:
            items: which.
            callers: of each.
            costs: of each; by default those given to ``add``.
        """
        if items and self.shared:
            if costs is None:
                pairs = zip(items, callers, strict=True)
                costs = [self._accounts[caller].items[item][0] for item, caller in pairs]
            charges: defaultdict[str, float] = defaultdict(float)
            for caller, cost in zip(callers, costs, strict=True):
                charges[caller] += cost
            self.charge(charges)
        for item, caller in zip(items, callers, strict=True):
            self.remove(item, caller)

    def charge(self, costs: Mapping[str, float]) -> None:
        """Charge callers for items that are about to be removed.

        Args:
            costs: by caller; each has something waiting.
        """
        self._now = max(self._now, min(one.tag for one in self._accounts.values() if one.items))
        for caller, cost in costs.items():
            account = self._accounts[caller]
            account.tag += cost / account.weight

    def order(self, *, by_turns: bool = True) -> Iterator[T]:
        """The waiting items by turns; ties, such as callers new to the line, by arrival.

        Nothing may be added or removed meanwhile.

        Args:
            by_turns: false for all by arrival. While nobody asks for much, that is as fair, and
                nobody's second text waits for another caller's first.
        """
        accounts = [one for one in self._accounts.values() if one.items]
        if len(accounts) == 1:
            return iter(accounts[0].items)
        return self._merged(accounts, float(by_turns))

    def clear(self) -> None:
        """Forget everything."""
        self._accounts.clear()
        self._waiting = 0

    @staticmethod
    def _merged(accounts: list[_Account[T]], tags: float) -> Iterator[T]:
        rests = [iter(one.items.items()) for one in accounts]
        heap: list[tuple[float, int, int, T, float]] = []
        for index, account in enumerate(accounts):
            item, (cost, number) = next(rests[index])
            heap.append((tags * account.tag, number, index, item, cost))
        heapq.heapify(heap)
        while heap:
            tag, _, index, item, cost = heap[0]
            yield item
            following = next(rests[index], None)
            if following is None:
                heapq.heappop(heap)
                continue
            tag += tags * cost / accounts[index].weight
            item, (cost, number) = following
            heapq.heapreplace(heap, (tag, number, index, item, cost))

    def _forget(self) -> None:
        """Drop callers with nothing waiting and a past tag: they would begin at the present one."""
        if not self._waiting:
            self._accounts.clear()
        self._accounts = {
            caller: one
            for caller, one in self._accounts.items()
            if one.items or one.tag > self._now
        }
        self._forget_at = 2 * len(self._accounts) + _FORGET_AFTER
