"""The mover: the only code that knows in which order compute and copies must run.

Two copy streams, one for each direction, beside the engine's compute stream::

    compute  --[ step n ]--E1----------------[ wait E3 | layers 0-3 of step n+1 ][ wait E4 | layers 4-7 ]--
    down     ------------wait E1 [ slot 5 -> host 2 ] E2
    up       ------------wait E1 [ host 9 -> slot 7, layers 0-3 ] E3 [ layers 4-7 ] E4

A copy up goes in *layer groups*, byte ranges of a slot with an event each: a step may begin when the first have arrived.

The hazards, and what prevents each:

* a copy down reads a slot that a step is still writing: it waits for the last step's event (E1);
* a copy up overwrites a slot that a step is still reading: the same wait;
* a step reads layers whose copy up has not ended: `before_compute` makes compute wait for their event (E3, then E4);
* a step overwrites a slot that a copy down still reads: `before_compute` makes compute wait for E2;
* a slot or host place is reused before the copy out of it has ended: its owner frees it only when `poll` says so.

docs/ordering.md says which test shows each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kvstore.slots import SlotMemory
from tiering.transfer.device import Device

WHOLE_SLOT = slice(None)


@dataclass(frozen=True, slots=True)
class Ended:
    """A transfer that is over. `error` is None when every byte has arrived."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Arriving:
    """The first layer group of a copy up has arrived. The others follow it, unless one fails; an `Ended` will tell."""

    number: int


@dataclass(frozen=True, slots=True)
class _Flight:
    number: int
    events: tuple[Any, ...]
    """One for each part, in the order in which they end: a copy up has a part for each layer group."""
    device_slots: frozenset[int]


def _are_one_slot(groups: Sequence[slice], num_bytes: int) -> bool:
    """Whether each begins where the one before it ends, from the first byte to the last."""
    edges = [group.indices(num_bytes) for group in groups]
    return [0, *(stop for _, stop, _ in edges)] == [*(start for start, _, _ in edges), num_bytes]


