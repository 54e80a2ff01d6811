"""Slot memory in a numpy array, whose views can be made to wait or to fail."""

import numpy as np

GIVE_UP_S = 60.0  # a test that is right never waits so long, also where others keep every core busy and kernels are compiled


class SlotArray:
    """`before_view` is called with the slot before each view, on the thread that asks: it may wait, or raise."""

    def __init__(self, num_slots, block_bytes=64, *, fill=None) -> None:
        self.num_slots, self.block_bytes = num_slots, block_bytes
        self.bytes = np.zeros((num_slots, block_bytes), dtype=np.uint8)
        if fill is not None:
            self.bytes[:] = np.arange(num_slots, dtype=np.uint8)[:, None] + fill
        self.before_view = lambda slot: None
        self.address, self.piece_slots = self.bytes.ctypes.data, max(1, num_slots)

    def view(self, slot):
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} of {self.num_slots}")
        self.before_view(slot)
        return self.bytes[slot]

    def holds(self, slot, value):
        return bool((self.bytes[slot] == value).all())
