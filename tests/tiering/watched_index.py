"""The core, and whoever gets a slot on the device next: it writes there at once, before any move that is asked for later."""

import numpy as np

from tiering.index import Index
from tiering.lease import Lease
from tiering.residency import Tier
from tiering.slot_table import SlotState


class WatchedIndex(Index):
    """Calls `overwrite(slots)` for the device slots that a lease was given and nothing lies in, and for those given back."""

    def __init__(self, config, root_key, overwrite, chooser=None) -> None:
        super().__init__(config, root_key, block_bytes=16, chooser=chooser)
        self._overwrite = overwrite

    def admit(self, tokens, max_blocks, **how):
        outcome = super().admit(tokens, max_blocks, **how)
        if isinstance(outcome, Lease):
            self._given(outcome, 0)
        return outcome

    def grow(self, lease, num_blocks):
        before = len(lease.slots)
        room = super().grow(lease, num_blocks)
        self._given(lease, before)
        return room

    def publish(self, lease, tokens, start, end):
        super().publish(lease, tokens, start, end)
        self.overwrite_what_is_free()

    def preempt(self, lease, num_used):
        stash = super().preempt(lease, num_used)
        self.overwrite_what_is_free()
        return stash

    def release(self, lease, told=None):
        super().release(lease, told)
        self.overwrite_what_is_free()

    def _given(self, lease, start):
        empty = start + np.flatnonzero(~lease.ready[start : len(lease.slots)])
        self._overwrite(lease.slots[empty].tolist())

    def overwrite_what_is_free(self):
        table = self._holdings.slots[Tier.DEVICE]
        states = table.states(np.arange(table.num_slots))
        self._overwrite(np.flatnonzero(states == SlotState.FREE).tolist())
