"""Copies of blocks with nothing around them: no quotas, no orders."""

import numpy as np

from tiering.copies import Copies
from tiering.owners import Owners
from tiering.policies.lru import LRU
from tiering.quotas import Shares
from tiering.residency import Residency, Tier
from tiering.slot_table import SlotState, SlotTable

NUM_SLOTS = 4096


class PlainCopies(Copies):
    """In two tables of slots, and on disk."""

    def __init__(self, residency: Residency, order: LRU | None = None, num_slots: int = NUM_SLOTS) -> None:
        owners = Owners()
        shares = Shares(residency, owners, None, capacity=lambda _: 0)
        order = LRU(residency) if order is None else order
        super().__init__(residency, order, owners, shares, SlotTable(num_slots), SlotTable(num_slots))

    def begin(self, tier: Tier, ids, num_bytes: int = 1):
        """Have copies begun, in slots that are free, or of so many bytes. Where they are."""
        if tier is Tier.DISK:
            places = np.full(len(ids), num_bytes)
        else:
            places = self.slots[tier].take(len(ids), SlotState.IN_FLIGHT)
        self.expect(tier, ids, places)
        return places

    def finish(self, tier: Tier, ids) -> None:
        """Have them whole: on disk as large as was thought."""
        sizes = self.residency.place[tier][ids].astype(np.int64)
        self.arrived(tier, ids, sizes) if tier is Tier.DISK else self.arrived(tier, ids)

    def drop(self, tier: Tier, ids, *, were_whole: bool = True) -> None:
        """Have them go."""
        self.left(tier, ids) if were_whole else self.failed(tier, ids)
