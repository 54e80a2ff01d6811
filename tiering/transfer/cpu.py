"""The device of a machine without a GPU: a thread stands in for each copy stream.

The model runs on the calling thread, so the compute stream is that thread itself: work "enqueued" on it has already
run, and to make it wait is to block. numpy copies release the GIL, so copies and compute do overlap.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from kvstore.slots import SlotMemory
from tiering.transfer.runs import runs


class CpuEvent:
    """Completed by the stream's thread; carries the first error of the work before it."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._wakes: list[Callable[[], None]] = []
        self.error: Exception | None = None

    def complete(self, error: Exception | None) -> None:
        with self._lock:  # against add_wake: a wake added between set() and the loop would be lost
            self.error = error
            self._done.set()
            wakes, self._wakes = self._wakes, []
        for wake in wakes:
            wake()

    def add_wake(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if not self._done.is_set():
                self._wakes.append(wake)
                return
        wake()

    @property
    def is_over(self) -> bool:
        """Whether it is complete, with an error or without."""
        return self._done.is_set()

    def query(self) -> bool:
        if not self.is_over:
            return False
        if self.error is not None:
            raise self.error
        return True

    def wait(self) -> None:
        self._done.wait()


class Awaitable(Protocol):
    """What a stream's thread can wait for."""

    def wait(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Wait:
    """Work behind it starts after the event."""

    event: Awaitable


class CpuStream:
    """A thread that runs jobs in order. An error is kept until the next event has carried it away."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | CpuEvent | Wait | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"kvtide-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: Exception | None = None
        while (job := self._jobs.get()) is not None:
            if isinstance(job, CpuEvent):
                job.complete(error)
                error = None
            elif isinstance(job, Wait):  # also after a failure: what comes behind the next event counts on it
                job.event.wait()
            elif error is None:  # after a failure what follows is skipped: its inputs may be garbage
                try:
                    job()
                except Exception as failure:  # noqa: BLE001 - the thread's top: reaches whoever queries the event
                    error = failure

    def put(self, job: Callable[[], None] | CpuEvent | Wait) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()


class CpuDevice:
    """Copy streams as threads, compute on the caller. See `Device` for the contract."""

    def __init__(self) -> None:
        self._streams: list[CpuStream] = []

    @property
    def compute(self) -> None:
        return None

    def stream(self, name: str) -> CpuStream:
        stream = CpuStream(name)
        self._streams.append(stream)
        return stream

    def copy(
        self,
        stream: CpuStream | None,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        def run() -> None:
            for to, fro, length in runs(destination, destination_slots, source, source_slots):
                np.copyto(_slots(destination, to, length)[:, part], _slots(source, fro, length)[:, part])

        if stream is None:
            run()
        else:
            stream.put(run)

    def record(self, stream: CpuStream | None) -> CpuEvent:
        event = CpuEvent()
        if stream is None:
            event.complete(None)
        else:
            stream.put(event)
        return event

    def wait(self, stream: CpuStream | None, event: CpuEvent) -> None:
        if stream is None:
            event.wait()
        elif not event.is_over:  # to wait for what has ended would wake the thread for nothing
            stream.put(Wait(event))

    def query(self, event: CpuEvent) -> bool:
        return event.query()

    def host_wait(self, event: CpuEvent) -> None:
        event.wait()
        event.query()

    def notify(self, event: CpuEvent, wake: Callable[[], None]) -> None:
        event.add_wake(wake)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()


def _slots(memory: SlotMemory, first: int, length: int) -> NDArray[np.uint8]:
    """The bytes of slots that follow each other within one piece, [length, block_bytes]. Keeps the memory as a view does."""
    memory.view(first + length - 1)  # or what is no slot could be written to
    slots: NDArray[np.uint8] = as_strided(memory.view(first), (length, memory.block_bytes))
    return slots
