"""A device without hardware on which a missing wait is a wrong byte: for tests, without torch or threads.

Enqueued work waits in its stream until `run`, `host_wait` or `close` lets it run, a piece at a time, and `choose`
says each time which stream goes on. Whatever streams and events allow may happen, however unlikely on hardware::

    compute  [ kernel . . ][ wait E3 ][ kernel . . . ]        any stream may go on whose head does not wait
    down     [ wait E1 ][ copy . . . . . . ][ E2 ]            a dot is where another stream may come between
    up       [ wait E1 ][ copy . . . ][ E3 ]

Memory is poison until what fills it has run. What a copy overwrites turns to poison when the copy begins; in host
memory already when it is enqueued, for its owner may not look before the copy has ended. What a copy has written to
host memory is seen when an event behind it completes, not before.

It cannot show what CUDA itself must get right: docs/ordering.md.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvstore.slots import SlotMemory

POISON = 0xDB
"""What memory holds that nobody has written. Tests should write other bytes."""

PIECES = 3
"""Into so many pieces a copy of one slot falls, if it has the bytes."""

_OVER = object()

Bytes: TypeAlias = NDArray[np.uint8]
Choose: TypeAlias = Callable[[Sequence[Any]], Any]
"""Picks one of several: random.Random(seed).choice, or a draw of hypothesis."""


class CopyFailed(Exception):
    """A copy that was told to fail."""


class Stuck(Exception):
    """Work is left that will never be allowed to run."""


class VirtualMemory:
    """Slots full of poison. See `SlotMemory` for the contract."""

    def __init__(self, num_slots: int, block_bytes: int, *, page_locked: bool) -> None:
        """`page_locked`: host memory, which the CPU addresses as well; otherwise the device's own."""
        self.num_slots, self.block_bytes, self.page_locked = num_slots, block_bytes, page_locked
        self._bytes: Bytes = np.full((num_slots, block_bytes), POISON, dtype=np.uint8)

    @property
    def address(self) -> int:
        return int(self._bytes.ctypes.data)

    @property
    def piece_slots(self) -> int:
        return max(1, self.num_slots)

    def view(self, slot: int) -> Bytes:
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} is outside 0 .. {self.num_slots - 1}")
        view: Bytes = self._bytes[slot]
        return view


