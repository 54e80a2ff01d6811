"""Order between copies and compute: on threads with real bytes, and step by step where a missing wait would only be a race."""

import threading
from collections import deque
from dataclasses import dataclass, field

import pytest

from tests.tiering.slot_arrays import GIVE_UP_S, Gate, SlotArray
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.mover import Ended, Mover

NEW = 99


@dataclass
class SteppedEvent:
    done: bool = False
    wakes: list = field(default_factory=list)


class SteppedDevice:
    """Streams that run when they are told to, as far as events let them: also compute is one, as on a GPU."""

    def __init__(self) -> None:
        self.compute, self.streams = deque(), {}

    def stream(self, name):
        return self.streams.setdefault(name, deque())

    def do(self, stream, job):
        stream.append((None, job))

    def copy(self, stream, destination, destination_slots, source, source_slots):
        for to, fro in zip(destination_slots, source_slots, strict=True):
            self.do(stream, lambda to=to, fro=fro: destination.bytes.__setitem__(to, source.bytes[fro]))

    def record(self, stream):
        event = SteppedEvent()

        def complete():
            event.done = True
            for wake in event.wakes:
                wake()

        self.do(stream, complete)
        return event

    def wait(self, stream, event):
        stream.append((event, lambda: None))

    def query(self, event):
        return event.done

    def notify(self, event, wake):
        event.wakes.append(wake)

    def run(self, *streams: deque):
        """Run these to where they wait for an event that is not complete. Whether one could not run on."""
        for stream in streams:
            while stream:
                event, job = stream[0]
                if event is not None and not event.done:
                    return False
                stream.popleft()
                job()
        return True

    def close(self):
        while not all([self.run(stream) for stream in (self.compute, *self.streams.values())]):  # noqa: C419
            pass


class Stepped:
    """A mover over a stepped device, four slots in each memory, and a step that writes or reads a slot."""

    def __init__(self) -> None:
        self.device = SteppedDevice()
        self.pool, self.slab = SlotArray(4, fill=10), SlotArray(4, fill=20)
        self.wakes = 0
        self.mover = Mover(self.device, self.pool, self.slab, self.wake)
        self.device.run(self.device.compute)
        self.down, self.up = self.device.stream("down"), self.device.stream("up")
        self.seen = []

    def wake(self):
        self.wakes += 1

    def enqueue_step(self, *, reads=(), writes=()):
        self.mover.before_compute(reads, writes)
        for slot in reads:
            self.device.do(self.device.compute, lambda slot=slot: self.seen.append(self.pool.bytes[slot, 0]))
        for slot in writes:
            self.device.do(self.device.compute, lambda slot=slot: self.pool.bytes[slot].fill(NEW))
        self.mover.after_compute()

    def compute(self):
        return self.device.run(self.device.compute)


@pytest.fixture
def stepped():
    return Stepped()


def test_a_copy_down_waits_for_the_step_that_writes_its_slot(stepped):
    stepped.enqueue_step(writes=[1])
    stepped.mover.submit_demote(7, [1], [2])
    assert not stepped.device.run(stepped.down)
    assert stepped.mover.poll() == []
    stepped.compute()
    assert stepped.device.run(stepped.down)
    assert stepped.slab.holds(2, NEW)


def test_a_copy_up_waits_for_the_step_that_reads_its_slot(stepped):
    stepped.enqueue_step(reads=[1])
    stepped.mover.submit_promote(7, [2], [1])
    assert not stepped.device.run(stepped.up)
    stepped.compute()
    assert stepped.seen == [11]
    assert stepped.device.run(stepped.up)
    assert stepped.pool.holds(1, 22)


def test_a_step_waits_for_the_copy_into_a_slot_that_it_reads(stepped):
    stepped.mover.submit_promote(7, [2], [1])
    stepped.enqueue_step(reads=[1])
    assert not stepped.compute()
    stepped.device.run(stepped.up)
    assert stepped.compute()
    assert stepped.seen == [22]


