"""A prefix is forgotten or moved down by hand: all of it that is idle, nothing else, and while requests go on."""

import threading

import numpy as np
import pytest

from kvstore.memory import MemoryStore
from kvstore.reports import PrefixQuery, Removed
from tests.tiering.memory_model import DIED
from tests.tiering.rig import LAYOUT, NAMESPACE, Rig
from tests.tiering.slot_arrays import GIVE_UP_S
from tests.tiering.small_tiers import lookup, model, on_disk, prompt, stats
from tests.tiering.test_listing import run
from tiering.moves import Demote, Write
from tiering.residency import Tier


def done(tiers, steps):
    """What an errand answers, with everything that it waits for."""
    waits_for = None
    for _ in range(200):
        if waits_for is None or waits_for():
            try:
                waits_for = next(steps)
            except StopIteration as end:
                tiers.settle()
                return end.value
        tiers.plan()
        if tiers.flights:
            tiers.complete(tiers.completable()[0])
    raise AssertionError("the errand waits for ever")


def remove(tiers, *names: int, start=0):
    return done(tiers, tiers.index.remove_prefix(run(*names).tobytes(), start))


def demote(tiers, to, *names: int, start=0):
    return done(tiers, tiers.index.demote_prefix(run(*names).tobytes(), start, to))


# --- removing -------------------------------------------------------------------------------------------------------


def test_what_is_removed_goes_from_every_tier_and_leaves_what_leads_to_it_and_what_branches_off():
    tiers = model(device=8, host=8, disk=16)
    on_disk(tiers, 1, 2, 3)
    tiers.run(prompt(1, 2, 4))
    tiers.run(prompt(1, 5))
    assert remove(tiers, 1, 2, start=1) == Removed(blocks=3, in_use_blocks=0)
    assert lookup(tiers, 1, 2, 3) == lookup(tiers, 1, 2, 4) == {"device": 1}
    assert lookup(tiers, 1, 5) == {"device": 2}
    assert len(tiers.disk) == 1, "records were not deleted"
    assert tiers.index.stats()["removed"] == 3
    assert tiers.index.events.after(0)[-1].facts == {"blocks": 3, "in_use_blocks": 0}
    tiers.check()


def test_what_a_request_holds_stays_with_what_leads_to_it_and_is_counted():
    tiers = model(device=8, host=8)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(1, 4))
    running = tiers.admit(prompt(1, 2))
    assert remove(tiers, 1) == Removed(blocks=2, in_use_blocks=2)
    assert lookup(tiers, 1, 2, 3) == {"device": 2}
    tiers.prefill(running)
    tiers.release(running)
    assert remove(tiers, 1) == Removed(blocks=2, in_use_blocks=0)
    assert tiers.index.stats()["blocks"] == 0


def test_what_comes_while_a_prefix_is_removed_goes_as_well_and_a_split_hides_nothing(monkeypatch):
    monkeypatch.setattr("tiering.by_hand._REMOVE_BLOCKS", 1)
    tiers = model(device=32)
    tiers.run(prompt(1, 2, 3, 4, 5, 6))
    steps = tiers.index.remove_prefix(run(1, 2).tobytes(), 1)
    next(steps)
    tiers.run(prompt(1, 2, 3, 9))
    assert done(tiers, steps).in_use_blocks == 0
    assert lookup(tiers, 1, 2, 3) == {"device": 1}
    assert tiers.index.stats()["blocks"] == 1
    tiers.check()


def test_two_who_remove_at_the_same_time_are_each_told_what_they_have_removed():
    tiers = model(device=32)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(4, 5))
    one, other = (tiers.index.remove_prefix(run(name).tobytes(), 0) for name in (1, 4))
    next(one)
    next(other)
    assert (done(tiers, one).blocks, done(tiers, other).blocks) == (3, 2)
    assert tiers.index.stats()["removed"] == 5


def test_a_prefix_that_is_asked_for_all_the_time_is_not_removed_for_ever():
    tiers = model(device=64)
    tiers.run(prompt(1, 2))
    steps, told = tiers.index.remove_prefix(run(1).tobytes(), 0), None
    for name in range(3, 30):
        try:
            next(steps)
        except StopIteration as end:
            told = end.value
            break
        tiers.run(prompt(1, name))
    assert told is not None, "it goes on for as long as somebody comes"
    assert told.blocks >= 2


