"""Order between copies and compute: one hazard at a time on the virtual device, and on threads with real waiting.

Freely mixed, and with a core that decides what moves: test_ordering.py.
"""

import threading

import pytest

from kvstore.layers import Gate
from tests.tiering.slot_arrays import GIVE_UP_S, SlotArray
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.mover import WHOLE_SLOT, Arriving, Ended, Mover
from tiering.transfer.virtual import POISON, CopyFailed, VirtualDevice, VirtualMemory

BLOCK_BYTES = 8
FIRST, SECOND = slice(0, 4), slice(4, 8)
NEW = 99


class Rig:
    """A mover over a virtual device, four slots in each memory, and steps that write slots or look at them.

    Each stream runs as far as it may when a test says so.
    """

    def __init__(self, groups=(WHOLE_SLOT,)) -> None:
        self.bad_slots = []
        self.device = VirtualDevice(lambda ready: ready[0], fails=self.fails)
        self.pool = VirtualMemory(4, BLOCK_BYTES, page_locked=False)
        self.slab = VirtualMemory(4, BLOCK_BYTES, page_locked=True)
        for slot in range(4):
            self.pool.view(slot)[:], self.slab.view(slot)[:] = 10 + slot, 20 + slot
        self.wakes = 0
        self.groups = groups
        self.mover = Mover(self.device, self.pool, self.slab, self.wake, groups)
        self.run("compute")
        self.seen = []

    def wake(self):
        self.wakes += 1

    def fails(self, destination, slots):
        return bool(self.bad_slots) and self.bad_slots.pop(0) in slots

    def enqueue_step(self, *, reads=(), writes=()):
        for number, group in enumerate(self.groups):
            self.mover.before_compute(reads, writes, number)
            self.device.launch(lambda group=group: self.kernel(reads, writes, group))
        self.mover.after_compute()

    def kernel(self, reads, writes, group):
        for slot in reads:
            self.seen += sorted(set(self.pool.view(slot)[group].tolist()))
            yield
        for slot in writes:
            self.pool.view(slot)[group] = NEW
            yield

    def run(self, name, most=None):
        """Let one stream go on until it waits, or has run so many pieces. Whether it has come to its end."""
        (stream,) = [each for each in self.device.streams if each.name == name]
        self.device.run(most, only=[stream])
        return not stream.work

    def pool_holds(self, slot, value, part=WHOLE_SLOT):
        return set(self.pool.view(slot)[part].tolist()) == {value}

    def slab_holds(self, slot, value):
        return set(self.slab.view(slot).tolist()) == {value}


@pytest.fixture
def rig():
    return Rig()


@pytest.fixture
def grouped():
    return Rig([FIRST, SECOND])


def test_a_copy_down_waits_for_the_step_that_writes_its_slot(rig):
    rig.enqueue_step(writes=[1])
    rig.mover.submit_demote(7, [1], [2])
    assert not rig.run("down")
    assert rig.mover.poll() == []
    rig.run("compute")
    assert rig.run("down")
    assert rig.slab_holds(2, NEW)


def test_a_copy_up_waits_for_the_step_that_reads_its_slot(rig):
    rig.enqueue_step(reads=[1])
    rig.mover.submit_promote(7, [2], [1])
    assert not rig.run("up")
    rig.run("compute")
    assert rig.seen == [11]
    assert rig.run("up")
    assert rig.pool_holds(1, 22)


def test_copies_wait_for_what_was_enqueued_before_the_mover_was_made():
    device = VirtualDevice(lambda ready: ready[0])
    pool = VirtualMemory(1, BLOCK_BYTES, page_locked=False)
    slab = VirtualMemory(1, BLOCK_BYTES, page_locked=True)
    slab.view(0)[:] = 20
    device.launch(lambda: pool.view(0).fill(0))
    mover = Mover(device, pool, slab, lambda: None)
    mover.submit_promote(1, [0], [0])
    device.run(only=device.streams[1:])
    mover.close()
    assert pool.view(0).tolist() == [20] * BLOCK_BYTES


def test_a_step_waits_for_the_copy_into_a_slot_that_it_reads(rig):
    rig.mover.submit_promote(7, [2], [1])
    rig.enqueue_step(reads=[1])
    assert not rig.run("compute")
    rig.run("up")
    assert rig.run("compute")
    assert rig.seen == [22]


def test_a_step_waits_for_the_copy_out_of_a_slot_that_it_writes(rig):
    rig.mover.submit_demote(7, [1], [2])
    rig.enqueue_step(writes=[1])
    assert not rig.run("compute")
    rig.run("down")
    assert rig.run("compute")
    assert rig.slab_holds(2, 11)


def test_a_step_does_not_wait_for_copies_of_other_slots_or_for_copies_that_only_read_with_it(rig):
    rig.mover.submit_promote(7, [2], [1])
    rig.mover.submit_demote(8, [3], [0])
    rig.enqueue_step(reads=[0, 3], writes=[2])
    assert rig.run("compute")