def test_a_step_waits_for_the_copy_out_of_a_slot_that_it_writes(stepped):
    stepped.mover.submit_demote(7, [1], [2])
    stepped.enqueue_step(writes=[1])
    assert not stepped.compute()
    stepped.device.run(stepped.down)
    assert stepped.compute()
    assert stepped.slab.holds(2, 11)


def test_a_step_does_not_wait_for_copies_of_other_slots_or_for_copies_that_only_read_with_it(stepped):
    stepped.mover.submit_promote(7, [2], [1])
    stepped.mover.submit_demote(8, [3], [0])
    stepped.enqueue_step(reads=[0, 3], writes=[2])
    assert stepped.compute()


def test_a_step_waits_for_the_right_one_of_several_copies(stepped):
    stepped.mover.submit_promote(7, [2], [1])
    stepped.mover.submit_promote(8, [3], [0])
    stepped.enqueue_step(reads=[1])
    stepped.device.close()
    assert stepped.seen == [22]


def test_what_has_ended_is_told_once_and_each_direction_in_order(stepped):
    for number, slot in enumerate(range(3), start=1):
        stepped.mover.submit_promote(number, [slot], [slot])
    stepped.mover.submit_demote(4, [3], [3])
    assert stepped.mover.in_flight == 4
    assert stepped.mover.poll() == []
    stepped.device.run(stepped.down)
    assert [ended.number for ended in stepped.mover.poll()] == [4]
    stepped.device.run(stepped.up)
    assert stepped.wakes == 4
    assert stepped.mover.poll() == [Ended(number, None) for number in (1, 2, 3)]
    assert stepped.mover.poll() == []
    assert stepped.mover.in_flight == 0


# ---- on threads


class OpeningDevice(CpuDevice):
    """Opens a gate once compute is about to wait: where it does not, the gate stays shut."""

    def __init__(self, gate) -> None:
        super().__init__()
        self.gate = gate

    def wait(self, stream, event):
        if stream is self.compute:
            self.gate.open()
        super().wait(stream, event)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_before_compute_blocks_the_caller_until_the_copy_has_ended(direction):
    gate = Gate()
    pool, slab = SlotArray(4, fill=10), SlotArray(4, fill=20)
    slab.before_view = gate
    mover = Mover(OpeningDevice(gate), pool, slab, lambda: None)
    if direction == "up":
        mover.submit_promote(1, [2], [1])
        mover.before_compute([1], [])
        arrived = pool.holds(1, 22)
    else:
        mover.submit_demote(1, [1], [2])
        mover.before_compute([], [1])
        arrived = slab.holds(2, 11)
    gate.open()
    mover.close()
    assert arrived


def test_an_error_reaches_the_transfer_that_it_belongs_to_and_no_other():
    ended = threading.Semaphore(0)
    pool, slab = SlotArray(8, fill=10), SlotArray(8, fill=20)

    def check(slot):
        if slot == 3:
            raise OSError("slot 3 is broken")

    slab.before_view = check
    mover = Mover(CpuDevice(), pool, slab, ended.release)
    for number, slots in enumerate([[0, 1], [2, 3], [4, 5]]):
        mover.submit_promote(number, slots, slots)
    mover.submit_demote(3, [6], [3])
    mover.submit_demote(4, [7], [6])
    for _ in range(5):
        assert ended.acquire(timeout=GIVE_UP_S), "each transfer wakes once, failed or not"
    failed = {each.number: each.error is not None for each in mover.poll()}
    mover.close()
    assert failed == {0: False, 1: True, 2: False, 3: True, 4: False}
    assert pool.holds(4, 24)
    assert slab.holds(6, 17)


def test_close_waits_for_copies_in_flight():
    pool, slab = SlotArray(2, fill=10), SlotArray(2, fill=20)
    mover = Mover(CpuDevice(), pool, slab, lambda: None)
    mover.submit_demote(1, [0, 1], [1, 0])
    mover.close()
    mover.close()
    assert slab.bytes[:, 0].tolist() == [11, 10]