def test_what_is_gone_when_its_turn_comes():
    tiers = model(device=8)
    tiers.run(prompt(1, 2))
    steps = tiers.index.remove_prefix(run(1, 2).tobytes(), 0)
    assert tiers.index.clear()
    with pytest.raises(KeyError):
        next(steps)


def test_a_part_of_a_node_that_left_meanwhile_takes_nothing_else_along():
    tiers = model(device=32)
    tiers.run(prompt(1, 2, 3, 4))
    following = tiers.index._holdings.radix.following(
        tiers.index._holdings.radix.match(np.array(prompt(1, 2, 3), dtype="<i4")).item(-1)
    )
    assert not following.collect(100)
    remove(tiers, 1, 2, 3, start=2)
    assert following.children_first(100).tolist() == []


def test_a_large_prefix_goes_in_small_steps_and_those_who_wait_hear_of_the_room():
    rig = Rig(None)
    with rig.cache as cache:
        index = cache._index
        lease = rig.admit(np.array(prompt(1, 2, 3), dtype="<i4"))
        rig.compute(lease, np.array(prompt(1, 2, 3), dtype="<i4"), 0, 3)
        cache.release(lease)
        rig.settle()
        assert not cache.pump()
        cache.ask_in_steps(lambda: index.remove_prefix(run(1).tobytes(), 0))
        assert cache.pump(), "blocks have left, and nobody is told"
        assert not cache.pump()


# --- moving down ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "label"), [(Tier.HOST, "host"), (Tier.DISK, "disk")])
def test_only_the_prefix_moves_down(to, label):
    tiers = model(device=8, host=8, disk=16, clean_share=0.0)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(1, 4))
    tiers.run(prompt(5, 6))
    assert demote(tiers, to, 1, 2, start=1) == Removed(blocks=2, in_use_blocks=0)
    assert lookup(tiers, 1, 2, 3) == {"device": 1, label: 2}
    assert lookup(tiers, 1, 4) == {"device": 2}
    assert lookup(tiers, 5, 6) == {"device": 2}
    assert stats(tiers, "disk")["blocks"] == (2 if to is Tier.DISK else 0)


def test_what_a_request_holds_is_not_moved():
    tiers = model(device=8, host=8, disk=16)
    tiers.run(prompt(1, 2, 3))
    running = tiers.admit(prompt(1, 2))
    assert demote(tiers, Tier.DISK, 1) == Removed(blocks=1, in_use_blocks=2)
    assert lookup(tiers, 1, 2, 3) == {"device": 2, "disk": 1}
    tiers.prefill(running)
    tiers.release(running)


def test_a_sweep_of_everything_is_not_cut_off_and_one_that_comes_is_let_pass():
    tiers = model(device=8, host=8, disk=16, clean_share=0.0)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(3, 4))
    everything = tiers.index.sweep(Tier.HOST, then_free=False)
    steps = tiers.index.demote_prefix(run(1).tobytes(), 0, Tier.DISK)
    waits_for = next(steps)
    assert not waits_for(), "a sweep is under way"
    tiers.settle()
    assert everything.done and not everything.cut_off and everything.num_left == 0
    assert waits_for()
    waits_for = next(steps)
    tiers.plan()
    assert any(isinstance(flight.move, Write) for flight in tiers.flights.values())
    later = tiers.index.sweep(Tier.HOST, then_free=True)
    assert waits_for(), "it was cut off, and may look for its turn again"
    assert done(tiers, steps) == Removed(blocks=2, in_use_blocks=0)
    assert later.done and not later.cut_off
    assert lookup(tiers, 1, 2) == {"disk": 2}
    assert lookup(tiers, 3, 4) == {"host": 2}


