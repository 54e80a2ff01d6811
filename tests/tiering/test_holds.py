"""What is held stays, stops nobody, and agrees with ranks, terms, admission and what a restart finds."""

import numpy as np
import pytest

from tests.tiering.memory_model import DIED, OWNERS, MemoryModel
from tests.tiering.small_tiers import model, on_disk, prompt
from tiering.moves import Write
from tiering.owners import EVERYBODYS
from tiering.ranks import Rank
from tiering.residency import Tier


def hold(tiers, tier, *names: int):
    tokens = tiers.request(prompt(*names)).array
    assert tiers.index.keep.prefix(tokens, tier) == len(tokens) - 1
    for end in range(2, len(tokens), 2):
        tiers.used_s[tuple(tokens[:end].tolist())] = tiers.now_s


def settle(tiers):
    """Every move ends well, but for writes: the disk takes nothing more."""
    for _ in range(50):
        tiers.plan()
        if not tiers.flights:
            return
        number = tiers.completable()[0]
        tiers.complete(number, error=DIED if isinstance(tiers.flights[number].move, Write) else None)
    raise AssertionError("the core never comes to rest")


def serve(tiers, *names: int):
    """A request where the disk takes nothing."""
    request = tiers.request(prompt(*names))
    for _ in range(10):
        if tiers.try_to_admit(request):
            break
        settle(tiers)
    assert request.lease is not None, f"never admitted: {request.wait}"
    settle(tiers)
    tiers.prefill(request)
    tiers.check()
    tiers.release(request)
    settle(tiers)


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.DISK])
def test_a_single_leaf_that_is_held_is_not_given_up(tier):
    """By itself it goes another way than several blocks do."""
    tiers = model(4, 2, 4, held_share=1.0)
    tiers.run(prompt(1))
    hold(tiers, tier, 1)
    ids = tiers.index._holdings.radix.match(tiers.request(prompt(1)).array)
    tiers.index._eviction.give_up(Tier.DEVICE, ids)
    assert tiers.where(prompt(1)) == ["D"]
    tiers.check()


def test_others_go_where_what_is_held_finds_no_place_below():
    """And no hold is broken for it, although what is held was used before what goes."""
    tiers = model(9, 2, 8, held_share=1.0, disk_failures=1)
    tiers.run(prompt(1, 2, 3, 4))
    hold(tiers, Tier.DISK, 1, 2, 3, 4)
    serve(tiers, 5, 6, 7)
    for name in range(20, 60, 4):
        serve(tiers, name, name + 1, name + 2)
    assert sorted(tiers.where(prompt(1, 2, 3, 4))) == ["D", "D", "H", "H"]
    assert tiers.index.retention.num_broken == 0


def test_a_hold_is_broken_where_nothing_else_can_go():
    tiers = model(5, 2, 8, held_share=1.0, disk_failures=1)
    tiers.run(prompt(1, 2, 3, 4))
    hold(tiers, Tier.DISK, 1, 2, 3, 4)
    serve(tiers, 5, 6, 7, 8)
    assert tiers.index.retention.num_broken == 1


def test_what_is_held_in_host_memory_keeps_nothing_else_from_the_disk():
    """It was used before all that the disk has, and takes the place of none of that; what comes after it does."""
    tiers = model(4, 4, 3, held_share=0.5)
    tiers.run(prompt(1))
    hold(tiers, Tier.HOST, 1)
    for name in range(10, 30):
        tiers.run(prompt(name))
    assert tiers.where(prompt(1)) == ["H"]
    before = len(tiers.moves(Write))
    for name in range(30, 40):
        tiers.run(prompt(name))
    assert len(tiers.moves(Write)) >= before + 5
    tiers.index.retention.release(tiers.request(prompt(1)).array.tobytes())
    for name in range(40, 50):
        tiers.run(prompt(name))
    assert tiers.where(prompt(1)) == [], "once it is released it goes as all do"


