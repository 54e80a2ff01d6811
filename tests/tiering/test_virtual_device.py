"""The virtual device: orders that are chosen, poison where nothing is yet, and work that can never run."""

import random

import numpy as np
import pytest

from tests.tiering.slot_arrays import SlotArray
from tiering.transfer.mover import WHOLE_SLOT
from tiering.transfer.virtual import POISON, Stuck, VirtualDevice, VirtualMemory

BLOCK_BYTES = 8


def holds(memory, slot, value):
    return set(memory.view(slot).tolist()) == {value}


@pytest.fixture
def virtual():
    return VirtualDevice(lambda ready: ready[0])


def pool_of(values):
    return memory_of(values, page_locked=False)


def slab_of(values):
    return memory_of(values, page_locked=True)


def memory_of(values, *, page_locked):
    memory = VirtualMemory(len(values), BLOCK_BYTES, page_locked=page_locked)
    for slot, value in enumerate(values):
        if value is not None:
            memory.view(slot)[:] = value
    return memory


def test_memory_is_poison_at_first():
    assert holds(pool_of([None]), 0, POISON)
    assert holds(slab_of([None]), 0, POISON)
    with pytest.raises(IndexError, match="slot -1 is outside"):
        pool_of([None]).view(-1)


def test_nothing_runs_by_itself(virtual):
    pool, slab = pool_of([1]), slab_of([2])
    virtual.copy(virtual.stream("up"), pool, [0], slab, [0], WHOLE_SLOT)
    assert holds(pool, 0, 1)


def test_what_a_copy_overwrites_is_poison_from_its_beginning_on_the_device(virtual):
    pool, slab = pool_of([1]), slab_of([2])
    virtual.copy(virtual.stream("up"), pool, [0], slab, [0], WHOLE_SLOT)
    virtual.run(1)
    assert holds(pool, 0, POISON)
    virtual.run(1)
    assert set(pool.view(0).tolist()) == {2, POISON}, "a copy is seen half done"
    virtual.run()
    assert holds(pool, 0, 2)


def test_what_a_copy_overwrites_is_poison_at_once_in_host_memory_until_an_event_completes(virtual):
    pool, slab = pool_of([1]), slab_of([2])
    stream = virtual.stream("down")
    virtual.copy(stream, slab, [0], pool, [0], WHOLE_SLOT)
    assert holds(slab, 0, POISON)
    event = virtual.record(stream)
    while len(stream.work) > 1:
        virtual.run(1)
    assert not virtual.query(event)
    assert holds(slab, 0, POISON), "all of it is copied, and nobody may know"
    virtual.run()
    assert virtual.query(event)
    assert holds(slab, 0, 1)


def test_any_other_memory_is_host_memory(virtual):
    slab = SlotArray(1, BLOCK_BYTES, fill=5)
    virtual.copy(virtual.stream("down"), slab, [0], pool_of([1]), [0], WHOLE_SLOT)
    assert holds(slab, 0, POISON)
    virtual.close()
    assert holds(slab, 0, 1)


def test_a_copy_that_fails_leaves_poison_behind():
    device = VirtualDevice(lambda several: several[-1], fails=lambda *_: True)
    pool = pool_of([1, 1])
    device.copy(device.stream("up"), pool, [0, 1], slab_of([2, 2]), [0, 1], WHOLE_SLOT)
    device.run()
    assert holds(pool, 0, 2)
    assert POISON in pool.view(1), "it broke off at its last piece"


def orders(num_schedules):
    """In which orders three kernels' and copies' pieces come, by seed."""
    found = set()
    for seed in range(num_schedules):
        device = VirtualDevice(random.Random(seed).choice)
        up, down = device.stream("up"), device.stream("down")
        pool, slab = pool_of([0, 0]), slab_of([1, 2])
        steps = []

        def kernel(steps=steps, pool=pool):
            for _ in range(2):
                steps.append(pool.view(0).tolist())
                yield

        device.launch(kernel)
        device.copy(up, pool, [0], slab, [0], WHOLE_SLOT)
        device.copy(down, slab, [1], pool, [0], WHOLE_SLOT)
        device.close()
        found.add((str(steps), str(slab.view(1).tolist())))
    return found


def test_without_waits_everything_can_come_between_everything():
    assert len(orders(300)) > 40


def test_a_seed_is_an_order():
    assert orders(20) == orders(20)


def test_a_job_may_be_a_plain_function(virtual):
    pool = pool_of([0])
    virtual.launch(lambda: pool.view(0).fill(7))
    virtual.host_wait(virtual.record(virtual.compute))
    assert holds(pool, 0, 7)


def test_what_a_job_asserts_fails_whoever_runs_it(virtual):
    def job():
        assert np.array_equal(pool_of([0]).view(0), slab_of([1]).view(0)), "wrong bytes"

    virtual.launch(job)
    with pytest.raises(AssertionError, match="wrong bytes"):
        virtual.close()


def test_work_that_can_never_run_is_told(virtual):
    elsewhere = VirtualDevice(lambda ready: ready[0])
    up = virtual.stream("up")
    virtual.wait(up, elsewhere.record(elsewhere.stream("down")))
    event = virtual.record(up)
    with pytest.raises(Stuck, match="an event of up that never completes: up waits for down"):
        virtual.host_wait(event)
    with pytest.raises(Stuck, match="cannot come to its end: up waits for down"):
        virtual.close()
