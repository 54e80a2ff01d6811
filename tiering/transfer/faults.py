"""A device that fails on command, for tests of what is built on copies."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, Final

import numpy as np

from kvstore.layers.faults import Delay, ErrorAfter, ErrorBefore, Fault, Garbage, Hang, ShortData
from kvstore.layers.injector import Injector, Strike
from kvstore.slots import SlotMemory
from tiering.transfer.device import Device

_STREAMS: Final = ("down", "up", "compute")
_POSSIBLE: Final = dict.fromkeys((Delay, Hang, ErrorBefore, ErrorAfter, ShortData, Garbage), _STREAMS)


class FaultDevice:
    """A `Device` whose copies are slow, hang and fail on command. See `Device` for the contract.

    The operations that faults strike are the streams' names, "down" and "up", and "compute" for any other. Copies are
    numbered when they are enqueued. A fault acts when the wrapped device asks where slots lie: with `CpuDevice` on the
    stream's thread, as the copy runs; with `CudaDevice`, which asks while it enqueues, on the calling thread.

    Every fault but Delay and Hang ends in an error: ErrorBefore before a byte was copied, ErrorAfter when all were,
    ShortData after the first half of the slots, Garbage after the destination slots were overwritten with junk. There
    is no garbage without an error. A device that scribbles and says that all is well cannot be caught by anybody who
    only orders copies: blocks in memory carry no checksum. Nothing here pretends otherwise.
    """

    def __init__(
        self,
        device: Device,
        faults: Iterable[Fault] = (),
        *,
        seed: int = 0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Takes over `device`: closing the layer closes it. A fault that names no error raises OSError."""
        self.device = device
        self._names: dict[int, tuple[Any, str]] = {}
        """Each stream by its id, kept alive so that the id stays its own, and its name."""
        self._injector = Injector(_POSSIBLE, seed=seed, sleep=sleep, failed=OSError, closed=OSError)
        self.faults = tuple(faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force. To assign others numbers the copies from one again; hanging copies go on hanging."""
        return self._injector.faults

    @faults.setter
    def faults(self, faults: Iterable[Fault]) -> None:
        self._injector.replace(faults)

    def injected(self, kind: type[Fault] = Fault, on: str | None = None) -> int:
        """How often faults of this kind have acted since the layer was made, on one stream or on all."""
        return self._injector.injected(kind, on)

    @property
    def compute(self) -> Any:
        return self.device.compute

    def stream(self, name: str) -> Any:
        stream = self.device.stream(name)
        self._names[id(stream)] = stream, name if name in _STREAMS else "compute"
        return stream

    def copy(
        self,
        stream: Any,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        _, operation = self._names.get(id(stream), (stream, "compute"))
        struck = _StruckCopy(self._injector, self._injector.draw(operation))
        for pairs in struck.parts(destination, destination_slots, source, source_slots):
            self.device.copy(stream, *pairs, part)

    def record(self, stream: Any) -> Any:
        return self.device.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        self.device.wait(stream, event)

    def query(self, event: Any) -> bool:
        return self.device.query(event)

    def host_wait(self, event: Any) -> None:
        self.device.host_wait(event)

    def notify(self, event: Any, wake: Callable[[], None]) -> None:
        self.device.notify(event, wake)

    def close(self) -> None:
        """Close the device. First, copies that hang are let go: they fail, no byte copied."""
        self._injector.close()
        self.device.close()


class _StruckCopy:
    """One copy and the faults that are due at it, as copies that the wrapped device can make: what acts along the way
    is the memory that they are made of, when it is asked for a view.
    """

    def __init__(self, injector: Injector, strikes: Sequence[Strike]) -> None:
        self._injector, self._strikes = injector, strikes
        self._begun = self._ended = False

    def parts(
        self,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
    ) -> Iterator[tuple[SlotMemory, Sequence[int], SlotMemory, Sequence[int]]]:
        """The copies to make, in order: what is to arrive, then junk, then none of use, in which errors are raised."""
        if not self._strikes:
            yield destination, destination_slots, source, source_slots
            return
        num = len(destination_slots)
        arriving = num // 2 if self._has(ShortData) else num
        start = _Watched(destination, self._begin)
        yield start, destination_slots[:arriving], source, source_slots[:arriving]
        if self._has(Garbage):
            junk = _Row(destination.block_bytes, self._strikes[0].random)
            yield destination, destination_slots, junk, [0] * num
        end = _Watched(_Row(destination.block_bytes), self._end)
        yield end, [0], end, [0]

    def _has(self, kind: type[Fault]) -> bool:
        return any(isinstance(strike.fault, kind) for strike in self._strikes)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for strike in self._strikes:
                self._injector.before(strike)

    def _end(self) -> None:
        """Raise what is to be raised after the work; once, as both sides of the copy are asked for a view."""
        self._begin()  # for a copy of no slots
        if self._ended:
            return
        self._ended = True
        acting = [s for s in self._strikes if isinstance(s.fault, ErrorAfter | ShortData | Garbage)]
        for strike in acting:
            self._injector.count(strike)
        if acting:
            raise self._injector.error(acting[0])


class _Watched:
    """Slot memory that runs something before it says where slots lie, on the thread that asks."""

    def __init__(self, memory: SlotMemory, before_view: Callable[[], None]) -> None:
        self._memory, self._before_view = memory, before_view

    @property
    def num_slots(self) -> int:
        return self._memory.num_slots

    @property
    def block_bytes(self) -> int:
        return self._memory.block_bytes

    def view(self, slot: int) -> Any:
        self._before_view()
        return self._memory.view(slot)

    @property
    def address(self) -> int:
        self._before_view()
        return self._memory.address

    @property
    def piece_slots(self) -> int:
        return self._memory.piece_slots


class _Row:
    """Slot memory of one slot, with random bytes in it, or zeros."""

    def __init__(self, block_bytes: int, random: Random | None = None) -> None:
        self.num_slots, self.block_bytes = 1, block_bytes
        content = bytes(block_bytes) if random is None else random.randbytes(block_bytes)
        self._bytes = np.frombuffer(bytearray(content), dtype=np.uint8)
        self.piece_slots = 1

    @property
    def address(self) -> int:
        return int(self._bytes.ctypes.data)

    def view(self, slot: int) -> Any:
        if slot != 0:
            raise IndexError(f"slot {slot} of 1")
        return self._bytes
