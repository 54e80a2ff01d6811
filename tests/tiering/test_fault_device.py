"""Faults around a device: what each leaves in the slots, and that a mover is told of every one that raises."""

import threading

import numpy as np
import pytest

from kvstore.layers import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from tests.tiering.slot_arrays import GIVE_UP_S, SlotArray
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.faults import FaultDevice
from tiering.transfer.mover import WHOLE_SLOT, Mover

SLOTS = list(range(4))
RAISING = [ErrorBefore, ErrorAfter, ShortData, Garbage]


@pytest.fixture
def start():
    """Makes fault devices, and closes them."""
    devices = []

    def start(fault, **options):
        devices.append(FaultDevice(CpuDevice(), [fault], **options))
        return devices[-1]

    yield start
    for device in devices:
        device.close()


def copied(device, stream, slots=SLOTS):
    """Copy these slots and wait for it. The destination, of zeros before, and what the copy raised, if anything."""
    source, destination = SlotArray(4, fill=10), SlotArray(4)
    device.copy(stream, destination, slots, source, slots, WHOLE_SLOT)
    try:
        device.host_wait(device.record(stream))
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return destination, error
    return destination, None


def firsts(memory):
    return memory.bytes[:, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "left"), [(ErrorBefore, [0] * 4), (ErrorAfter, [10, 11, 12, 13]), (ShortData, [10, 11, 0, 0])]
)
def test_what_an_error_leaves_in_the_slots(start, kind, left):
    device = start(kind())
    destination, error = copied(device, device.stream("up"))
    assert isinstance(error, OSError)
    assert "up failed" in str(error)
    assert firsts(destination) == left
    assert device.injected(kind, "up") == device.injected() == 1


def test_garbage_lies_in_the_slots_of_the_copy_and_in_no_other(start):
    device = start(Garbage())
    destination, error = copied(device, device.stream("up"), [1, 3])
    assert isinstance(error, OSError)
    assert firsts(destination)[::2] == [0, 0]
    for slot in (1, 3):
        assert len(np.unique(destination.bytes[slot])) > 20, "bytes of no block"
    assert device.injected(Garbage, "up") == 1


@pytest.mark.parametrize("kind", RAISING)
def test_the_event_behind_the_copy_carries_the_error_and_no_other_event_does(start, kind):
    device = start(kind(on="up", first=1))
    up, down = device.stream("up"), device.stream("down")
    source, destination = SlotArray(4, fill=10), SlotArray(4)
    before = device.record(up)
    device.copy(up, destination, SLOTS, source, SLOTS, WHOLE_SLOT)
    struck = device.record(up)
    with pytest.raises(OSError, match="injected"):
        device.host_wait(struck)
    assert device.query(before)
    for stream in (up, down):
        destination, error = copied(device, stream)
        assert error is None
        assert firsts(destination) == [10, 11, 12, 13]
    assert device.injected() == 1


def test_an_error_may_be_the_callers(start):
    device = start(ErrorAfter(lambda: RuntimeError("fell off the bus")))
    _, error = copied(device, device.stream("down"))
    assert isinstance(error, RuntimeError)
    assert str(error) == "fell off the bus"


@pytest.mark.parametrize("slots", [[], [2]])
@pytest.mark.parametrize("kind", RAISING)
def test_copies_of_one_slot_and_of_none_are_struck_too(start, kind, slots):
    device = start(kind())
    destination, error = copied(device, device.stream("up"), slots)
    assert isinstance(error, OSError)
    arrived = kind is ErrorAfter and bool(slots)
    assert kind is Garbage or destination.holds(2, 12 if arrived else 0)
    assert device.injected() == 1


def test_a_delay_passes_on_the_streams_own_thread_before_a_byte_is_copied(start):
    passing, gate = threading.Event(), Gate()

    def sleep(seconds):
        assert seconds == 0.5
        passing.set()
        gate.wait()

    device = start(Delay(0.5), sleep=sleep)
    stream = device.stream("up")
    source, destination = SlotArray(4, fill=10), SlotArray(4)
    device.copy(stream, destination, SLOTS, source, SLOTS, WHOLE_SLOT)
    event = device.record(stream)
    assert passing.wait(GIVE_UP_S)
    assert not device.query(event)
    assert not destination.bytes.any()
    gate.open()
    device.host_wait(event)
    assert firsts(destination) == [10, 11, 12, 13]


def test_a_copy_hangs_until_it_is_let_go_and_the_other_stream_goes_on(start):
    gate = Gate()
    device = start(Hang(gate, on="up"))
    up = device.stream("up")
    source, destination = SlotArray(4, fill=10), SlotArray(4)
    device.copy(up, destination, SLOTS, source, SLOTS, WHOLE_SLOT)
    event = device.record(up)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert copied(device, device.stream("down"))[1] is None
    assert not device.query(event)
    assert not destination.bytes.any()
    gate.open()
    device.host_wait(event)
    assert firsts(destination) == [10, 11, 12, 13]


def test_close_lets_go_of_what_hangs_and_copies_none_of_it():
    gate = Gate()
    device = FaultDevice(CpuDevice(), [Hang(gate)])
    stream = device.stream("up")
    source, destination = SlotArray(4, fill=10), SlotArray(4)
    device.copy(stream, destination, SLOTS, source, SLOTS, WHOLE_SLOT)
    event = device.record(stream)
    assert gate.wait_until_reached(GIVE_UP_S)
    device.close()
    device.close()
    with pytest.raises(OSError, match="closed while it hung: up"):
        device.query(event)
    assert not destination.bytes.any()


def test_a_device_refuses_faults_that_it_cannot_inject(start):
    device = start(ErrorBefore(on="down"))
    for fault, complaint in ((DirtyMiss(), "cannot be injected"), (Delay(0.0, on="read"), "read")):
        with pytest.raises(ValueError, match=complaint):
            device.faults = [fault]
    assert device.faults == (ErrorBefore(on="down"),)


@pytest.mark.parametrize("seed", range(5))
def test_a_transfer_without_an_error_has_moved_every_byte(seed):
    """With every fault at once: each transfer ends once, and those that say that they arrived did."""
    ended = threading.Semaphore(0)
    faults = [Delay(0.1, chance=0.5), *(kind(chance=0.2) for kind in RAISING)]
    device = FaultDevice(CpuDevice(), faults, seed=seed, sleep=lambda _: None)
    pool, slab = SlotArray(80), SlotArray(80)
    rng = np.random.default_rng(seed)
    pool.bytes[:40], slab.bytes[40:] = rng.integers(1, 256, (2, 40, 64), dtype=np.uint8)
    expected = np.concatenate([pool.bytes[:40], slab.bytes[40:]])
    mover = Mover(device, pool, slab, ended.release)
    slots_of = {number: list(range(2 * number, 2 * number + 2)) for number in range(40)}
    for number, slots in slots_of.items():
        submit = mover.submit_demote if number < 20 else mover.submit_promote
        submit(number, slots, slots)
    for _ in slots_of:
        assert ended.acquire(timeout=GIVE_UP_S)
    ends = {end.number: end.error for end in mover.poll()}
    assert set(ends) == set(slots_of)
    assert mover.in_flight == 0
    for number, slots in slots_of.items():
        arrived = (slab if number < 20 else pool).bytes[slots]
        assert ends[number] is not None or np.array_equal(arrived, expected[slots])
    assert all(error is None or isinstance(error, OSError) for error in ends.values())
    assert all(device.injected(type(fault)) > 0 for fault in faults)
    assert 0 < sum(error is None for error in ends.values()) < 40
    mover.close()
