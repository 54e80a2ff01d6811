"""What every device must do that runs without a GPU, and what only threads do. See also test_virtual_device.py."""

import random
import threading
from itertools import pairwise

import pytest

from kvstore.layers import Gate
from tests.tiering.slot_arrays import GIVE_UP_S, SlotArray
from tests.tiering.virtual_cuda import COMPUTE, VirtualCuda
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.cuda import CudaDevice
from tiering.transfer.faults import FaultDevice
from tiering.transfer.mover import WHOLE_SLOT
from tiering.transfer.staged import StagedCudaDevice
from tiering.transfer.virtual import VirtualDevice, VirtualMemory

BLOCK_BYTES = 8


class OnCpu:
    """A device with memory, and a way to make copies into a slot fail."""

    def __init__(self) -> None:
        self.device = self.make()

    def make(self):
        return CpuDevice()

    def memory(self, num_slots, fill=0):
        return SlotArray(num_slots, BLOCK_BYTES, fill=fill)

    def break_slot(self, memory, bad):
        def check(slot):
            if slot == bad:
                raise OSError(f"slot {bad} is broken")

        memory.before_view = check


class OnCpuWithoutFaults(OnCpu):
    """The layer that injects faults, with none to inject."""

    def make(self):
        return FaultDevice(CpuDevice())


class OnVirtual:
    page_locked = False

    def __init__(self) -> None:
        self.broken = set()
        self.device = VirtualDevice(random.Random(0).choice, fails=self.fails)

    def fails(self, destination, slots):
        return any((id(destination), slot) in self.broken for slot in slots)

    def memory(self, num_slots, fill=0):
        memory = VirtualMemory(num_slots, BLOCK_BYTES, page_locked=self.page_locked)
        for slot in range(num_slots):
            memory.view(slot)[:] = fill + slot
        return memory

    def break_slot(self, memory, bad):
        self.broken.add((id(memory), bad))


class OnVirtualHost(OnVirtual):
    page_locked = True


class OnCuda:
    """The CUDA device over a runtime that needs no GPU."""

    page_locked = False

    def __init__(self) -> None:
        self.runtime = VirtualCuda(VirtualDevice(random.Random(0).choice), runs_itself=True)
        self.runtime.refuses = lambda to: any(to in slot for slot in self.broken)
        self.device = self.make()
        self.broken, self.kept = [], []

    def make(self):
        return CudaDevice(self.runtime, lambda: COMPUTE)

    def memory(self, num_slots, fill=0):
        memory = VirtualMemory(num_slots, BLOCK_BYTES, page_locked=self.page_locked)
        if self.page_locked:
            self.lock(memory)
        else:
            self.runtime.owns(memory)
        self.kept.append(memory)  # its address is all that CUDA has
        for slot in range(num_slots):
            memory.view(slot)[:] = fill + slot
        return memory

    def lock(self, memory):
        # as if all of it were: these memories share pages
        end = memory.address + memory.num_slots * BLOCK_BYTES
        self.runtime.locked[memory.address] = range(memory.address, end)

    def break_slot(self, memory, bad):
        if bad is not None:
            address = memory.address + bad * BLOCK_BYTES
            self.broken.append(range(address, address + BLOCK_BYTES))


class OnCudaHost(OnCuda):
    page_locked = True


class OnCudaWithoutFaults(OnCuda):
    def make(self):
        return FaultDevice(super().make())


class GpuMemory(VirtualMemory):
    """Its views are not numpy's."""

    def view(self, slot):
        return memoryview(super().view(slot))


