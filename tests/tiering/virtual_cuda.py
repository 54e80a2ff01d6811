"""A CUDA runtime without a GPU: streams that run in any legal order, over memory that the CPU can look at.

It stands in for cupy.cuda.runtime under the CUDA devices, and refuses what the driver refuses, or punishes without a
word: copies of memory that is not page-locked, copies from one locked range into the next, handles that do not exist.
"""

import ctypes
import threading
from contextlib import contextmanager

import numpy as np

from tests.tiering.slot_arrays import GIVE_UP_S
from tiering.transfer.runtime import MEMCPY_DEFAULT, NOT_READY, STREAM_NON_BLOCKING, SUCCESS
from tiering.transfer.virtual import VirtualDevice, VirtualEvent

COMPUTE = 0
"""The handle of the legacy default stream, on which torch computes."""


class CudaError(RuntimeError):
    """As cupy's CUDARuntimeError is one."""


class VirtualCuda:
    """`device` is what runs, as far as need be where its owner waits for an event; with `runs_itself`, whoever waits."""

    def __init__(self, device: VirtualDevice, *, runs_itself=False) -> None:
        self.device, self.runs_itself = device, runs_itself
        self.owner = threading.get_ident()
        self.streams = {COMPUTE: device.compute}
        self.events: dict[int, VirtualEvent | None] = {}
        self.device_memory: list[range] = []
        self.locked: dict[int, range] = {}
        self.allocated: dict[int, object] = {}
        self.refuses = lambda to: False
        """Asked with a copy's destination: whether it fails, as the driver might."""
        self.pageable = False
        """Whether other host memory may be copied too: at once, as the driver copies it to a buffer of its own first."""
        self.max_locked_bytes = float("inf")
        self.copies: list[tuple[int, int]] = []
        """Width and height of each."""
        self._last_handle = 100
        self._changed = threading.Condition()
        self._completed: set[int] = set()

    def owns(self, memory):
        """This memory is the GPU's."""
        self.device_memory.append(
            range(memory.address, memory.address + memory.num_slots * memory.block_bytes)
        )
        return memory

    def _handle(self):
        self._last_handle += 1
        return self._last_handle

    def getDevice(self):
        return 0

    def setDevice(self, device):
        assert device == 0

    # ---- streams

    def streamCreateWithFlags(self, flags):
        assert flags == STREAM_NON_BLOCKING, "or it would wait for the default stream, unasked"
        with self._changed:
            handle = self._handle()
            self.streams[handle] = self.device.stream(("down", "up", "more")[len(self.streams) - 1])
            return handle

    def streamDestroy(self, stream):
        with self._changed:
            assert not _known(stream, self.streams).work, "a stream is destroyed that has work to do"
            del self.streams[stream]

    def streamSynchronize(self, stream):
        with self._changed:
            event = self.device.record(_known(stream, self.streams))
            self.device.host_wait(event)
            self._changed.notify_all()

    def streamWaitEvent(self, stream, event, flags=0):
        with self._changed:
            recorded = _known(event, self.events)
            if recorded is not None:
                self.device.wait(_known(stream, self.streams), recorded)

    # ---- events

    def eventCreateWithFlags(self, flags):
        with self._changed:
            handle = self._handle()
            self.events[handle] = None
            return handle

    def eventDestroy(self, event):
        with self._changed:
            _known(event, self.events)
            del self.events[event]

    def eventRecord(self, event, stream):
        with self._changed:
            _known(event, self.events)
            self.events[event] = self.device.record(_known(stream, self.streams))

    def eventQuery(self, event):
        with self._changed:
            recorded = _known(event, self.events)
            return SUCCESS if recorded is None or recorded.done else NOT_READY

    def eventSynchronize(self, event):
        with self._changed:
            recorded = _known(event, self.events)
            if recorded is None:
                return
            if self.runs_itself or threading.get_ident() == self.owner:
                self.device.host_wait(recorded)
            else:
                recorded.wakes.append(self._tell)
                assert self._changed.wait_for(lambda: recorded.done, GIVE_UP_S), "nobody runs the device"

    def _tell(self):
        with self._changed:
            self._changed.notify_all()

    # ---- memory

    def hostRegister(self, address, num_bytes, flags):
        with self._changed:
            if num_bytes + sum(map(len, self.locked.values())) > self.max_locked_bytes:
                raise CudaError("cudaErrorMemoryAllocation: out of memory")
            if address % 4096:
                raise CudaError("cudaErrorInvalidValue: invalid argument")
            if any(_overlap(range(address, address + num_bytes), other) for other in self.locked.values()):
                raise CudaError("cudaErrorHostMemoryAlreadyRegistered")
            self.locked[address] = range(address, address + num_bytes)

    def hostUnregister(self, address):
        with self._changed:
            _known(address, self.locked)
            del self.locked[address]

    def hostAlloc(self, num_bytes, flags):
        with self._changed:
            buffer = np.zeros(num_bytes, dtype=np.uint8)
            address = buffer.ctypes.data
            self.allocated[address] = buffer
            self.locked[address] = range(address, address + num_bytes)
            return address

    def freeHost(self, address):
        with self._changed:
            del self.allocated[address], self.locked[address]

    # ---- copies

    def memcpyAsync(self, to, fro, num_bytes, kind, stream):
        self.memcpy2DAsync(to, num_bytes, fro, num_bytes, num_bytes, 1, kind, stream)

    def memcpy2DAsync(self, to, to_pitch, fro, fro_pitch, width, height, kind, stream):
        with self._changed:
            assert kind == MEMCPY_DEFAULT
            assert width <= to_pitch and width <= fro_pitch
            self.copies.append((width, height))
            if self.refuses(to):
                raise CudaError("cudaErrorInvalidValue: told to fail")
            on_device = self._side(to, to_pitch * (height - 1) + width)
            fro_locked = self._side(fro, fro_pitch * (height - 1) + width) is not None
            pairs = [
                (_bytes_at(to + row * to_pitch, width), _bytes_at(fro + row * fro_pitch, width))
                for row in range(height)
            ]
            if on_device is None:
                assert not fro_locked, "what is copied down comes to page-locked memory"
                for target, origin in pairs:
                    target[:] = origin
                return
            if not fro_locked:
                pairs = [(target, origin.copy()) for target, origin in pairs]
            self.device.enqueue_copy(_known(stream, self.streams), pairs, on_device=on_device)

    def _side(self, address, num_bytes):
        """Whether the bytes lie on the device; if not, they must be page-locked, by one call. None: they are not."""
        taken = range(address, address + num_bytes)
        if any(_holds(memory, taken) for memory in self.device_memory):
            return True
        found = [locked for locked in self.locked.values() if _overlap(locked, taken)]
        if not found and self.pageable:
            return None
        assert found, f"{num_bytes} bytes at {address} are not page-locked"
        if not any(_holds(locked, taken) for locked in found):
            raise CudaError("cudaErrorInvalidValue: invalid argument")
        return False

    @contextmanager
    def nothing_left(self):
        """What is made within is destroyed within."""
        yield self
        assert set(self.streams) == {COMPUTE}, "streams are left"
        assert not self.events, "events are left"
        assert not self.locked and not self.allocated, "page-locked memory is left"


def _bytes_at(address, num_bytes):
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


def _overlap(one, other):
    return one.start < other.stop and other.start < one.stop


def _holds(whole, part):
    return whole.start <= part.start and part.stop <= whole.stop


def _known(handle, among):
    if handle not in among:
        raise CudaError("cudaErrorInvalidResourceHandle: invalid resource handle")
    return among[handle]
