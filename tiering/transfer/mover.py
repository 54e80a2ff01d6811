"""The mover: the only code that knows in which order compute and copies must run.

Two copy streams, one for each direction, beside the engine's compute stream::

    compute  --[ step n ]--E1------------------[ wait E3 | step n+1 reads slot 7 ]--
    down     ------------wait E1 [ slot 5 -> host 2 ] E2
    up       ------------wait E1 [ host 9 -> slot 7 ] E3

The hazards, and what prevents each:

* a copy down reads a slot that a step is still writing: it waits for the last step's event (E1);
* a copy up overwrites a slot that a step is still reading: the same wait;
* a step reads a slot whose copy up has not ended: `before_compute` makes compute wait for its event (E3);
* a step overwrites a slot that a copy down still reads: `before_compute` makes compute wait for E2;
* a slot or host place is reused before the copy out of it has ended: its owner frees it only when `poll` says so.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.slots import SlotMemory
from tiering.transfer.device import Device


@dataclass(frozen=True, slots=True)
class Ended:
    """A transfer that is over. `error` is None when every byte has arrived."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class _Flight:
    number: int
    event: Any
    device_slots: frozenset[int]


class Mover:
    """Copies whole blocks between the device pool and the host slab, in an order that is safe beside compute.

    One thread calls it. No call blocks on a device with a real compute stream; where compute is the calling thread,
    `before_compute` blocks until what the step needs has arrived.
    """

    def __init__(self, device: Device, pool: SlotMemory, slab: SlotMemory, wake: Callable[[], None]) -> None:
        """`wake` is called, from any thread, when a transfer has ended and `poll` has something to say."""
        self._device, self._pool, self._slab, self._wake = device, pool, slab, wake
        self._down, self._up = device.stream("down"), device.stream("up")
        self._downs: deque[_Flight] = deque()
        self._ups: deque[_Flight] = deque()
        self._computed = device.record(device.compute)
        self._closed = False

    def submit_demote(self, number: int, device_slots: Sequence[int], host_slots: Sequence[int]) -> None:
        """Copy device slots to host slots. Both stay taken until `poll` reports `number`."""
        # the step that computed these blocks may still run: reading now would copy half-written KV
        self._device.wait(self._down, self._computed)
        self._device.copy(self._down, self._slab, host_slots, self._pool, device_slots)
        self._depart(self._down, self._downs, number, device_slots)

    def submit_promote(self, number: int, host_slots: Sequence[int], device_slots: Sequence[int]) -> None:
        """Copy host slots to device slots. Both stay taken until `poll` reports `number`."""
        # a slot's last owner has left, but the step it was in may still read the slot on the device
        self._device.wait(self._up, self._computed)
        self._device.copy(self._up, self._pool, device_slots, self._slab, host_slots)
        self._depart(self._up, self._ups, number, device_slots)

    def _depart(self, stream: Any, flights: deque[_Flight], number: int, device_slots: Sequence[int]) -> None:
        event = self._device.record(stream)
        flights.append(_Flight(number, event, frozenset(device_slots)))
        self._device.notify(event, self._wake)

    def before_compute(self, read_slots: Iterable[int], written_slots: Iterable[int]) -> None:
        """Make the next step wait for copies into slots that it reads and out of slots that it writes.

        A copy that failed has ended too: only `poll` tells whether the bytes are there.
        """
        if self._ups:
            self._wait_for(self._ups, frozenset(read_slots))
        if self._downs:
            self._wait_for(self._downs, frozenset(written_slots))

    def _wait_for(self, flights: Iterable[_Flight], slots: frozenset[int]) -> None:
        for flight in flights:
            if not slots.isdisjoint(flight.device_slots):
                # up: the step would read bytes that have not arrived; down: it would overwrite bytes not yet read
                self._device.wait(self._device.compute, flight.event)

    def after_compute(self) -> None:
        """Note that a step has been enqueued: later copies wait for it."""
        self._computed = self._device.record(self._device.compute)

    def poll(self) -> list[Ended]:
        """The transfers that have ended since the last call. Streams keep order, so a look at each front is enough."""
        return [ended for flights in (self._ups, self._downs) for ended in self._landed(flights)]

    def _landed(self, flights: deque[_Flight]) -> Iterable[Ended]:
        while flights:
            error: Exception | None = None
            try:
                if not self._device.query(flights[0].event):
                    return
            except Exception as failure:  # noqa: BLE001 - a device's errors have no common type; reported, not hidden
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
