"""The same mover over the CUDA device and a runtime without a GPU: it is what CUDA is told that is walked through."""

import threading

from tests.tiering.mover_walk import BLOCK_BYTES, MoverWalk
from tests.tiering.slot_arrays import GIVE_UP_S
from tests.tiering.virtual_cuda import COMPUTE, VirtualCuda
from tiering.transfer.cuda import CudaDevice


class CudaMoverWalk(MoverWalk):
    def under_the_mover(self):
        self.called = threading.Event()
        self.runtime = VirtualCuda(self.device)
        self.runtime.owns(self.pool)
        end = self.slab.address + self.slab.num_slots * BLOCK_BYTES
        self.runtime.locked[self.slab.address] = range(self.slab.address, end)
        self.runtime.refuses = self.refuses
        return CudaDevice(self.runtime, lambda: COMPUTE)

    def refuses(self, to):
        """The driver does not take a copy, or any of one that is several."""
        for side, memory in (("device_slots", self.pool), ("host_slots", self.slab)):
            slot = (to - memory.address) // BLOCK_BYTES
            if 0 <= slot < memory.num_slots:
                found = [transfer for transfer in self.transfers.values() if slot in getattr(transfer, side)]
                mine = [transfer for transfer in found if transfer.up == (memory is self.pool)]
                return super().fails(memory, getattr(mine[0], side))
        raise AssertionError(f"a copy to {to}, which is nobody's")

    def wake(self):
        """On the thread that waits for events."""
        super().wake()
        self.called.set()

    def sleep(self):
        self.poll()
        self.called.clear()
        if self.mover.in_flight:
            self.device.run()
            assert self.called.wait(GIVE_UP_S), "copies have ended, the loop sleeps, and nobody wakes it"
            self.poll()

    def end(self):
        counts = super().end()
        del self.runtime.locked[self.slab.address]
        with self.runtime.nothing_left():
            return counts
