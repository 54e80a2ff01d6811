"""The CUDA device where the driver does not page-lock the host's memory: copies go by way of small buffers that it gives.

A thread for each direction copies between host memory and its buffers, so the host waits where streams would: slower,
and the same in every other respect. Some sandboxes and virtual machines need it.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import numpy as np

from kvstore.slots import SlotMemory
from tiering.transfer.cpu import CpuEvent, CpuStream, Wait
from tiering.transfer.cuda import CudaEvent, CudaStream, Events
from tiering.transfer.runtime import HOST_PORTABLE, MEMCPY_DEFAULT, STREAM_NON_BLOCKING, CudaRuntime

BUFFER_BYTES = 4 << 20
NUM_BUFFERS = 2
"""One is copied from or to by the host while the other is by the device."""


@dataclass(slots=True)
class _Buffer:
    address: int
    copied: CudaEvent | None = None
    """Its last copy from or to the device."""
    then_to: int | None = None
    """Where in host memory its bytes belong after that, and how many."""
    num_bytes: int = 0


class Ring:
    """Buffers that are used in turn, on one CUDA stream. One thread calls it."""

    def __init__(self, runtime: CudaRuntime, stream: CudaStream, num_bytes: int) -> None:
        self._runtime, self._stream, self._num_bytes = runtime, stream, num_bytes
        self._events = Events(runtime)
        self._buffers = [_Buffer(runtime.hostAlloc(num_bytes, HOST_PORTABLE)) for _ in range(NUM_BUFFERS)]

    def copy(self, to: int, fro: int, num_bytes: int, *, to_host: bool, from_host: bool) -> None:
        """Copy bytes, from host or device memory to either. They have arrived when `drain` returns."""
        for begin in range(0, num_bytes, self._num_bytes):
            size = min(self._num_bytes, num_bytes - begin)
            buffer = self._buffers[0]
            self._buffers = [*self._buffers[1:], buffer]
            self._finish(buffer)
            if from_host:
                ctypes.memmove(buffer.address, fro + begin, size)  # releases the GIL
            else:
                self._enqueue(buffer.address, fro + begin, size)
            if to_host:
                buffer.then_to, buffer.num_bytes = to + begin, size
            else:
                self._enqueue(to + begin, buffer.address, size)
            buffer.copied = self._events.record(self._stream)

    def _enqueue(self, to: int, fro: int, num_bytes: int) -> None:
        self._runtime.memcpyAsync(to, fro, num_bytes, MEMCPY_DEFAULT, self._stream.handle)

    def _finish(self, buffer: _Buffer) -> None:
        """The buffer is free: its bytes are where they belong."""
        copied, then_to = buffer.copied, buffer.then_to
        buffer.copied = buffer.then_to = (
            None  # also after an error: where it belonged may be somebody else's next time
        )
        if copied is not None:
            self._runtime.eventSynchronize(copied.handle)
            if then_to is not None:
                ctypes.memmove(then_to, buffer.address, buffer.num_bytes)

    def drain(self) -> None:
        """Wait until everything has arrived. Raises the last error, when nothing is under way any more."""
        with ExitStack() as stack:
            for buffer in reversed(self._buffers):
                stack.callback(self._finish, buffer)

    def close(self) -> None:
        """Give the buffers back, which must have been drained."""
        while self._buffers:
            self._runtime.freeHost(self._buffers.pop().address)
        self._events.close()


class _Lane(CpuStream):
    """A thread with a CUDA stream and buffers of its own."""

    def __init__(self, name: str, runtime: CudaRuntime, ordinal: int, buffer_bytes: int) -> None:
        self._runtime = runtime
        self.stream = CudaStream(runtime.streamCreateWithFlags(STREAM_NON_BLOCKING))
        self.ring = Ring(runtime, self.stream, buffer_bytes)
        super().__init__(name)
        self.put(lambda: runtime.setDevice(ordinal))

    def close(self) -> None:
        super().close()
        with ExitStack() as stack:
            stack.callback(self._runtime.streamDestroy, self.stream.handle)
            self.ring.close()


class _Computed:
    """A point in the compute stream, for which threads wait themselves."""

    def __init__(self, runtime: CudaRuntime, event: CudaEvent) -> None:
        self._runtime, self.event = runtime, event

    def wait(self) -> None:
        with suppress(RuntimeError):  # CUDA is gone then: every later call says so
            self._runtime.eventSynchronize(self.event.handle)


class StagedCudaDevice:
    """See `Device` for the contract, and the module docstring. `wait` on the compute stream blocks the caller."""

    def __init__(
        self, runtime: CudaRuntime, compute: Callable[[], int], buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        """`compute`: see CudaDevice. `buffer_bytes`: of each of the two buffers that every stream has."""
        self._runtime, self._buffer_bytes = runtime, buffer_bytes
        self._ordinal = runtime.getDevice()
        self._events = Events(runtime)
        self._lanes: list[_Lane] = []
        self._compute, self._compute_stream = compute, CudaStream(0)
        self._notices = CpuStream("notifier")
        self._notices.put(lambda: runtime.setDevice(self._ordinal))

    @property
    def compute(self) -> CudaStream:
        self._compute_stream.handle = self._compute()
        return self._compute_stream

    def stream(self, name: str) -> _Lane:
        self._lanes.append(_Lane(name, self._runtime, self._ordinal, self._buffer_bytes))
        return self._lanes[-1]

    def copy(
        self,
        stream: _Lane | CudaStream,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        def through(ring: Ring) -> None:
            try:
                for to, fro in zip(destination_slots, source_slots, strict=True):
                    ring.copy(
                        destination.address + to * destination.block_bytes + start,
                        source.address + fro * source.block_bytes + start,
                        stop - start,
                        to_host=isinstance(destination.view(to), np.ndarray),
                        from_host=isinstance(source.view(fro), np.ndarray),
                    )
            finally:  # also after an error: what was begun goes on until it has ended
                ring.drain()

        start, stop, _ = part.indices(destination.block_bytes)
        if isinstance(stream, _Lane):
            stream.put(lambda: through(stream.ring))
        else:
            with closing(Ring(self._runtime, stream, self._buffer_bytes)) as ring:
                through(ring)

    def record(self, stream: _Lane | CudaStream) -> CpuEvent | _Computed:
        if isinstance(stream, CudaStream):
            return _Computed(self._runtime, self._events.record(stream))
        event = CpuEvent()
        stream.put(event)
        return event

    def wait(self, stream: _Lane | CudaStream, event: CpuEvent | _Computed) -> None:
        if isinstance(stream, CudaStream):
            event.wait()
        else:
            stream.put(Wait(event))

    def query(self, event: CpuEvent | _Computed) -> bool:
        return event.query() if isinstance(event, CpuEvent) else self._events.query(event.event)

    def host_wait(self, event: CpuEvent | _Computed) -> None:
        event.wait()
        self.query(event)

    def notify(self, event: CpuEvent | _Computed, wake: Callable[[], None]) -> None:
        if isinstance(event, CpuEvent):
            event.add_wake(wake)
        else:
            self._notices.put(Wait(event))
            self._notices.put(wake)

    def close(self) -> None:
        with ExitStack() as stack:  # whatever CUDA says, threads end
            stack.callback(self._events.close)
            stack.callback(self._notices.close)
            while self._lanes:
                stack.callback(self._lanes.pop().close)
