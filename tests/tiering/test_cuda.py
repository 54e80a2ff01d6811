"""What the CUDA devices do that others need not: notices by stream, and an end whatever CUDA says."""

import threading

import pytest

from kvstore.memory import MemoryStore
from tests.tiering.slot_arrays import GIVE_UP_S, SlotArray
from tests.tiering.virtual_cuda import COMPUTE, CudaError, VirtualCuda
from tests.tiering.virtual_process import LAYOUT, NAMESPACE
from tiering.cache import TieredCache
from tiering.index_config import IndexConfig
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.cuda import CudaDevice, CudaStream
from tiering.transfer.mover import WHOLE_SLOT
from tiering.transfer.staged import Ring, StagedCudaDevice
from tiering.transfer.virtual import VirtualDevice, VirtualMemory

SIZE = 8


def kvtide_threads():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("kvtide")}


def test_what_has_come_up_is_told_while_a_copy_down_goes_on():
    virtual = VirtualDevice(lambda ready: ready[0])
    runtime = VirtualCuda(virtual)
    device = CudaDevice(runtime, lambda: COMPUTE)
    memories = [runtime.owns(VirtualMemory(2, SIZE, page_locked=False)) for _ in range(2)]
    down, up = device.stream("down"), device.stream("up")
    told = {"down": threading.Semaphore(0), "up": threading.Semaphore(0)}
    for name, stream in (("down", down), ("up", up)):
        device.copy(stream, memories[0], [name == "up"], memories[1], [0], WHOLE_SLOT)
        device.notify(device.record(stream), told[name].release)
    virtual.run(only=virtual.streams[2:])
    assert told["up"].acquire(timeout=GIVE_UP_S)
    assert not told["down"].acquire(blocking=False)
    device.close()
    assert told["down"].acquire(timeout=GIVE_UP_S)


class BrokenCuda(VirtualCuda):
    """The context is gone: every wait says so."""

    def streamSynchronize(self, stream):
        raise CudaError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def streamDestroy(self, stream):
        raise CudaError("cudaErrorIllegalAddress: an illegal memory access was encountered")


@pytest.mark.parametrize("kind", [CudaDevice, StagedCudaDevice])
def test_threads_end_whatever_cuda_says(kind):
    before = kvtide_threads()
    device = kind(BrokenCuda(VirtualDevice(lambda ready: ready[0]), runs_itself=True), lambda: COMPUTE)
    device.stream("up"), device.stream("down")
    with pytest.raises(CudaError):
        device.close()
    assert kvtide_threads() == before
    device.close()


class BrokenDevice(CpuDevice):
    def close(self):
        super().close()
        raise RuntimeError("the GPU has fallen off the bus")


def test_the_store_is_closed_whatever_a_device_says():
    """Or the next start would find the disk in use, and not cleanly left."""
    store = MemoryStore(NAMESPACE, LAYOUT, 1 << 20)
    cache = TieredCache(
        IndexConfig(
            block_tokens=2, device_slots=2, host_slots=2, disk_bytes=100, record_bytes=store.max_stored_bytes
        ),
        root_key=NAMESPACE.root_key,
        device=BrokenDevice(),
        pool=SlotArray(2, LAYOUT.block_bytes),
        slab=SlotArray(2, LAYOUT.block_bytes),
        store=store,
        wake=lambda: None,
    )
    with pytest.raises(RuntimeError, match="bus"):
        cache.close()
    assert cache.close(), "its threads have ended"
    with pytest.raises(Exception, match="closed"):
        store.sync()


def test_buffers_are_there_again_after_a_wait_that_failed():
    class OnceBroken(VirtualCuda):
        fails = False

        def eventSynchronize(self, event):
            if self.fails:
                self.fails = False
                raise CudaError("cudaErrorUnknown")
            super().eventSynchronize(event)

    runtime = OnceBroken(VirtualDevice(lambda ready: ready[0]), runs_itself=True)
    memory = runtime.owns(VirtualMemory(8, SIZE, page_locked=False))
    host, other = SlotArray(8, SIZE, fill=10), SlotArray(8, SIZE)
    ring = Ring(runtime, CudaStream(COMPUTE), SIZE)
    ring.copy(memory.address, host.address, 8 * SIZE, to_host=False, from_host=True)
    ring.drain()
    runtime.fails = True
    with pytest.raises(CudaError):
        ring.copy(other.address, memory.address, 8 * SIZE, to_host=True, from_host=False)
    ring.drain()
    other.bytes[:] = 0
    ring.copy(other.address, memory.address, 2 * SIZE, to_host=True, from_host=False)
    ring.drain()
    assert other.bytes[:, 0].tolist() == [10, 11, 0, 0, 0, 0, 0, 0], (
        "nothing comes late to where it belonged before"
    )
    ring.close()
    assert not runtime.allocated
