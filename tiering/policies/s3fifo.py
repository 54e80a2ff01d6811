"""S3-FIFO (Yang, Zhang, Qiu, Yue, Vigfusson, SOSP 2023): what is seen once must not push out what is seen again."""

from collections import OrderedDict
from typing import Final

from tiering.policies.policy import Ask, Name, Policy, Standing

_SMALL_SHARE: Final = 10
_MOST_USES: Final = 3
_PROMOTED_AT: Final = 2
_ROUNDS: Final = _MOST_USES + 2

_Queue = OrderedDict[Name, None]


class S3FIFO(Policy):
    """A small queue that most blocks only pass through, a main one for those that are used, and ghosts.

        new ----> small (a tenth) --used twice, or followed--> main <---+ used
                    |                                           |  `----'
                    +--> ghosts --comes back--> main            +--> gone

    Who is followed by others counts as used. A held block goes to the end of its queue.
    """

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._small_blocks = max(1, capacity_blocks // _SMALL_SHARE)
        self._most_ghosts = max(1, capacity_blocks - self._small_blocks)
        self._small, self._main, self._ghosts = _Queue(), _Queue(), _Queue()
        self._uses: dict[Name, int] = {}

    def enter(self, name: Name, position: int) -> None:  # noqa: ARG002 - all are worth the same
        self._uses[name] = 0
        if name in self._ghosts:
            del self._ghosts[name]
            self._main[name] = None
        else:
            self._small[name] = None

    def use(self, name: Name) -> None:
        if (uses := self._uses[name]) < _MOST_USES:
            self._uses[name] = uses + 1

    def evict(self, ask: Ask, coming: Name | None) -> Name | None:  # noqa: ARG002 - the order does not depend on it
        victim = None
        if len(self._small) >= self._small_blocks or not self._main:
            victim = self._from_small(ask)
        for take in (self._from_main, self._from_small, self._from_main):
            if victim is None:
                victim = take(ask)
        if victim is not None:
            del self._uses[victim]
        return victim

    def _from_small(self, ask: Ask) -> Name | None:
        small, uses = self._small, self._uses
        for _ in range(len(small)):
            name = next(iter(small))
            standing = ask(name)
            if standing is Standing.HELD:
                small.move_to_end(name)
                continue
            del small[name]
            if standing is Standing.FREE and uses[name] < _PROMOTED_AT:
                self._ghosts[name] = None
                if len(self._ghosts) > self._most_ghosts:
                    self._ghosts.popitem(last=False)
                return name
            uses[name] = 0
            self._main[name] = None
        return None

    def _from_main(self, ask: Ask) -> Name | None:
        main, uses = self._main, self._uses
        for _ in range(_ROUNDS * len(main)):
            name = next(iter(main))
            if ask(name) is Standing.FREE:
                if not uses[name]:
                    del main[name]
                    return name
                uses[name] -= 1
            main.move_to_end(name)
        return None

    def leave(self, name: Name) -> None:
        del self._uses[name]
        if name in self._small:
            del self._small[name]
        else:
            del self._main[name]
