"""The device of a machine with an NVIDIA GPU: torch streams and events, asynchronous copies from page-locked memory.

The only module of this package that imports torch. Views of device slots are uint8 tensors on the GPU, views of host
slots are numpy rows of a slab; the slab is registered with CUDA once, because a copy from pageable memory would block
the calling thread and serialise with everything else.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from kvstore.host import HostSlab
from kvstore.slots import SlotMemory


@contextmanager
def registered(slab: HostSlab) -> Iterator[None]:
    """Page-lock a slab for the CUDA driver, as long as the context lasts; no copy may be in flight at its end.

    Raises RuntimeError with the driver's code, most often because too much memory is locked already.
    """
    if slab.num_bytes:
        cudart = torch.cuda.cudart()
        code = int(cudart.cudaHostRegister(slab.address, slab.num_bytes, 0))
        if code != 0:
            raise RuntimeError(
                f"page-locking {slab.num_bytes} bytes of host memory failed with CUDA error {code}"
            )
    try:
        yield
    finally:
        if slab.num_bytes:
            torch.cuda.cudart().cudaHostUnregister(slab.address)


def _tensor(view: Any) -> torch.Tensor:
    return view if isinstance(view, torch.Tensor) else torch.from_numpy(view)


class CudaDevice:
    """Streams and events of one CUDA device. See `Device` for the contract."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = torch.device(device)
        self._streams: list[torch.cuda.Stream] = []
        self._notices: queue.SimpleQueue[tuple[torch.cuda.Event, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._notifier = threading.Thread(target=self._notify, name="kvtide-notifier", daemon=True)
        self._notifier.start()

    @property
    def compute(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)

    def stream(self, name: str) -> torch.cuda.Stream:  # noqa: ARG002 - CUDA streams have no names
        stream = torch.cuda.Stream(self._device)
        self._streams.append(stream)
        return stream

    def copy(
        self,
        stream: torch.cuda.Stream,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        with torch.cuda.stream(stream):
            for to, fro in zip(destination_slots, source_slots, strict=True):
                target, origin = _tensor(destination.view(to))[part], _tensor(source.view(fro))[part]
                # non_blocking: the host must not wait here; the mover's event says when the bytes are there
                target.copy_(origin, non_blocking=True)

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(stream)
        return event

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        stream.wait_event(event)

    def query(self, event: torch.cuda.Event) -> bool:
        return bool(event.query())

    def host_wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def notify(self, event: torch.cuda.Event, wake: Callable[[], None]) -> None:
        self._notices.put((event, wake))

    def _notify(self) -> None:
        while (notice := self._notices.get()) is not None:
            event, wake = notice
            with contextlib.suppress(RuntimeError):  # a failed event is reported by the loop's own query
                event.synchronize()  # releases the GIL while it waits
            wake()

    def close(self) -> None:
        for stream in self._streams:
            stream.synchronize()
        self._streams.clear()
        self._notices.put(None)
        self._notifier.join()
