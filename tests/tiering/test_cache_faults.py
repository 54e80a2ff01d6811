"""The cache over a store and a device that do not do as they should: the right bytes come back, and nothing hangs."""

import pytest

from kvstore.errors import StoreFull
from kvstore.layers import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    FaultStore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from tests.tiering.rig import PROMPTS, key_of
from tests.tiering.slot_arrays import GIVE_UP_S
from tiering.residency import Tier
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.faults import FaultDevice


def test_a_record_that_is_gone_costs_one_block(open_store, start):
    rig = start(open_store())
    rig.put_on_disk(1, 2, 3)
    rig.store.delete_many([key_of(1, 2)])
    assert rig.serve(1, 2, 3) == {"disk": 2}
    assert rig.failed_loads() == {"absent": 1}
    assert rig.lookup(1, 2, 3) == {"device": 3}


def test_a_damaged_record_is_never_served(open_store, start):
    rig = start(open_store())
    rig.put_on_disk(1, 2, 3)
    rig.store.raw().corrupt(key_of(1))
    assert rig.serve(1, 2, 3) == {"disk": 2}
    assert sum(rig.failed_loads().values()) == 1


def test_a_store_that_cannot_read_makes_the_request_compute(faulty, start):
    rig = start(faulty)
    rig.put_on_disk(1, 2)
    faulty.faults = [ErrorBefore(on="read")]
    assert rig.serve(1, 2) == {}
    assert rig.failed_loads() == {"read_failed": 2}
    assert rig.cache.close()


def test_a_store_that_cannot_write_leaves_the_blocks_in_host_memory(faulty, start):
    rig = start(faulty)
    faulty.faults = [ErrorBefore(StoreFull, on="write")]
    rig.serve(1, 2)
    rig.cache.sweep(Tier.DISK, then_free=True)
    rig.settle()
    assert rig.lookup(1, 2) == {"host": 2}
    disk = rig.cache.stats()["tiers"]["disk"]
    assert disk["failed_writes"] > 0
    assert disk["bytes"] == 0
    assert rig.cache.close(flush_s=GIVE_UP_S), "a disk that rests does not hold up the end"


def test_deletes_that_fail_are_counted(faulty, start):
    rig = start(faulty)
    rig.put_on_disk(1, 2)
    faulty.faults = [ErrorBefore(on="delete")]
    rig.cache.clear(GIVE_UP_S)
    assert rig.cache.close()
    assert rig.cache._calls.num_failed_deletes == 2


def test_a_store_that_cannot_be_listed_is_taken_for_empty(faulty, start, caplog):
    """It was tried twice; and requests are served, and written down."""
    faulty.faults = [ErrorBefore(on="scan")]
    rig = start(faulty)
    assert not rig.cache.stats()["tiers"]["disk"]["restoring"]
    assert "cannot be listed" in caplog.text
    assert faulty.injected(on="scan") == 2
    rig.put_on_disk(1, 2)
    assert rig.lookup(1, 2) == {"disk": 2}


@pytest.mark.parametrize("kind", [ErrorBefore, ErrorAfter, ShortData, Garbage])
def test_a_copy_up_that_fails_makes_the_request_compute(start, kind):
    device = FaultDevice(CpuDevice())
    rig = start(None, device)
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    rig.settle()
    device.faults = [kind(on="up", first=1)]
    assert rig.serve(1, 2) == {}
    assert rig.failed_loads() == {"copy_failed": 2}
    assert device.injected(kind, "up") == 1
    assert rig.serve(1, 2) == {"device": 2}


@pytest.mark.parametrize("kind", [ErrorBefore, ErrorAfter, ShortData, Garbage])
def test_a_copy_down_that_fails_is_not_taken_for_a_copy(start, kind):
    device = FaultDevice(CpuDevice(), [kind(on="down")])
    rig = start(None, device)
    rig.serve(1, 2, 3)
    rig.serve(4, 5, 6)
    assert device.injected(kind, "down") > 0
    assert rig.lookup(1, 2, 3) == {"device": 1}, "what had to leave is nowhere"
    device.faults = ()
    assert rig.serve(1, 2, 3) == {"device": 1}


def test_a_sweep_ends_although_no_copy_down_succeeds(start):
    device = FaultDevice(CpuDevice(), [ErrorBefore(on="down")])
    rig = start(None, device)
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    rig.settle()
    assert rig.lookup(1, 2) == {"device": 2}


def test_close_ends_a_copy_that_hangs(start):
    gate = Gate()
    rig = start(None, FaultDevice(CpuDevice(), [Hang(gate, on="down")]))
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert rig.cache.close()


@pytest.mark.parametrize("seed", range(4))
def test_with_every_fault_at_once_every_block_is_right_and_nothing_is_left_over(open_store, start, seed):
    """`serve` looks at each byte, `settle` checks the books; it goes on until every fault has acted."""
    gate = Gate()
    gate.open()
    errors = [kind(chance=0.1) for kind in (ErrorBefore, ErrorAfter)]
    damage = [kind(chance=0.1) for kind in (ShortData, Garbage)]
    faults = [Delay(1.0, chance=0.3), Hang(gate), *errors, *damage]
    device = FaultDevice(CpuDevice(), seed=seed, sleep=lambda _: None)
    faulty = FaultStore(open_store(), seed=seed, sleep=lambda _: None)
    rig = start(faulty, device, disk_rest_s=0.0)
    device.faults, faulty.faults = faults, [*faults, FalseMiss(chance=0.2), DirtyMiss()]
    expected = [(device, type(fault), on) for fault in faults for on in ("up", "down")]
    expected += [(faulty, type(fault), on) for fault in faults for on in ("read", "write")]
    expected += [(faulty, FalseMiss, "read"), (faulty, DirtyMiss, "read")]
    for turn in range(100):
        for names in PROMPTS:
            rig.serve(*names)
        rig.cache.sweep([Tier.HOST, Tier.DISK][turn % 2], then_free=True)
        rig.settle()
        missing = [kind for layer, kind, on in expected if not layer.injected(kind, on)]
        if not missing:
            break
    assert missing == []
    assert rig.cache.stats()["leases"] == 0
    device.faults = faulty.faults = ()
    for names in PROMPTS:
        rig.serve(*names)