def test_what_moves_down_waits_for_the_writes_of_other_blocks():
    """The queue is full with them: that nothing is written meanwhile does not say that nothing can be."""
    tiers = model(device=8, host=5, disk=16, clean_share=0.0, write_budget_blocks=1)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(3, 4))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.index.change(clean_share=0.6)
    tiers.plan()
    assert [type(flight.move) for flight in tiers.flights.values()] == [Write], "of what was used first"
    assert demote(tiers, Tier.DISK, 3) == Removed(blocks=2, in_use_blocks=0)
    assert lookup(tiers, 3, 4) == {"disk": 2}


def test_a_large_prefix_moves_down_part_by_part(monkeypatch):
    monkeypatch.setattr("tiering.by_hand._SWEEP_BLOCKS", 1)
    tiers = model(device=8, host=8, disk=16, clean_share=0.0)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(1, 3, 4))
    assert demote(tiers, Tier.DISK, 1) == Removed(blocks=4, in_use_blocks=0)
    assert lookup(tiers, 1, 3, 4) == {"disk": 3}


def test_what_cannot_be_copied_is_told_as_left():
    tiers = model(device=8, host=8, disk=16, clean_share=0.0)
    tiers.run(prompt(1, 2))
    steps = tiers.index.demote_prefix(run(1).tobytes(), 0, Tier.DISK)
    waits_for = next(steps)
    while not waits_for():
        tiers.plan()
        if tiers.flights:
            number = tiers.completable()[0]
            failing = isinstance(tiers.flights[number].move, Demote)
            tiers.complete(number, error=DIED if failing else None)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == Removed(blocks=0, in_use_blocks=2)


@pytest.mark.parametrize(("tier", "sizes"), [(Tier.DISK, {"host": 4}), (Tier.HOST, {"host": 0})])
def test_a_tier_that_is_not_there(tier, sizes):
    tiers = model(device=4, **sizes)
    tiers.run(prompt(1))
    with pytest.raises(RuntimeError, match=f"no {tier.label} tier"):
        tiers.index.demote_prefix(run(1).tobytes(), 0, tier)


# --- in the cache, by key -------------------------------------------------------------------------------------------


@pytest.fixture
def rig():
    rig = Rig(MemoryStore(NAMESPACE, LAYOUT, capacity_bytes=1 << 20))
    with rig.cache:
        rig.serve(1, 2)
        rig.serve(1, 3)
        yield rig


def key_below(rig, name):
    page = rig.cache.prefixes(PrefixQuery(flat=True, text=True), describe=lambda tokens: str(tokens[0]))
    (row,) = (row for row in page.rows if row.text == str(name))
    return row.key


def drive(rig, ask):
    """What another thread gets, while this one drives."""
    answers, failures = [], []

    def work():
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - the test's thread gets it
            failures.append(error)
        rig.woken.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not answers and not failures:
        if rig.cache.deadline_s != float("-inf"):
            assert rig.woken.wait(GIVE_UP_S)
            rig.woken.clear()
        rig.cache.pump()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def test_another_thread_removes_a_prefix_and_the_next_list_is_without_it(rig):
    key = key_below(rig, 2)
    assert drive(rig, lambda: rig.cache.remove_prefix(key)) == Removed(blocks=1, in_use_blocks=0)
    assert rig.lookup(1, 2) == {"device": 1}
    assert rig.lookup(1, 3) == {"device": 2}
    assert rig.cache.prefixes(PrefixQuery(flat=True)).total == 1
    with pytest.raises(KeyError):
        drive(rig, lambda: rig.cache.remove_prefix(key))


def test_another_thread_moves_a_prefix_down(rig):
    key = key_below(rig, 3)
    assert drive(rig, lambda: rig.cache.demote_prefix(key, "disk")) == Removed(blocks=1, in_use_blocks=0)
    assert rig.lookup(1, 3) == {"device": 1, "disk": 1}
    assert rig.lookup(1, 2) == {"device": 2}


def test_a_tier_to_which_nothing_is_demoted(rig):
    with pytest.raises(ValueError, match="device"):
        rig.cache.demote_prefix(key_below(rig, 2), "device")


def test_a_key_that_nothing_has(rig):
    for ask in (rig.cache.remove_prefix, lambda key: rig.cache.demote_prefix(key, "host")):
        with pytest.raises(KeyError):
            ask("ab" * 32)
