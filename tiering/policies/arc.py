"""ARC (Megiddo, Modha, FAST 2003): as much for what is new as for what is used, as far as ghosts say that either pays."""

from collections import OrderedDict
from typing import Final

from tiering.policies.policy import Ask, Name, Policy, Standing

_LOOKED_AT: Final = 256
"""Blocks of one list that are asked about before the other list gives way."""

_Queue = OrderedDict[Name, None]


class ARC(Policy):
    """Two lists by last use, of blocks seen once and more often, each with its ghosts; a hit among these moves the border.

    ghosts once | seen once .......... | .......... seen more often | ghosts more often
                                     target
    """

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._capacity = capacity_blocks
        self._once, self._often = _Queue(), _Queue()
        self._once_ghosts, self._often_ghosts = _Queue(), _Queue()
        self._target = 0.0
        """How many blocks may be those that were seen once."""

    def enter(self, name: Name, position: int) -> None:  # noqa: ARG002 - all are worth the same
        once, often = self._once_ghosts, self._often_ghosts
        if name in once or name in often:
            del (once if name in once else often)[name]
            self._often[name] = None
        else:
            self._once[name] = None
        while once and len(self._once) + len(once) > self._capacity:
            once.popitem(last=False)
        size = len(self._once) + len(self._often) + len(once)
        while often and size + len(often) > 2 * self._capacity:
            often.popitem(last=False)

    def use(self, name: Name) -> None:
        if name in self._once:
            del self._once[name]
            self._often[name] = None
        else:
            self._often.move_to_end(name)

    def evict(self, ask: Ask, coming: Name | None) -> Name | None:
        self._adapt(coming)
        num_once = len(self._once)
        even = coming in self._often_ghosts and num_once == int(self._target)
        lists = [(self._once, self._once_ghosts), (self._often, self._often_ghosts)]
        if not (num_once and (num_once > self._target or even)):
            lists.reverse()
        for limit in (_LOOKED_AT, len(self._once) + len(self._often)):
            for names, ghosts in lists:
                victim = _first(names, ask, limit)
                if victim is not None:
                    del names[victim]
                    ghosts[victim] = None
                    return victim
        return None

    def _adapt(self, coming: Name | None) -> None:
        once, often = max(1, len(self._once_ghosts)), max(1, len(self._often_ghosts))
        if coming in self._once_ghosts:
            self._target = min(self._capacity, self._target + max(1.0, len(self._often_ghosts) / once))
        elif coming in self._often_ghosts:
            self._target = max(0.0, self._target - max(1.0, len(self._once_ghosts) / often))

    def leave(self, name: Name) -> None:
        if name in self._once:
            del self._once[name]
        else:
            del self._often[name]


def _first(names: _Queue, ask: Ask, limit: int) -> Name | None:
    """The first of the oldest `limit` names that may go."""
    for number, name in enumerate(names):
        if number >= limit:
            break
        if ask(name) is Standing.FREE:
            return name
    return None
