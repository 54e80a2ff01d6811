"""One tier's blocks in the order of a policy that is a plug-in: between its names and the core's ids."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np

from tiering.policies.policy import Ask, Name, Policy, PolicyError, Standing
from tiering.policies.view import Which
from tiering.residency import NO_BLOCK, Ids, Residency, Tier

_FEW_BLOCKS: Final = 16  # asked about one by one before it pays to look at all at once

ROOT: Name = -1
"""What a first block follows."""
_FREE, _PARENT, _HELD = Standing.FREE, Standing.PARENT, Standing.HELD


class Victims(Protocol):
    """Blocks that may go, in the order in which they should: a View of the LRU log, FirstToGo, or a TierOrder."""

    def peek(self, k: int) -> Ids:
        """Up to `k` of them, children before parents."""
        ...

    def first(self) -> int:
        """The only one of `peek(1)`, or NO_BLOCK."""
        ...

    def check(self) -> None:
        """Raise AssertionError if a block is missing."""
        ...


class TierOrder:
    """Tells a policy what happens to the blocks of one tier, keeps the leaf rule for it, and asks it for victims.

    A block is named by its fingerprint, so that a ghost is known again under another id. It is in the order from when its
    place is given out, or promised to it: see `coming`. What `peek` has answered is out of the order; if it has not left
    the tier by the next `peek` it is answered first, and if it is used it enters anew.
    """

    def __init__(
        self,
        tier: Tier,
        residency: Residency,
        policy: Policy,
        eligible: Which,
        is_eligible: Callable[[int], bool] | None = None,
    ) -> None:
        """`eligible`, `is_eligible`: whether blocks could leave, or one could, were it not for others that follow."""
        self._tier, self._residency, self._policy = tier, residency, policy
        self._eligible, self._is_eligible = eligible, is_eligible
        self._above: dict[Name, Name] = {}
        """Of each block in the order, the one that it follows."""
        self._position: dict[Name, int] = {}
        self._num_below: dict[Name, int] = {}
        """Blocks of the order that follow one directly, where there are any."""
        self._ids: dict[Name, int] = {}
        """Of those that have a place."""
        self._promised: set[Name] = set()
        """Those that have none yet."""
        self._coming: list[tuple[Name, Name, int]] = []
        self._picked: dict[Name, int] = {}

    # --- what happens in the tier ---------------------------------------------------------------------------------

    def coming(self, names: Sequence[Name], above: Sequence[Name], positions: Sequence[int]) -> None:
        """The next places that are asked for are for these blocks of a path, each below one of `above`.

        Those that are not given one before others are told of are forgotten.
        """
        self._forget_promises(self._promised.difference(names))
        self._coming = list(zip(names, above, positions, strict=True))[::-1]

    def begun(self, ids: Ids) -> None:
        """Blocks got places: on the device in the order of their path, below in that in which they came down."""
        self._coming.clear()
        blocks, above = ids.tolist(), self._residency.parent.take(ids).tolist()
        if self._tier is Tier.DEVICE:
            blocks.reverse()
            above.reverse()
        names = self._residency.fingerprint[blocks].tolist()
        positions = self._positions(blocks, above)
        for name, block, parent, position in zip(names, blocks, above, positions, strict=True):
            if name in self._above:
                self._promised.discard(name)
            else:
                self._enter(name, self._name(parent), position)
            self._ids[name] = block

    def used(self, ids: Ids) -> None:
        """A request found these blocks of a path here."""
        for name in self._residency.fingerprint[ids[::-1]].tolist():
            if name in self._picked:
                block = self._picked.pop(name)
                parent = self._residency.parent.item(block)
                self._enter(name, self._name(parent), self._depth(parent) + 1)
                self._ids[name] = block
            else:
                self._policy.use(name)

    def left(self, ids: Ids) -> None:
        """Blocks have lost their places."""
        for name in self._residency.fingerprint[ids].tolist():
            if self._picked.pop(name, None) is None:
                self._remove(name)
                self._policy.leave(name)

    # --- who goes -------------------------------------------------------------------------------------------------

    def peek(self, k: int, givers: Sequence[int] = ()) -> Ids:
        """Up to `k` blocks that may go, first those that should, children before parents.

        `givers`: the number of the owner who should give each of the first ones; where nothing of that owner's may go, anybody
        does. Raises PolicyError if the policy gives up one that may not.
        """
        if k <= 0:
            return np.empty(0, dtype=np.intp)
        told = bool(self._coming)
        # who has a place still, in a batch that is being copied down, is not given another by us
        coming = [row for row in self._coming if row[0] not in self._above and row[0] not in self._picked]
        self._coming = []
        ask = self._ask(k)
        again = iter([name for name, block in self._picked.items() if self._may_go_again(name, block)])
        found: list[int] = []
        num_free = len(coming) - k
        for free in coming[: max(0, num_free)]:  # there is a place for these
            self._promise(*free)
        needy: list[tuple[Name, Name, int] | None] = [None] * -num_free
        needy += coming[max(0, num_free) :]
        for at, row in enumerate(needy):
            victim = next(again, None)
            if victim is None:
                coming_name = None if row is None else row[0]
                if at < len(givers):
                    victim = self._policy.evict(self._among(ask, givers[at]), coming_name)
                if victim is None:
                    victim = self._policy.evict(ask, coming_name)
                if victim is None:
                    break
                if ask(victim) is not _FREE:
                    name = type(self._policy).__name__
                    raise PolicyError(f"the policy {name} gave up {victim}, which may not go")
                self._picked[victim] = self._ids[victim]
                self._remove(victim)
            found.append(self._picked[victim])
            if row is not None:
                self._promise(*row)
        if len(found) < k and self._promised and not told:
            # another asks than they were promised to: no block must stay for what may never follow it
            self._forget_promises(set(self._promised))
            return self.peek(k)
        return np.array(found, dtype=np.intp)

    def first(self) -> int:
        """The only block of `peek(1)`, NO_BLOCK if there is none."""
        coming = self._coming
        found = self.peek(1)
        if not len(found):
            self._coming = coming  # the same request will `peek`
            return NO_BLOCK
        return found.item(0)

    def _ask(self, k: int) -> Ask:
        """What tells standings while `k` blocks are chosen: meanwhile nobody leases, copies or gives back."""
        may_go: Callable[[int], Any]
        if self._is_eligible is not None and k <= _FEW_BLOCKS:
            may_go = self._is_eligible
        else:
            may_go = self._eligible(np.arange(self._residency.capacity)).tobytes().__getitem__
        ids, below = self._ids.get, self._num_below

        def ask(name: Name) -> Standing:
            block = ids(name)
            if block is None or not may_go(block):
                return _HELD
            return _PARENT if name in below else _FREE

        return ask

    def _among(self, ask: Ask, owner: int) -> Ask:
        """The same, but that all other owners' blocks are held."""
        ids, owner_of = self._ids.get, self._residency.cells.owner

        def ask_one(name: Name) -> Standing:
            block = ids(name)
            return ask(name) if block is not None and owner_of[block] == owner else _HELD

        return ask_one

    def _may_go_again(self, name: Name, block: int) -> bool:
        """Whether a block that was picked, and stayed, may be picked once more."""
        return name not in self._num_below and self._eligible(np.array([block], dtype=np.intp)).item()

    # --- the books ------------------------------------------------------------------------------------------------

    def _name(self, block: int) -> Name:
        return ROOT if block == NO_BLOCK else self._residency.fingerprint.item(block)

    def _positions(self, blocks: list[int], above: list[int]) -> list[int]:
        """Of each block, the last of a path first, how many come before it in its prompt."""
        found: dict[int, int] = {}
        for block, parent in zip(reversed(blocks), reversed(above), strict=True):
            found[block] = 1 + (found[parent] if parent in found else self._depth(parent))
        return [found[block] for block in blocks]

    def _depth(self, block: int) -> int:
        """The position of a block in its prompt; -1 for NO_BLOCK."""
        steps = -1
        while block != NO_BLOCK:
            known = self._position.get(self._name(block))
            if known is not None:
                return known + steps + 1
            steps += 1
            block = self._residency.parent.item(block)
        return steps

    def _enter(self, name: Name, above: Name, position: int) -> None:
        self._policy.enter(name, position)
        self._above[name] = above
        self._position[name] = position
        self._num_below[above] = self._num_below.get(above, 0) + 1

    def _promise(self, name: Name, above: Name, position: int) -> None:
        self._enter(name, above, position)
        self._promised.add(name)

    def _forget_promises(self, names: set[Name]) -> None:
        for name in names:
            self._remove(name)
            self._policy.leave(name)

    def _remove(self, name: Name) -> None:
        above = self._above.pop(name)
        del self._position[name]
        self._ids.pop(name, None)
        self._promised.discard(name)
        if self._num_below[above] > 1:
            self._num_below[above] -= 1
        else:
            del self._num_below[above]
            if above in self._above:
                self._policy.freed(above)

    def check(self) -> None:
        """Raise AssertionError unless the order has each block of the tier once, and knows what follows what."""
        residency = self._residency
        there = np.flatnonzero(residency.live & (residency.state[self._tier] != 0)).tolist()
        known = sorted([*self._ids.values(), *self._picked.values()])
        assert known == there, f"{self._tier.label} has blocks {there}, its order {known}"
        assert self._above.keys() == self._ids.keys() | self._promised, "a block is promised, or has a place"
        for name, block in [*self._ids.items(), *self._picked.items()]:
            assert self._name(block) == name, "a block has another name"
        below: dict[Name, int] = {}
        for name, block in self._ids.items():
            assert self._above[name] == self._name(residency.parent.item(block)), "a block follows another"
        for above in self._above.values():
            below[above] = below.get(above, 0) + 1
        assert below == self._num_below, "a block is miscounted below another"