def test_a_step_waits_for_the_right_one_of_several_copies(rig):
    rig.mover.submit_promote(7, [2], [1])
    rig.mover.submit_promote(8, [3], [0])
    rig.enqueue_step(reads=[1])
    rig.device.close()
    assert rig.seen == [22]


def test_what_has_ended_is_told_once_and_each_direction_in_order(rig):
    for number, slot in enumerate(range(3), start=1):
        rig.mover.submit_promote(number, [slot], [slot])
    rig.mover.submit_demote(4, [3], [3])
    assert rig.mover.in_flight == 4
    assert rig.mover.poll() == []
    rig.run("down")
    assert [ended.number for ended in rig.mover.poll()] == [4]
    rig.run("up")
    assert rig.wakes == 4
    assert rig.mover.poll() == [Ended(number, None) for number in (1, 2, 3)]
    assert rig.mover.poll() == []
    assert rig.mover.in_flight == 0


# ---- layer groups


def test_a_step_begins_when_its_first_layers_have_arrived_and_waits_for_the_next(grouped):
    grouped.mover.submit_promote(7, [2], [1])
    grouped.enqueue_step(reads=[1])
    pieces = 0
    while not grouped.seen:
        pieces += grouped.device.run(1, only=grouped.device.streams[2:])
        grouped.run("compute")
    assert grouped.pool_holds(1, 22, FIRST)
    assert not grouped.pool_holds(1, 22, SECOND), "the step runs beside the rest of the copy"
    assert not grouped.run("compute"), "and comes no further than what has arrived"
    grouped.run("up")
    assert grouped.run("compute")
    assert grouped.seen == [22, 22]


def test_later_layers_do_not_wait_for_copies_down_again(grouped):
    grouped.mover.submit_demote(7, [1], [2])
    grouped.mover.before_compute([], [1], 1)
    assert grouped.run("compute"), "group 0 made the whole step wait"


def test_a_transfer_has_ended_when_its_last_part_has(grouped):
    grouped.mover.submit_promote(7, [2], [1])
    first_event = grouped.mover._ups[0].events[0]
    assert grouped.mover.poll() == []
    while not first_event.done:
        grouped.run("up", 1)
    assert grouped.wakes == 1
    assert grouped.mover.poll() == [Arriving(7)]
    assert grouped.mover.poll() == []
    grouped.run("up")
    assert grouped.mover.poll() == [Ended(7, None)]
    assert grouped.wakes == 2


def test_what_has_ended_is_not_told_to_arrive(grouped):
    grouped.mover.submit_promote(7, [2], [1])
    grouped.run("up")
    assert grouped.mover.poll() == [Ended(7, None)]
    assert grouped.mover.poll() == []


def test_finish_waits_for_copies_into_these_slots_and_no_others(grouped):
    grouped.mover.submit_promote(7, [2], [1])
    grouped.mover.submit_promote(8, [3], [0])
    grouped.mover.submit_demote(9, [2], [0])
    grouped.mover.finish([1])
    assert Ended(7, None) in grouped.mover.poll()
    assert grouped.mover.in_flight, "not for what comes behind them"


def test_finish_leaves_an_error_to_poll(grouped):
    grouped.bad_slots = [1]
    grouped.mover.submit_promote(7, [2], [1])
    grouped.mover.finish([1])
    (ended,) = grouped.mover.poll()
    assert isinstance(ended.error, CopyFailed)


@pytest.mark.parametrize("bad_part", [0, 1])
def test_an_error_in_any_part_is_the_transfers(grouped, bad_part):
    grouped.bad_slots = [*[None] * bad_part, 1]
    grouped.mover.submit_promote(7, [2], [1])
    grouped.mover.submit_promote(8, [3], [0])
    while not grouped.mover._ups[0].events[0].done:
        grouped.run("up", 1)
    told = [Arriving(7)] if bad_part else []
    assert grouped.mover.poll() == told, "the part behind a failed one is still copied"
    grouped.run("up")
    failed, good = grouped.mover.poll()
    assert failed.number == 7
    assert isinstance(failed.error, CopyFailed)
    assert good == Ended(8, None)
    assert grouped.pool_holds(0, 23)


def test_a_failed_copy_down_is_told_and_holds_poison(rig):
    rig.bad_slots = [2]
    rig.mover.submit_demote(7, [1], [2])
    rig.run("down")
    (ended,) = rig.mover.poll()
    assert isinstance(ended.error, CopyFailed)
    assert POISON in rig.slab.view(2)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [slice(0, 4)],
        [slice(4, 8)],
        [slice(0, 5), slice(4, 8)],
        [slice(0, 3), slice(4, 8)],
        [slice(4, 8), slice(0, 4)],
    ],
)
def test_layer_groups_must_be_the_whole_slot(groups):
    with pytest.raises(AssertionError, match="cut into pieces"):
        Rig(groups)


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
    slab.before_view = lambda _: gate.wait()
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
