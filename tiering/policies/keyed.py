"""Orders by a number: the block with the least goes first."""

import heapq
from abc import abstractmethod
from typing import Any

from tiering.policies.policy import Ask, Name, Policy, Standing

_Key = tuple[float, int]


class Keyed(Policy):
    """Gives up the block with the least worth, and among equals the one that entered or was used first.

    A heap, in which a block may stand several times: it counts where it has its newest key. Parents are taken off when
    they come up, and put back when nothing follows them any more.
    """

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._keys: dict[Name, _Key] = {}
        self._heap: list[tuple[_Key, Name]] = []
        self._now = 0

    @abstractmethod
    def worth(self, name: Name) -> float:
        """Of a block that has just entered or been used: it goes before those that are worth more."""

    def _place(self, name: Name) -> None:
        self._now += 1
        self._keys[name] = key = (self.worth(name), self._now)
        self._push(key, name)

    def _push(self, key: _Key, name: Name) -> None:
        heapq.heappush(self._heap, (key, name))
        if len(self._heap) > 4 * len(self._keys) + 64:
            self._heap = [(key, name) for name, key in self._keys.items()]
            heapq.heapify(self._heap)

    def evict(self, ask: Ask, coming: Name | None) -> Name | None:  # noqa: ARG002 - the order does not depend on it
        held: list[Any] = []
        victim = None
        while self._heap:
            key, name = entry = heapq.heappop(self._heap)
            if self._keys.get(name) != key:
                continue
            standing = ask(name)
            if standing is Standing.FREE:
                victim = name
                break
            if standing is Standing.HELD:
                held.append(entry)
        for entry in held:
            heapq.heappush(self._heap, entry)
        if victim is not None:
            self._gone(victim, self._keys.pop(victim))
        return victim

    def _gone(self, name: Name, key: _Key) -> None:
        """A block with this key was given up for want of room."""

    def leave(self, name: Name) -> None:
        del self._keys[name]

    def freed(self, name: Name) -> None:
        self._push(self._keys[name], name)
