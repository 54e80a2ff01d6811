"""Threads as streams: work in order, errors with the first event behind them, wake-ups that are never lost."""

import threading
from itertools import pairwise

import pytest

from tests.tiering.slot_arrays import GIVE_UP_S, Gate, SlotArray
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.faults import FaultDevice


@pytest.fixture(params=[CpuDevice, lambda: FaultDevice(CpuDevice())], ids=["bare", "with no faults"])
def device(request):
    device = request.param()
    yield device
    device.close()


def fail_at(bad):
    def check(slot):
        if slot == bad:
            raise OSError(f"slot {bad} is broken")

    return check


def test_copies_pair_slots_and_the_event_says_when_they_are_there(device):
    stream = device.stream("up")
    source, destination = SlotArray(4, fill=10), SlotArray(4)
    device.copy(stream, destination, [2, 0], source, [1, 3])
    device.host_wait(device.record(stream))
    assert destination.bytes[:, 0].tolist() == [13, 0, 11, 0]


def test_a_stream_runs_in_order(device):
    stream = device.stream("up")
    memory = SlotArray(9, fill=0)
    gate = Gate()
    memory.before_view = lambda slot: gate() if slot == 0 else None
    for here, there in pairwise(range(9)):
        device.copy(stream, memory, [there], memory, [here])
    gate.open()
    device.host_wait(device.record(stream))
    assert not memory.bytes.any(), "slot 0 went from each slot to the next"


def test_an_event_is_complete_only_when_the_work_before_it_has_ended(device):
    stream = device.stream("up")
    memory, gate = SlotArray(2, fill=1), Gate()
    memory.before_view = gate
    early = device.record(stream)
    device.copy(stream, memory, [0], memory, [1])
    late = device.record(stream)
    gate.wait_until_reached()
    assert device.query(early)
    assert not device.query(late)
    gate.open()
    device.host_wait(late)
    assert device.query(late)


def test_streams_do_not_wait_for_each_other(device):
    blocked, free = device.stream("down"), device.stream("up")
    stuck, memory, gate = SlotArray(2), SlotArray(2, fill=1), Gate()
    stuck.before_view = gate
    device.copy(blocked, stuck, [0], stuck, [1])
    device.copy(free, memory, [0], memory, [1])
    device.host_wait(device.record(free))
    assert memory.holds(0, 2)
    gate.open()


def test_a_stream_can_wait_for_another(device):
    first, second = device.stream("down"), device.stream("up")
    memory, gate = SlotArray(3, fill=1), Gate()
    memory.before_view = lambda slot: gate() if slot == 0 else None
    device.copy(first, memory, [1], memory, [0])
    device.wait(second, device.record(first))
    device.copy(second, memory, [2], memory, [1])
    done = device.record(second)
    gate.wait_until_reached()
    assert not device.query(done)
    gate.open()
    device.host_wait(done)
    assert memory.holds(2, 1), "the second copy saw what the first had written"


def test_an_error_is_carried_by_the_next_event_only(device):
    stream = device.stream("up")
    memory = SlotArray(4, fill=1)
    memory.before_view = fail_at(0)
    device.copy(stream, memory, [1], memory, [0])
    device.copy(stream, memory, [2], memory, [3])
    failed = device.record(stream)
    device.copy(stream, memory, [1], memory, [3])
    good = device.record(stream)
    device.host_wait(good)
    with pytest.raises(OSError, match="slot 0 is broken"):
        device.query(failed)
    with pytest.raises(OSError, match="slot 0 is broken"):
        device.host_wait(failed)
    assert memory.holds(2, 3), "what follows a failure in the same transfer is left out"
    assert memory.holds(1, 4)


def test_an_error_stays_with_its_own_stream(device):
    first, second = device.stream("down"), device.stream("up")
    broken, memory = SlotArray(2), SlotArray(2, fill=1)
    broken.before_view = fail_at(0)
    device.copy(first, broken, [1], broken, [0])
    failed = device.record(first)
    device.wait(device.compute, failed)
    device.wait(second, failed)
    device.copy(second, memory, [1], memory, [0])
    device.host_wait(device.record(second))
    assert memory.holds(1, 1)
    with pytest.raises(OSError, match="slot 0 is broken"):
        device.query(failed)


@pytest.mark.parametrize("bad", [None, 1])
def test_a_wake_up_comes_once_however_late_it_was_asked_for(device, bad):
    stream = device.stream("up")
    memory, gate, woken = SlotArray(3), Gate(), threading.Semaphore(0)
    memory.before_view = lambda slot: gate() if slot == 0 else fail_at(bad)(slot)
    device.copy(stream, memory, [0, 1], memory, [2, 2])
    event = device.record(stream)
    gate.wait_until_reached()
    device.notify(event, woken.release)
    assert not woken.acquire(blocking=False), "nothing has ended yet"
    gate.open()
    assert woken.acquire(timeout=GIVE_UP_S)
    device.notify(event, woken.release)
    assert woken.acquire(timeout=GIVE_UP_S), "at once, for what has ended already"
    assert not woken.acquire(blocking=False)


def test_compute_is_the_caller(device):
    memory = SlotArray(2, fill=1)
    device.copy(device.compute, memory, [0], memory, [1])
    assert memory.holds(0, 2)
    assert device.query(device.record(device.compute))


def test_close_lets_what_was_enqueued_end():
    device = CpuDevice()
    memory = SlotArray(2, fill=1)
    device.copy(device.stream("up"), memory, [0], memory, [1])
    device.close()
    device.close()
    assert memory.holds(0, 2)
