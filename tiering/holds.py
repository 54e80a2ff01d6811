"""What must stay: paths that are held in a tier, or as near to the model, whoever else wants the place."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tiering.residency import Ids, Mask, Residency, Tier


@dataclass(slots=True, eq=False)
class Hold:
    """A path from a first block, held in a tier until it is released."""

    ids: Ids
    tier: Tier
    released: bool = field(default=False, init=False)


class Holds:
    """Owns the residency's columns `held`: how many holds want a block in a tier at least.

    A block that is held anywhere keeps its last copy, and its place in the index although nothing may be left of it; one
    that is held on the device, or in host memory, keeps that copy. Since a hold is on a path, what leads to a held block
    is held too.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._holds: list[Hold] = []
        self.are_any = False
        """Whether anything is held. Asked for each block that goes: an attribute is read fastest."""
        self.num_blocks = [0] * len(Tier)
        """Blocks that are held, by the tier that they are held in; one may count in several."""

    def __len__(self) -> int:
        return len(self._holds)

    def __iter__(self) -> Iterator[Hold]:
        return iter(list(self._holds))

    def hold(self, ids: Ids, tier: Tier) -> Hold:
        """Hold a path."""
        held = self._residency.held[tier]
        self.num_blocks[tier] += int(np.count_nonzero(held[ids] == 0))
        held[ids] += 1
        hold = Hold(ids, tier)
        self._holds.append(hold)
        self.are_any = True
        return hold

    def release(self, hold: Hold) -> None:
        """Undo that."""
        assert not hold.released, "a hold is released once"
        hold.released = True
        self._holds.remove(hold)
        self.are_any = bool(self._holds)
        held = self._residency.held[hold.tier]
        held[hold.ids] -= 1
        self.num_blocks[hold.tier] -= int(np.count_nonzero(held[hold.ids] == 0))

    def num_more(self, ids: Ids, tier: Tier) -> int:
        """How many blocks more would be held in the tier."""
        return int(np.count_nonzero(self._residency.held[tier][ids] == 0))

    def are_held(self, ids: Ids) -> Mask:
        """Which blocks are held anywhere."""
        device, host, disk = self._residency.held
        mask: Mask = (device.take(ids) | host.take(ids) | disk.take(ids)) != 0
        return mask

    def are_held_in(self, tier: Tier, ids: Ids) -> Mask:
        """Which are held in this tier."""
        mask: Mask = self._residency.held[tier].take(ids) != 0
        return mask

    def is_held(self, block: int) -> bool:
        """Whether one block is held anywhere."""
        device, host, disk = self._residency.cells.held
        return bool(device[block] or host[block] or disk[block])

    def check(self) -> None:
        """Raise AssertionError unless the columns say what the holds do."""
        residency = self._residency
        assert self.are_any == bool(self._holds), "holds are there, or not"
        counted = np.zeros((len(Tier), residency.capacity), dtype=np.int64)
        for hold in self._holds:
            assert len(hold.ids), "a hold is on something"
            assert residency.live[hold.ids].all(), "a held block has left the index"
            parents = residency.parent[hold.ids]
            assert parents[0] < 0, "a held path starts at a first block"
            assert np.array_equal(parents[1:], hold.ids[:-1]), "a hold is on a path"
            counted[hold.tier, hold.ids] += 1
        assert (counted == residency.held).all(), "a hold is lost"
        found = [int(np.count_nonzero(row)) for row in counted]
        assert found == self.num_blocks, f"{self.num_blocks} held blocks counted, {found} found"
