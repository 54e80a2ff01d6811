"""What lies between host memory and a device: copies as the engine makes them, and as one plain copy makes them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np

from engine.pool import DevicePool
from engine.tiers import compute_stream
from kvstore.host import HostSlab
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.cuda import CudaDevice
from tiering.transfer.device import Device
from tiering.transfer.opening import HostOpening
from tiering.transfer.page_locks import PageLocks
from tiering.transfer.runtime import (
    HOST_PORTABLE,
    MEMCPY_DEFAULT,
    STREAM_NON_BLOCKING,
    CudaRuntime,
    cupy_runtime,
)


class PlainCopy(Protocol):
    """One copy of as many bytes as the pool has: into it, or out of it. Returns when they are there."""

    def __call__(self, *, up: bool) -> None: ...


class CpuLink:
    """Memory to memory, on a machine without a GPU."""

    def device(self) -> Device:
        return CpuDevice()

    @contextmanager
    def ready(self, slab: HostSlab) -> Iterator[None]:
        """The slab's pages are there."""
        with HostOpening(slab, slab.num_slots, None):
            yield

    @contextmanager
    def plain(self, pool: DevicePool) -> Iterator[PlainCopy]:
        """A copy between one buffer and the pool."""
        slots = pool._bytes[: pool.num_slots]
        buffer = np.zeros_like(slots)

        def copy(*, up: bool) -> None:
            np.copyto(*((slots, buffer) if up else (buffer, slots)))

        yield copy


class CudaLink:
    """Page-locked memory to a GPU's."""

    def __init__(self, runtime: CudaRuntime, compute: Callable[[], int]) -> None:
        """See CudaDevice."""
        self._runtime, self._compute = runtime, compute

    def device(self) -> Device:
        return CudaDevice(self._runtime, self._compute)

    @contextmanager
    def ready(self, slab: HostSlab) -> Iterator[None]:
        """The slab's pages are there, and page-locked. Raises RuntimeError where CUDA refuses to."""
        locks = PageLocks(self._runtime)
        with ExitStack() as stack:
            stack.callback(locks.unlock_all)
            opening = stack.enter_context(HostOpening(slab, slab.num_slots, locks.lock))
            if opening.refused is not None:
                raise RuntimeError(f"host memory could not be page-locked: {opening.refused}")
            yield

    @contextmanager
    def plain(self, pool: DevicePool) -> Iterator[PlainCopy]:
        """A cudaMemcpyAsync between one page-locked buffer and the pool."""
        num_bytes = pool.num_slots * pool.block_bytes
        with ExitStack() as stack:
            buffer = self._runtime.hostAlloc(num_bytes, HOST_PORTABLE)
            stack.callback(self._runtime.freeHost, buffer)
            stream = self._runtime.streamCreateWithFlags(STREAM_NON_BLOCKING)
            stack.callback(self._runtime.streamDestroy, stream)

            def copy(*, up: bool) -> None:
                to, fro = (pool.address, buffer) if up else (buffer, pool.address)
                self._runtime.memcpyAsync(to, fro, num_bytes, MEMCPY_DEFAULT, stream)
                self._runtime.streamSynchronize(stream)

            yield copy


Link = CpuLink | CudaLink


def link_to(device: str) -> Link:
    """The link to "cpu" or "cuda". Raises ValueError where cupy is missing."""
    if device == "cpu":
        return CpuLink()
    return CudaLink(cupy_runtime(), compute_stream)