def test_what_is_held_on_disk_takes_the_place_of_what_is_not():
    """Whenever it was used: else it would stay in host memory, where nobody wants it."""
    tiers = model(4, 4, 3, held_share=1.0, clean_share=0.0)
    tiers.run(prompt(1))
    hold(tiers, Tier.DISK, 1)
    for name in (10, 11, 12):
        tiers.run(prompt(name))
    for name in (10, 11, 12):
        path = tiers.request(prompt(name)).array[:-1].tobytes()
        for _ in tiers.index.demote_prefix(path, 0, Tier.DISK):
            tiers.settle()
    assert tiers.where(prompt(1)) == ["H"]
    assert tiers.index.stats()["tiers"]["disk"]["blocks"] == 3
    for name in range(20, 27):
        tiers.run(prompt(name))
    assert "K" in tiers.where(prompt(1))[0]
    tiers.check()


def test_a_load_that_what_is_held_leaves_no_place_is_computed_at_once():
    tiers = model(6, 1, 8, held_share=1.0, disk_failures=1)
    on_disk(tiers, 5, 6)
    tiers.run(prompt(1))
    hold(tiers, Tier.DISK, 1)
    serve(tiers, 10, 11, 12, 13, 14)
    assert tiers.where(prompt(1)) == ["H"]
    now_s = tiers.now_s
    serve(tiers, 5, 6)
    assert tiers.now_s == now_s
    assert tiers.index.num_expired == 1
    assert tiers.where(prompt(1)) == ["H"]


def test_a_hold_is_a_use_by_nobody_in_particular():
    """What was high before is normal then, as what leads to it is."""
    tiers = model(8, high_s=4.0, held_share=1.0)
    request = tiers.request(prompt(1, 2, 3))
    request.rank = Rank.HIGH
    assert tiers.try_to_admit(request)
    tiers.prefill(request)
    tiers.release(request)
    tiers.now_s += 100.0
    tiers.settle()
    tiers.run(prompt(1))
    hold(tiers, Tier.DEVICE, 1, 2)
    tiers.check()


def test_a_name_that_gave_way_is_over_when_its_time_is():
    """Uses of its blocks count no more, so it is over earlier than it would have been."""
    tiers = model(4, held_share=1.0)
    tiers.run(prompt(1, 2))
    tokens = tiers.request(prompt(1, 2)).array
    assert list(tiers.index.keep.name(b"a", tokens, EVERYBODYS, 20.0)) == []
    for tiers.now_s in (5.0, 20.0):
        tiers.run(prompt(1, 2))
    tiers.now_s = 21.0
    tiers.run(prompt(7, 8, 9))
    assert tiers.index.retention.num_broken == 1
    tiers.check()
    tiers.settle()
    assert tiers.index.retention.stats()["names"] == 0


def test_the_time_of_a_name_goes_on_while_its_blocks_are_lost():
    tiers = model(4, 4, 8)
    path = np.array(prompt(1, 2)[:4], dtype="<i4").tobytes()
    tiers.index.retention.restore_name(b"a", path, EVERYBODYS, ttl_s=20.0, age_s=15.0)
    assert tiers.index.retention.look(b"a").left_s == 5.0


@pytest.mark.parametrize(("rank", "ttl_s"), [(Rank.LOW, None), (Rank.NORMAL, 3.0), (Rank.LOW, 3.0)])
def test_what_is_found_after_a_restart_keeps_what_a_request_has_computed_before_it(rank, ttl_s):
    """It was used by somebody who had asked for nothing; so what leads to it is normal, and lives as long."""
    before = model(8, 4, 8, ttl_s=50.0)
    on_disk(before, 1, 2, 3)
    tiers = MemoryModel(before.config, before.disk, now_s=1.0, restores_in_steps=True)
    request = tiers.request(prompt(1))
    request.rank, request.ttl_s = rank, ttl_s
    assert tiers.try_to_admit(request)
    tiers.prefill(request)
    tiers.release(request)
    tiers.restore()
    tiers.check()
    tiers.now_s = 10.0
    tiers.settle()
    assert tiers.where(prompt(1, 2, 3)) == ["DK", "K", "K"]


def test_what_an_erased_owner_kept_is_not_remembered():
    """Nor its tokens, which nobody may ever say again."""
    tiers = model(8, 4, 8, held_share=1.0)
    tiers.run(prompt(3, 4, 5))  # the first owner's: see memory_model.ownership_of
    hold(tiers, Tier.DISK, 3, 4, 5)
    path = tiers.request(prompt(3, 4, 5)).array[:-1].tobytes()
    assert tiers.index.erase(OWNERS[0])
    assert tiers.index.retention.release(path) == 0
    assert not tiers.index.retention._kept
    tiers.check()