class VirtualEvent:
    """Completed when a stream comes to it; carries the first error of the work before it."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.done = False
        self.error: Exception | None = None
        self.wakes: list[Callable[[], None]] = []


@dataclass(frozen=True, slots=True)
class Wait:
    """Work behind it starts after the event."""

    event: VirtualEvent


@dataclass(eq=False, slots=True)
class VirtualStream:
    """Work in order: events to complete, events to wait for, and jobs that run piece by piece."""

    name: str
    work: deque[VirtualEvent | Wait | Iterator[None]] = field(default_factory=deque, repr=False)
    error: Exception | None = field(default=None, repr=False)
    """Of a job, until the next event has carried it away."""
    landing: list[tuple[Bytes, Bytes]] = field(default_factory=list, repr=False)
    """Host memory, and what copies have written to it that is not seen yet."""

    def may_run(self) -> bool:
        """Whether something can run now. Takes away waits that are over."""
        while self.work and isinstance(head := self.work[0], Wait) and head.event.done:
            self.work.popleft()
        return bool(self.work) and not isinstance(self.work[0], Wait)

    def run_piece(self) -> None:
        """Run what is next, which must be allowed to run."""
        head = self.work[0]
        if isinstance(head, VirtualEvent):
            self.work.popleft()
            self._complete(head)
            return
        assert not isinstance(head, Wait), "a stream that waits does not run"
        if self.error is not None:  # after a failure what follows is skipped, up to the next event
            self.work.popleft()
            return
        try:
            if next(head, _OVER) is _OVER:
                self.work.popleft()
        except CopyFailed as error:
            self.work.popleft()
            self.error = error

    def _complete(self, event: VirtualEvent) -> None:
        self.land()
        event.error, self.error = self.error, None
        event.done = True
        for wake in event.wakes:
            wake()

    def land(self) -> None:
        """What copies have written to host memory is seen from now on."""
        for target, data in self.landing:
            target[:] = data
        self.landing.clear()


class VirtualDevice:
    """Streams that run in any legal order, the compute stream among them. See `Device` for the contract.

    One thread. An assertion that fails in a launched job is raised by the call that runs it.
    """

    def __init__(
        self, choose: Choose, *, fails: Callable[[SlotMemory, Sequence[int]], bool] = lambda *_: False
    ) -> None:
        """`fails` is asked when a copy begins, with its destination: whether it breaks off at some piece."""
        self._choose, self._fails = choose, fails
        self.streams = [VirtualStream("compute")]

    @property
    def compute(self) -> VirtualStream:
        return self.streams[0]

    def stream(self, name: str) -> VirtualStream:
        self.streams.append(VirtualStream(name))
        return self.streams[-1]

    def launch(self, job: Callable[[], Iterator[None] | None]) -> None:
        """Enqueue the model's own work on the compute stream: a function, in pieces if it is a generator function."""

        def pieces() -> Iterator[None]:
            if (running := job()) is not None:
                yield from running

        self.compute.work.append(pieces())

    def copy(
        self,
        stream: VirtualStream,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        pairs = [
            (destination.view(to)[part], source.view(fro)[part])
            for to, fro in zip(destination_slots, source_slots, strict=True)
        ]
        self.enqueue_copy(
            stream,
            pairs,
            on_device=isinstance(destination, VirtualMemory) and not destination.page_locked,
            fails=lambda: self._fails(destination, destination_slots),
        )

    def enqueue_copy(
        self,
        stream: VirtualStream,
        pairs: list[tuple[Bytes, Bytes]],
        *,
        on_device: bool,
        fails: Callable[[], bool] = lambda: False,
    ) -> None:
        """Copy bytes, destination and source each. `on_device`: the destinations; `fails` is asked when it begins."""
        if not on_device:
            _poison(pairs)

        def pieces() -> Iterator[None]:
            stream.land()
            fails_at = None
            torn = [
                pair for target, origin in pairs for pair in zip(_torn(target), _torn(origin), strict=True)
            ]
            if fails():
                fails_at = self._choose(range(len(torn)))
            if on_device:
                _poison(pairs)
                yield
            for number, (target, origin) in enumerate(torn):
                if number == fails_at:
                    raise CopyFailed("a copy was told to fail")
                if on_device:
                    target[:] = origin
                else:
                    stream.landing.append((target, origin.copy()))
                yield

        stream.work.append(pieces())

    def record(self, stream: VirtualStream) -> VirtualEvent:
        event = VirtualEvent(stream.name)
        stream.work.append(event)
        return event

    def wait(self, stream: VirtualStream, event: VirtualEvent) -> None:
        stream.work.append(Wait(event))

    def query(self, event: VirtualEvent) -> bool:
        if event.error is not None:
            raise event.error
        return event.done

    def notify(self, event: VirtualEvent, wake: Callable[[], None]) -> None:
        if event.done:
            wake()
        else:
            event.wakes.append(wake)

    def run(self, most: int | None = None, *, only: Collection[VirtualStream] | None = None) -> int:
        """Run pieces of work until nothing can run or `most` have run; `only` on these streams. How many ran."""
        num = 0
        streams = self.streams if only is None else only
        while num != most and (ready := [stream for stream in streams if stream.may_run()]):
            (ready[0] if len(ready) == 1 else self._choose(ready)).run_piece()
            num += 1
        return num

    def host_wait(self, event: VirtualEvent) -> None:
        while not event.done:
            if not self.run(1):
                raise Stuck(
                    f"the host waits for an event of {event.stream} that never completes: {self._told()}"
                )
        self.query(event)

    def close(self) -> None:
        self.run()
        if any(stream.work for stream in self.streams):
            raise Stuck(f"the device cannot come to its end: {self._told()}")
        for stream in self.streams:
            stream.land()

    def _told(self) -> str:
        """Who waits for whom, in words."""
        heads = [(stream.name, stream.work[0]) for stream in self.streams if stream.work]
        waits = [f"{name} waits for {head.event.stream}" for name, head in heads if isinstance(head, Wait)]
        return "; ".join(waits) or "all streams are empty"


def _poison(pairs: list[tuple[Bytes, Bytes]]) -> None:
    for target, _ in pairs:
        target[:] = POISON


def _torn(view: Bytes) -> list[Bytes]:
    """The pieces of a view, none of them empty."""
    size = -(-len(view) // PIECES)
    return [view[start : start + size] for start in range(0, len(view), size)]
