"""Whose turn it is: start-time fair queueing of what waits, by caller.

In: items with a caller, a cost and a weight. Out: the same in the order of their turns. Each caller
has a tag, the cost of what it was given over its weight; the next turn is that of the lowest tag.
One who had nothing waiting begins at the present tag: an unused share is lent and never saved up.
With one caller that is the order in which things came. Goyal, Vin and Cheng, "Start-time fair
queueing", 1996. It belongs to whoever holds its lock or its event loop.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: Callers that nothing is remembered of are forgotten once there are so many more than before.
_FORGET_AFTER = 64


@dataclass(eq=False, slots=True)
class _Account(Generic[T]):
    """One caller: what it has waiting, with (cost, number in order of arrival), and its tag."""

    weight: float
    tag: float
    items: dict[T, tuple[float, int]] = field(default_factory=dict)


class Turns(Generic[T]):
    """What waits, by caller; an item is there once."""

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
        """Let an item wait.

        Args:
            item: hashable.
            caller: whose.
            cost: expected; more than 0.
            weight: of the caller, as told last; more than 0.
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
        """Give items their turns: their callers are charged, and they wait no more.

        Args:
            items: which.
            callers: of each.
            costs: of each, where they are not those that ``add`` was told.
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
        """Charge callers for what is given to them now, before it is removed.

        Args:
            costs: by caller; of callers that have something waiting.
        """
        self._now = max(self._now, min(one.tag for one in self._accounts.values() if one.items))
        for caller, cost in costs.items():
            account = self._accounts[caller]
            account.tag += cost / account.weight

    def order(self, *, by_turns: bool = True) -> Iterator[T]:
        """What waits, by turns; ties, such as callers who had nothing lately, as they came.

        Nothing may be added or removed meanwhile.

        Args:
            by_turns: false for all as they came: where nobody asks for much, that is as fair, and
                nobody's second text waits for another one's first.
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
        """Drop callers with nothing waiting whose tag is past: they would begin at the present."""
        if not self._waiting:
            self._accounts.clear()
        self._accounts = {
            caller: one
            for caller, one in self._accounts.items()
            if one.items or one.tag > self._now
        }
        self._forget_at = 2 * len(self._accounts) + _FORGET_AFTER