class Mover:
    """Copies whole blocks between the device pool and the host slab, in an order that is safe beside compute.

    One thread calls it. `finish` and `close` block, and nothing else does on a device that makes a compute stream wait;
    on others `before_compute` blocks until what the step needs has arrived.

    A step is everything between its first `before_compute` and its `after_compute`; no copy may be submitted
    meanwhile. With several layer groups, each is announced before its layers are enqueued::

        before_compute(read, written)           group 0
        ... enqueue the layers of group 0 ...
        before_compute(read, written, 1)
        ... enqueue the layers of group 1, and so on ...
        after_compute()
    """

    def __init__(
        self,
        device: Device,
        pool: SlotMemory,
        slab: SlotMemory,
        wake: Callable[[], None],
        groups: Sequence[slice] = (WHOLE_SLOT,),
    ) -> None:
        """`wake` is called, from any thread, when a transfer has ended and `poll` has something to say.

        `groups`: the layer groups, byte ranges that follow each other and together are the slot.
        """
        assert _are_one_slot(groups, pool.block_bytes), (
            f"the layer groups {list(groups)} must be a slot of {pool.block_bytes} bytes, cut into pieces"
        )
        self._device, self._pool, self._slab, self._wake = device, pool, slab, wake
        self._groups = tuple(groups)
        self._down, self._up = device.stream("down"), device.stream("up")
        self._downs: deque[_Flight] = deque()
        self._ups: deque[_Flight] = deque()
        self._beginning: deque[_Flight] = deque()
        """Those of the copies up, in their order, whose first of several layer groups is not known to have arrived."""
        self._computed = device.record(device.compute)
        self._closed = False

    def submit_demote(self, number: int, device_slots: Sequence[int], host_slots: Sequence[int]) -> None:
        """Copy device slots to host slots. Both stay taken until `poll` reports `number`.

        A step alone may overwrite the device slots before that: `before_compute` keeps it behind the copy.
        """
        # the step that computed these blocks may still run: reading now would copy half-written KV
        self._device.wait(self._down, self._computed)
        self._device.copy(self._down, self._slab, host_slots, self._pool, device_slots, WHOLE_SLOT)
        self._depart(self._downs, number, [self._device.record(self._down)], device_slots)

    def submit_promote(self, number: int, host_slots: Sequence[int], device_slots: Sequence[int]) -> None:
        """Copy host slots to device slots. Both stay taken until `poll` reports `number`.

        Steps alone may read the device slots before that: `before_compute` keeps them behind the copy. If `poll`
        reports an error, what they have computed is worth nothing.
        """
        # a slot's last owner has left, but the step it was in may still read the slot on the device
        self._device.wait(self._up, self._computed)
        events = []
        for group in self._groups:
            self._device.copy(self._up, self._pool, device_slots, self._slab, host_slots, group)
            events.append(self._device.record(self._up))
        self._depart(self._ups, number, events, device_slots)
        if len(events) > 1:
            self._beginning.append(self._ups[-1])
            self._device.notify(events[0], self._wake)

    def _depart(
        self, flights: deque[_Flight], number: int, events: list[Any], device_slots: Sequence[int]
    ) -> None:
        flights.append(_Flight(number, tuple(events), frozenset(device_slots)))
        self._device.notify(events[-1], self._wake)  # the parts are on one stream: the last one ends last

    def before_compute(self, read_slots: Iterable[int], written_slots: Iterable[int], group: int = 0) -> None:
        """Make the step's next layers wait for copies into slots that they read and out of slots that they write.

        Group 0 comes first, and waits for the copies out of written slots for the whole step. A copy that failed has
        ended too: only `poll` tells whether the bytes are there.
        """
        if self._ups:
            self._wait_for(self._ups, group, frozenset(read_slots))
        if self._downs and group == 0:
            self._wait_for(self._downs, 0, frozenset(written_slots))

    def _wait_for(self, flights: Iterable[_Flight], part: int, slots: frozenset[int]) -> None:
        for flight in flights:
            if not slots.isdisjoint(flight.device_slots):
                # up: the step would read bytes that have not arrived; down: it would overwrite bytes not yet read
                self._device.wait(self._device.compute, flight.events[part])

    def after_compute(self) -> None:
        """Note that a step has been enqueued: later copies wait for it."""
        self._computed = self._device.record(self._device.compute)

    def finish(self, read_slots: Iterable[int]) -> None:
        """Block until no copy into these slots is under way; how each has ended, `poll` says."""
        slots = frozenset(read_slots)
        for flight in self._ups:
            if not slots.isdisjoint(flight.device_slots):
                with suppress(Exception):  # `poll` reports it
                    self._device.host_wait(flight.events[-1])

    def poll(self) -> list[Arriving | Ended]:
        """What has happened to transfers since the last call; each ends once, and arrives before that if at all.

        Streams keep order, so a look at the front of each is enough.
        """
        # ends first: what ends between the two looks would be told to arrive after its end
        ended = [ended for flights in (self._ups, self._downs) for ended in self._landed(flights)]
        return [*self._begun(), *ended]

    def _begun(self) -> Iterable[Arriving]:
        while self._beginning:
            try:
                if not self._device.query(self._beginning[0].events[0]):
                    return
            except Exception:  # noqa: BLE001 - it has failed, which its end will tell
                self._beginning.popleft()
            else:
                yield Arriving(self._beginning.popleft().number)

    def _landed(self, flights: deque[_Flight]) -> Iterable[Ended]:
        while flights:
            error: Exception | None = None
            for event in flights[0].events:
                try:
                    if not self._device.query(event):
                        return  # also after an error: the parts behind it are still being copied
                except Exception as failure:  # noqa: BLE001 - devices' errors have no common type; reported, not hidden
                    error = failure
            yield Ended(flights.popleft().number, error)

    @property
    def in_flight(self) -> int:
        """Transfers submitted and not yet reported."""
        return len(self._ups) + len(self._downs)

    def close(self) -> None:
        """Wait for everything in flight, then close the device. Idempotent."""
        if not self._closed:
            self._closed = True
            self._device.close()