class OnCudaStaged(OnCuda):
    """With host memory that CUDA does not page-lock, and every other memory on the device; buffers smaller than a slot."""

    def make(self):
        return StagedCudaDevice(self.runtime, lambda: COMPUTE, buffer_bytes=BLOCK_BYTES // 2 + 1)

    def memory(self, num_slots, fill=0):
        on_device = len(self.kept) % 2
        kind = GpuMemory if on_device else SlotArray
        memory = kind(num_slots, BLOCK_BYTES, **({"page_locked": False} if on_device else {}))
        if on_device:
            self.runtime.owns(memory)
        self.kept.append(memory)
        for slot in range(num_slots):
            memoryview(memory.view(slot))[:] = bytes([fill + slot]) * BLOCK_BYTES
        return memory

    def break_slot(self, memory, bad):
        if isinstance(memory, SlotArray):
            OnCpu.break_slot(self, memory, bad)
        else:
            super().break_slot(memory, bad)


@pytest.fixture(
    params=[
        OnCpu,
        OnCpuWithoutFaults,
        OnVirtual,
        OnVirtualHost,
        OnCuda,
        OnCudaHost,
        OnCudaWithoutFaults,
        OnCudaStaged,
    ]
)
def place(request):
    place = request.param()
    yield place
    place.device.close()


@pytest.fixture
def device(place):
    return place.device


def copy(device, stream, to, to_slots, fro, fro_slots, part=WHOLE_SLOT):
    device.copy(stream, to, to_slots, fro, fro_slots, part)


def firsts(memory):
    return [memory.view(slot)[0] for slot in range(memory.num_slots)]


def holds(memory, slot, value, part=WHOLE_SLOT):
    return set(memory.view(slot)[part].tolist()) == {value}


# ---- every device


def test_copies_pair_slots_and_the_event_says_when_they_are_there(place, device):
    stream = device.stream("up")
    source, destination = place.memory(4, fill=10), place.memory(4)
    copy(device, stream, destination, [2, 0], source, [1, 3])
    device.host_wait(device.record(stream))
    assert firsts(destination) == [13, 1, 11, 3]


def test_a_copy_of_a_part_leaves_the_rest(place, device):
    stream = device.stream("up")
    source, destination = place.memory(2, fill=10), place.memory(2)
    copy(device, stream, destination, [1], source, [0], slice(2, 5))
    device.host_wait(device.record(stream))
    assert destination.view(1).tolist() == [1, 1, 10, 10, 10, 1, 1, 1]


@pytest.mark.parametrize("part", [WHOLE_SLOT, slice(2, 5)])
def test_slots_that_follow_each_other_and_slots_that_do_not_are_copied_as_if_one_by_one(place, device, part):
    to, fro = [7, 8, 9, 3, 2, 0, 5], [1, 2, 3, 9, 8, 5, 5]
    stream = device.stream("up")
    source, destination = place.memory(10, fill=10), place.memory(10, fill=100)
    copy(device, stream, destination, to, source, fro, part)
    device.host_wait(device.record(stream))
    for slot in range(10):
        expected = [100 + slot] * BLOCK_BYTES
        if slot in to:
            expected[part] = [10 + fro[to.index(slot)]] * len(expected[part])
        assert destination.view(slot).tolist() == expected


def test_no_slots_are_no_copy(place, device):
    stream, source, destination = device.stream("up"), place.memory(2, fill=10), place.memory(2)
    copy(device, stream, destination, [], source, [])
    device.host_wait(device.record(stream))
    assert firsts(destination) == [0, 1]


def test_a_stream_runs_in_order(place, device):
    stream = device.stream("up")
    memory = place.memory(1, fill=1)
    others = [place.memory(1, fill=fill) for fill in range(10, 20)]
    for here, there in pairwise([memory, *others]):
        copy(device, stream, there, [0], here, [0])
    device.host_wait(device.record(stream))
    assert all(holds(other, 0, 1) for other in others), "one value went from each memory to the next"


def test_a_stream_can_wait_for_another(place, device):
    first, second = device.stream("down"), device.stream("up")
    one, two, three = (place.memory(4, fill=fill) for fill in (10, 20, 30))
    copy(device, first, two, range(4), one, range(4))
    device.wait(second, device.record(first))
    copy(device, second, three, range(4), two, range(4))
    device.host_wait(device.record(second))
    assert firsts(three) == [10, 11, 12, 13], "the second copy saw what the first had written"


def test_an_error_is_carried_by_the_next_event_only(place, device):
    stream = device.stream("up")
    memory, source = place.memory(4, fill=1), place.memory(4, fill=10)
    place.break_slot(memory, 0)
    copy(device, stream, memory, [0], source, [0])
    copy(device, stream, memory, [2], source, [2])
    failed = device.record(stream)
    copy(device, stream, memory, [1], source, [1])
    good = device.record(stream)
    device.host_wait(good)
    with pytest.raises(Exception, match=r"slot 0 is broken|told to fail"):
        device.query(failed)
    with pytest.raises(Exception, match=r"slot 0 is broken|told to fail"):
        device.host_wait(failed)
    assert not holds(memory, 2, 12), "what follows a failure in the same transfer is left out"
    assert holds(memory, 1, 11)


def test_an_error_stays_with_its_own_stream(place, device):
    first, second = device.stream("down"), device.stream("up")
    broken, memory, source = place.memory(2), place.memory(2, fill=1), place.memory(2, fill=10)
    place.break_slot(broken, 0)
    copy(device, first, broken, [0], source, [1])
    failed = device.record(first)
    device.wait(device.compute, failed)
    device.wait(second, failed)
    copy(device, second, memory, [1], source, [0])
    device.host_wait(device.record(second))
    assert holds(memory, 1, 10)
    with pytest.raises(Exception, match=r"slot 0 is broken|told to fail"):
        device.query(failed)


def test_a_wait_behind_a_failed_copy_is_kept(place, device):
    """What comes behind the next event counts on it."""
    first, second = device.stream("down"), device.stream("up")
    slow, broken, memory = (place.memory(40, fill=fill) for fill in (50, 100, 150))
    place.break_slot(broken, 0)
    copy(device, first, slow, range(40), place.memory(40, fill=1), range(40))
    arrived = device.record(first)
    copy(device, second, broken, [0], memory, [1])
    device.wait(second, arrived)
    device.record(second)
    copy(device, second, memory, range(40), slow, range(40))
    device.host_wait(device.record(second))
    assert firsts(memory) == list(range(1, 41))


@pytest.mark.parametrize("bad", [None, 1])
def test_a_wake_up_comes_once_however_late_it_was_asked_for(place, device, bad):
    stream, woken = device.stream("up"), threading.Semaphore(0)
    memory = place.memory(3)
    place.break_slot(memory, bad)
    copy(device, stream, memory, [0, 1], place.memory(3), [2, 2])
    event = device.record(stream)
    device.notify(event, woken.release)
    device.host_wait(device.record(stream))
    assert woken.acquire(timeout=GIVE_UP_S)
    device.notify(event, woken.release)
    assert woken.acquire(timeout=GIVE_UP_S), "at once, for what has ended already"
    assert not woken.acquire(blocking=False)


def test_compute_is_a_stream_for_copies_too(place, device):
    memory, source = place.memory(2, fill=1), place.memory(2, fill=10)
    copy(device, device.compute, memory, [0], source, [1])
    event = device.record(device.compute)
    device.host_wait(event)
    assert device.query(event)
    assert holds(memory, 0, 11)


def test_close_lets_what_was_enqueued_end(place, device):
    memory, source = place.memory(2, fill=1), place.memory(2, fill=10)
    copy(device, device.stream("up"), memory, [0], source, [1])
    device.close()
    device.close()
    assert holds(memory, 0, 11)


# ---- threads


@pytest.fixture
def gate():
    """Where slot memory may hold up a stream."""
    return Gate()


@pytest.fixture
def cpu(gate):
    device = CpuDevice()
    yield device
    gate.open()  # a stream that still waits there would never end
    device.close()


def test_a_copy_that_reaches_behind_the_last_slot_fails(cpu):
    """Where several slots are one copy, nothing else would stop it."""
    memory = SlotArray(4, fill=1)
    memory.piece_slots = 8
    copy(cpu, stream := cpu.stream("up"), memory, [2, 3, 4], SlotArray(8), [0, 1, 2])
    with pytest.raises(IndexError, match="slot 4 of 4"):
        cpu.host_wait(cpu.record(stream))
    assert firsts(memory) == [1, 2, 3, 4], "nothing of it was copied"


def test_an_event_is_complete_only_when_the_work_before_it_has_ended(cpu, gate):
    stream = cpu.stream("up")
    memory = SlotArray(2, fill=1)
    memory.before_view = lambda _: gate.wait()
    early = cpu.record(stream)
    copy(cpu, stream, memory, [0], memory, [1])
    late = cpu.record(stream)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert cpu.query(early)
    assert not cpu.query(late)
    gate.open()
    cpu.host_wait(late)
    assert cpu.query(late)


def test_streams_do_not_wait_for_each_other(cpu, gate):
    blocked, free = cpu.stream("down"), cpu.stream("up")
    stuck, memory, passed = SlotArray(2), SlotArray(2, fill=1), threading.Semaphore(0)
    stuck.before_view = lambda _: gate.wait()
    copy(cpu, blocked, stuck, [0], stuck, [1])
    copy(cpu, free, memory, [0], memory, [1])
    cpu.notify(cpu.record(free), passed.release)
    assert passed.acquire(timeout=GIVE_UP_S)
    assert holds(memory, 0, 2)


def test_a_stream_that_waits_for_another_does_not_run_before_it(cpu, gate):
    first, second = cpu.stream("down"), cpu.stream("up")
    memory = SlotArray(3, fill=1)
    memory.before_view = lambda slot: gate.wait() if slot == 0 else None
    copy(cpu, first, memory, [1], memory, [0])
    cpu.wait(second, cpu.record(first))
    copy(cpu, second, memory, [2], memory, [1])
    done = cpu.record(second)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert not cpu.query(done)
    gate.open()
    cpu.host_wait(done)
    assert holds(memory, 2, 1)


def test_a_thread_waits_although_a_copy_before_has_failed(cpu, gate):
    first, second = cpu.stream("down"), cpu.stream("up")
    slow, broken, passed = SlotArray(2), SlotArray(2), threading.Semaphore(0)
    slow.before_view, broken.before_view = lambda _: gate.wait(), lambda _: 1 // 0
    copy(cpu, first, slow, [0], slow, [1])
    arrived = cpu.record(first)
    copy(cpu, second, broken, [0], broken, [1])
    cpu.wait(second, arrived)
    cpu.notify(cpu.record(second), passed.release)
    assert not passed.acquire(timeout=0.05), "it went past what it was to wait for"
    gate.open()
    assert passed.acquire(timeout=GIVE_UP_S)


def test_a_wake_up_does_not_come_before_the_end(cpu, gate):
    stream = cpu.stream("up")
    memory, woken = SlotArray(3), threading.Semaphore(0)
    memory.before_view = lambda _: gate.wait()
    copy(cpu, stream, memory, [0], memory, [2])
    cpu.notify(cpu.record(stream), woken.release)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert not woken.acquire(blocking=False)
    gate.open()
    assert woken.acquire(timeout=GIVE_UP_S)


def test_compute_is_the_caller(cpu):
    memory = SlotArray(2, fill=1)
    copy(cpu, cpu.compute, memory, [0], memory, [1])
    assert holds(memory, 0, 2)
    assert cpu.query(cpu.record(cpu.compute))
