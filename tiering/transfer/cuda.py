"""The device of a machine with an NVIDIA GPU: streams, events and asynchronous copies of the CUDA runtime.

Memories are told by their addresses; the host's is page-locked (see page_locks.py), or a copy would block its caller.
Adjacent slots are one copy. Everything else is a copy a slot: the copy engines take them from a queue, and from some
tens of kilobytes a copy on they are as fast as with one.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence

from kvstore.slots import SlotMemory
from tiering.transfer.runs import runs
from tiering.transfer.runtime import (
    EVENT_BLOCKING_SYNC,
    EVENT_DISABLE_TIMING,
    MEMCPY_DEFAULT,
    NOT_READY,
    STREAM_NON_BLOCKING,
    SUCCESS,
    CudaRuntime,
)


class CudaStream:
    """A cudaStream_t. An error of a copy is kept until the next event has carried it away."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.error: Exception | None = None


class Notifier:
    """A thread that waits for events of one stream, in their order: those of another may complete long before."""

    def __init__(self, runtime: CudaRuntime, ordinal: int, name: str) -> None:
        self._runtime, self._ordinal = runtime, ordinal
        self._notices: queue.SimpleQueue[tuple[CudaEvent, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"kvtide-{name}", daemon=True)
        self._thread.start()

    def put(self, event: "CudaEvent", wake: Callable[[], None]) -> None:
        """See Device.notify."""
        self._notices.put((event, wake))

    def _run(self) -> None:
        self._runtime.setDevice(self._ordinal)
        while (notice := self._notices.get()) is not None:
            event, wake = notice
            with contextlib.suppress(RuntimeError):  # a failed event is reported by the loop's own query
                self._runtime.eventSynchronize(event.handle)  # releases the GIL while it waits
            del notice, event  # or it would be kept until the next one comes
            wake()

    def close(self) -> None:
        """Tell of what was put, then end."""
        self._notices.put(None)
        self._thread.join()


class CudaEvent:
    """A cudaEvent_t, which goes back to those that may be recorded again when nobody has it any more."""

    def __init__(self, handle: int, stream: CudaStream, spare: list[int]) -> None:
        """`stream`: on which it is about to be recorded; what has failed there goes with it."""
        self.handle, self.stream, self.error = handle, stream, stream.error
        self._spare = spare
        stream.error = None

    def __del__(self) -> None:
        # streams that wait for it do so for what was recorded when they were told to
        self._spare.append(self.handle)


class Events:
    """Makes events, and destroys them all at the end."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        self._all: list[int] = []
        self._spare: list[int] = []
        self._closed = False

    def record(self, stream: CudaStream) -> CudaEvent:
        """An event behind what is enqueued on the stream."""
        if not self._spare:
            self._all.append(self._runtime.eventCreateWithFlags(EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING))
            self._spare.append(self._all[-1])
        event = CudaEvent(self._spare.pop(), stream, self._spare)
        self._runtime.eventRecord(event.handle, stream.handle)
        return event

    def query(self, event: CudaEvent) -> bool:
        """See Device.query."""
        status = SUCCESS if self._closed else self._runtime.eventQuery(event.handle)
        if status == NOT_READY:
            return False
        if status != SUCCESS:
            raise RuntimeError(f"work on a CUDA stream has failed with CUDA error {status}")
        if event.error is not None:
            raise event.error
        return True

    def close(self) -> None:
        """All of them have completed, and nothing will wait for any. Whether they failed may still be asked."""
        self._closed = True
        while self._all:
            self._runtime.eventDestroy(self._all.pop())
        self._spare.clear()


class CudaDevice:
    """Streams and events of one CUDA device. See `Device` for the contract.

    A copy that CUDA does not take, since an address is wrong, say, fails its transfer alone. What fails while it runs
    leaves CUDA without a context: every query after that raises.
    """

    def __init__(self, runtime: CudaRuntime, compute: Callable[[], int]) -> None:
        """`compute`: the cudaStream_t on which the engine's thread computes. To be made on that device's thread."""
        self._runtime = runtime
        self._ordinal = runtime.getDevice()
        self._events = Events(runtime)
        self._streams: list[CudaStream] = []
        self._compute, self._compute_stream = compute, CudaStream(0)
        self._notifiers = {self._compute_stream: Notifier(runtime, self._ordinal, "compute")}

    @property
    def compute(self) -> CudaStream:
        self._compute_stream.handle = self._compute()
        return self._compute_stream

    def stream(self, name: str) -> CudaStream:
        stream = CudaStream(self._runtime.streamCreateWithFlags(STREAM_NON_BLOCKING))
        self._streams.append(stream)
        self._notifiers[stream] = Notifier(self._runtime, self._ordinal, name)
        return stream

    def copy(
        self,
        stream: CudaStream,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        if stream.error is not None:  # what follows a failure is left out, up to the next event
            return
        try:
            start, stop, _ = part.indices(destination.block_bytes)
            for run in runs(destination, destination_slots, source, source_slots):
                self._copy(
                    destination.address + run.destination * destination.block_bytes + start,
                    source.address + run.source * source.block_bytes + start,
                    destination.block_bytes,
                    stop - start,
                    run.length,
                    stream.handle,
                )
        except Exception as error:  # noqa: BLE001 - as on a device's own thread: reaches whoever queries the event
            stream.error = error

    def _copy(self, to: int, fro: int, pitch: int, width: int, height: int, stream: int) -> None:
        """`height` rows of `width` bytes, each `pitch` behind the one before it; one run of bytes where it can be."""
        if width == pitch or height == 1:
            self._runtime.memcpyAsync(to, fro, width * height, MEMCPY_DEFAULT, stream)
        else:
            self._runtime.memcpy2DAsync(to, pitch, fro, pitch, width, height, MEMCPY_DEFAULT, stream)

    def record(self, stream: CudaStream) -> CudaEvent:
        return self._events.record(stream)

    def wait(self, stream: CudaStream, event: CudaEvent) -> None:
        self._runtime.streamWaitEvent(stream.handle, event.handle)

    def query(self, event: CudaEvent) -> bool:
        return self._events.query(event)

    def host_wait(self, event: CudaEvent) -> None:
        self._runtime.eventSynchronize(event.handle)
        self._events.query(event)

    def notify(self, event: CudaEvent, wake: Callable[[], None]) -> None:
        self._notifiers[event.stream].put(event, wake)

    def close(self) -> None:
        streams, self._streams = self._streams, []
        notifiers, self._notifiers = self._notifiers, {}
        with contextlib.ExitStack() as stack:  # the last first; and whatever CUDA says, threads end
            stack.callback(self._events.close)
            for stream in streams:
                stack.callback(self._runtime.streamDestroy, stream.handle)
            for notifier in notifiers.values():
                stack.callback(notifier.close)
            for stream in streams:
                stack.callback(self._runtime.streamSynchronize, stream.handle)
