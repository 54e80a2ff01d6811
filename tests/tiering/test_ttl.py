"""What nobody has used for the TTL is not served, and goes from every tier; on the virtual clock."""

import itertools

import numpy as np
import pytest

from kvstore.store import BlockMeta
from tests.tiering.memory_model import MemoryModel, Record
from tests.tiering.small_tiers import config, lookup, model, on_disk, prompt
from tiering.index_config import IndexConfig
from tiering.moves import Demote, Forget, Read, Touch, Write
from tiering.residency import State, Tier

TTL_S = 80.0
SOON_S = TTL_S / 8


def ttl_model(device=8, host=4, disk=8, **changed):
    return model(device, host, disk, ttl_s=TTL_S, **changed)


def at(tiers, now_s):
    """It is `now_s`, and nothing was planned since the last time."""
    tiers.now_s = now_s
    tiers.index.at(now_s)


def pass_time(tiers, until_s):
    """Time passes, and whoever drives the core does so only when it must."""
    for _ in range(1000):
        deadline_s = tiers.index.deadline_s()
        if deadline_s is None or deadline_s > until_s:
            break
        tiers.now_s = max(tiers.now_s, deadline_s)
        tiers.settle()
    else:
        raise AssertionError("the core wants to be driven for ever")
    at(tiers, until_s)


def blocks(tiers):
    return tiers.index.stats()["blocks"]


def restarted(tiers, *, gone_s=0.0, jump_s=0.0, **changed):
    """Another process, so many seconds later, on a clock that has jumped by so many more; its own begins somewhere."""
    epoch_s = tiers.epoch_s + tiers.now_s + gone_s + jump_s - 7.0
    return MemoryModel(tiers.config, tiers.disk, now_s=7.0, epoch_s=epoch_s)


def told_s(tiers, *names: int):
    """When the disk thinks that a block was used last, on the core's clock."""
    tokens = tuple(prompt(*names)[:-1])
    return tiers.disk[tiers.key_of(tokens)].meta.used_ns / 1e9 - tiers.epoch_s


# --- what is not found ------------------------------------------------------------------------------------------------


def test_what_is_over_is_not_found_before_anybody_has_swept():
    tiers = ttl_model()
    tiers.run(prompt(1, 2))
    at(tiers, TTL_S - 1)
    assert lookup(tiers, 1, 2) == {"device": 2}
    at(tiers, TTL_S)
    assert lookup(tiers, 1, 2) == {}
    assert tiers.index.num_matching(tiers.request(prompt(1, 2)).array) == 0
    request = tiers.run(prompt(1, 2))
    assert request.lease.num_cached_blocks == 0
    assert lookup(tiers, 1, 2) == {"device": 2}
    tiers.check_rest()


def test_without_a_ttl_nothing_is_ever_over():
    tiers = model(8, 4, 8)
    tiers.run(prompt(1, 2))
    assert tiers.index.deadline_s() is None
    tiers.now_s = 1e12
    tiers.settle()
    assert lookup(tiers, 1, 2) == {"device": 2}


def test_a_use_begins_the_ttl_anew_for_what_was_used_and_for_nothing_below_it():
    tiers = ttl_model()
    tiers.run(prompt(1, 2, 3))
    at(tiers, TTL_S - 1)
    tiers.run(prompt(1, 2, 4))
    at(tiers, TTL_S)
    assert lookup(tiers, 1, 2, 3) == {"device": 2}
    assert lookup(tiers, 1, 2, 4) == {"device": 3}
    pass_time(tiers, TTL_S + SOON_S)
    assert blocks(tiers) == 3
    pass_time(tiers, 2 * TTL_S + SOON_S)
    assert blocks(tiers) == 0


def test_a_lookup_is_no_use():
    tiers = ttl_model()
    tiers.run(prompt(1))
    at(tiers, TTL_S - 1)
    assert lookup(tiers, 1) == {"device": 1}
    at(tiers, TTL_S)
    assert lookup(tiers, 1) == {}


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_it_holds_in_every_tier(place):
    tiers = ttl_model()
    if place == "disk":
        on_disk(tiers, 1, 2)
    else:
        tiers.run(prompt(1, 2))
        tiers.index.sweep(Tier.HOST if place == "host" else Tier.DEVICE, then_free=True)
        tiers.settle()
    assert lookup(tiers, 1, 2) == {place: 2}
    pass_time(tiers, TTL_S)
    assert lookup(tiers, 1, 2) == {}
    pass_time(tiers, TTL_S + SOON_S)
    assert blocks(tiers) == 0
    assert tiers.index.stats()["expired"] == 2
    assert tiers.disk == {}
    tiers.check_rest()


# --- what stays -------------------------------------------------------------------------------------------------------


def test_what_a_request_holds_is_in_use_for_as_long():
    tiers = ttl_model()
    request = tiers.admit(prompt(1, 2))
    tiers.prefill(request)
    pass_time(tiers, 10 * TTL_S)
    assert lookup(tiers, 1, 2) == {"device": 2}
    tiers.release(request)
    pass_time(tiers, 11 * TTL_S - 1)
    assert lookup(tiers, 1, 2) == {"device": 2}
    pass_time(tiers, 11 * TTL_S + SOON_S)
    assert blocks(tiers) == 0
    tiers.check_rest()


@pytest.mark.parametrize("kind", [Demote, Write, Read])
def test_what_is_being_copied_goes_after_that(kind):
    tiers = ttl_model(io_deadline_s=1000.0)
    if kind is Read:
        on_disk(tiers, 1, 2)
        request = tiers.request(prompt(1, 2))
        assert tiers.try_to_admit(request)
    else:
        tiers.run(prompt(1, 2))
        tiers.index.sweep(Tier.HOST if kind is Demote else Tier.DISK, then_free=True)
    tiers.plan()
    while not tiers.moves(kind):
        tiers.complete(tiers.completable()[0])
        tiers.plan()
    if kind is Read:
        tiers.release(request)
    for tiers.now_s in (TTL_S, TTL_S + SOON_S, TTL_S + 3 * SOON_S):
        tiers.plan()
    assert blocks(tiers) == 2
    assert lookup(tiers, 1, 2) == {}
    tiers.settle()
    pass_time(tiers, TTL_S + 5 * SOON_S)
    assert blocks(tiers) == 0
    assert tiers.disk == {}
    tiers.check_rest()


def test_what_comes_before_a_block_in_use_stays_with_it():
    """A copy of the last block of three hangs; what branches off before it goes."""
    tiers = ttl_model(host=8, io_deadline_s=10 * TTL_S)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(1, 4))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    (write,) = tiers.moves(Write)
    busy = {tiers.index._holdings.radix.path(block).size for block in write.ids.tolist()}
    for tiers.now_s in (TTL_S, TTL_S + SOON_S):
        tiers.plan()
    assert max(busy) == 3
    assert len(tiers.where(prompt(1, 2, 3))) == 3
    tiers.settle()
    pass_time(tiers, TTL_S + 3 * SOON_S)
    assert blocks(tiers) == 0
    tiers.check_rest()


def test_a_hole_goes_with_what_was_below_it():
    tiers = ttl_model(hole_ttl_s=1e6)
    on_disk(tiers, 1, 2, 3)
    del tiers.disk[tiers.key_of((1, 1, 2, 2))]
    assert tiers.run(prompt(1, 2, 3)).lease is not None
    on_disk(tiers, 5, 6, 7)
    pass_time(tiers, TTL_S + SOON_S)
    assert blocks(tiers) == 0
    tiers.check_rest()


# --- the background ---------------------------------------------------------------------------------------------------


def big_model(num_blocks, *, tail=2):
    """Many blocks that a restart has found: prompts of a few blocks that share the first."""
    tiers = ttl_model(disk=num_blocks + 8)
    names = itertools.count(2)
    for _ in range(num_blocks // tail):
        tiers_names = (1, *itertools.islice(names, tail))
        for end in range(1, tail + 2):
            _put(tiers, tiers_names[:end])
    return restarted(tiers)


def _put(tiers, names):
    content = tuple(prompt(*names)[:-1])
    parent, key = tiers.key_of(content[:-2]), tiers.key_of(content)
    tokens = np.array(content[-2:], dtype="<i4").tobytes()
    tiers.disk[key] = Record(BlockMeta(key, parent, tokens, 10, tiers.now_ns), content)


def test_a_plan_forgets_a_bounded_number_and_asks_to_be_called_again():
    tiers = big_model(3000)
    before = blocks(tiers)
    tiers.now_s += TTL_S
    num_plans = 0
    while blocks(tiers):
        deadline_s = tiers.index.deadline_s()
        assert deadline_s is not None and deadline_s <= tiers.now_s, "it would sleep, and has not ended"
        left = blocks(tiers)
        tiers.plan()
        num_plans += 1
        assert left - blocks(tiers) <= 512
    assert before / 512 <= num_plans <= before / 512 + 2
    assert max(len(move.keys) for move in tiers.moves(Forget)) <= 512
    tiers.settle()
    assert tiers.disk == {}
    assert tiers.index.deadline_s() is None


def test_uses_in_the_middle_of_a_round_keep_what_they_use():
    tiers = big_model(3000)
    tiers.now_s += TTL_S - 1
    tiers.plan()
    kept = tiers.request(prompt(1, 2800, 2801)).array
    assert tiers.index.num_matching(kept) == 3
    tiers.now_s += 1
    tiers.plan()
    assert blocks(tiers) > 0
    request = tiers.run(prompt(1, 2800, 2801))
    assert request.lease.num_cached_blocks == 0, "they were over already"
    tiers.settle()
    pass_time(tiers, tiers.now_s + SOON_S)
    assert blocks(tiers) == 3
    tiers.check_rest()


def test_rounds_are_an_eighth_of_the_ttl_apart():
    """One that finds blocks which have just become over does not make the loop run for each of them."""
    tiers = ttl_model(device=64, host=0, disk=0)
    for name in range(1, 33):
        at(tiers, float(name))
        tiers.run(prompt(name))
    tiers.settle()
    woken = []
    while (deadline_s := tiers.index.deadline_s()) is not None:
        tiers.now_s = max(tiers.now_s, deadline_s)
        tiers.settle()
        woken.append(tiers.now_s)
    assert blocks(tiers) == 0
    assert woken[0] >= TTL_S
    assert woken[-1] <= 32.0 + TTL_S + SOON_S
    assert len(woken) <= 6


def test_an_empty_core_wakes_nobody():
    tiers = ttl_model()
    tiers.plan()
    assert tiers.index.deadline_s() is None
    tiers.run(prompt(1))
    assert tiers.index.deadline_s() is not None
    pass_time(tiers, 2 * TTL_S)
    assert tiers.index.deadline_s() is None


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_ttl_is_a_time(ttl_s):
    with pytest.raises(ValueError, match="ttl_s"):
        IndexConfig(block_tokens=2, device_slots=1, host_slots=0, ttl_s=ttl_s)


# --- the disk knows ---------------------------------------------------------------------------------------------------


def test_the_disk_is_told_of_uses_within_an_eighth_of_the_ttl():
    tiers = ttl_model()
    on_disk(tiers, 1, 2)
    pass_time(tiers, 30.0)
    assert told_s(tiers, 1) == pytest.approx(0.0)
    tiers.run(prompt(1, 2))
    pass_time(tiers, 31.0)
    tiers.run(prompt(1))
    pass_time(tiers, 30.0 + SOON_S)
    assert told_s(tiers, 1) == pytest.approx(31.0)
    assert told_s(tiers, 1, 2) == pytest.approx(30.0)
    num_touches = len(tiers.moves(Touch))
    pass_time(tiers, 60.0)
    assert len(tiers.moves(Touch)) == num_touches, "nothing was used"


def test_writing_a_block_is_no_use_of_it():
    tiers = ttl_model()
    tiers.run(prompt(1))
    pass_time(tiers, 50.0)
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    pass_time(tiers, 50.0 + SOON_S)
    assert told_s(tiers, 1) == pytest.approx(0.0)
    after = restarted(tiers)
    assert lookup(after, 1) == {"disk": 1}
    at(after, 7.0 + 20.0)
    assert lookup(after, 1) == {}


def test_a_disk_that_hangs_is_told_nothing_and_wakes_nobody():
    tiers = ttl_model(io_deadline_s=1.0)
    on_disk(tiers, 1)
    tiers.run(prompt(2))
    tiers.index.sweep(Tier.DISK, then_free=False)
    while not any(isinstance(flight.move, Write) for flight in tiers.flights.values()):
        tiers.plan()
        for number in tiers.completable():
            if not isinstance(tiers.flights[number].move, Write):
                tiers.complete(number)
    pass_over = tiers.index.deadline_s()
    tiers.now_s = pass_over
    tiers.plan()
    deadline_s = tiers.index.deadline_s()
    assert deadline_s is None or deadline_s > tiers.now_s
    before = len(tiers.moves(Touch))
    tiers.now_s = 3 * SOON_S
    tiers.plan()
    assert len(tiers.moves(Touch)) == before
    tiers.settle()
    pass_time(tiers, 4 * SOON_S)
    assert len(tiers.moves(Touch)) > before


@pytest.mark.parametrize("ttl_s", [None, TTL_S])
def test_at_the_end_the_disk_is_told_all(ttl_s):
    tiers = model(8, 4, 8, ttl_s=ttl_s)
    on_disk(tiers, 1, 2)
    at(tiers, 5.0)
    on_disk(tiers, 3)
    at(tiers, 6.0)
    tiers.run(prompt(1, 2))
    tiers.index.tell_uses()
    tiers.settle()
    assert [told_s(tiers, *names) for names in ((1,), (1, 2), (3,))] == pytest.approx([6.0, 6.0, 5.0])
    num_touches = len(tiers.moves(Touch))
    tiers.index.tell_uses()
    tiers.settle()
    assert len(tiers.moves(Touch)) == num_touches
    after = MemoryModel(config(8, 4, disk=2, ttl_s=ttl_s), tiers.disk, now_s=7.0)
    after.settle()
    assert lookup(after, 1, 2) == {"disk": 2}, "the smaller disk keeps what was used last"


# --- a restart --------------------------------------------------------------------------------------------------------


def test_ages_go_on_over_a_restart():
    tiers = ttl_model()
    on_disk(tiers, 1, 2)
    pass_time(tiers, 40.0)
    tiers.run(prompt(1))
    pass_time(tiers, 40.0 + SOON_S)
    after = restarted(tiers, gone_s=20.0)
    assert lookup(after, 1, 2) == {"disk": 2}
    at(after, 7.0 + 10.0)
    assert lookup(after, 1, 2) == {"disk": 1}
    pass_time(after, 7.0 + 10.0 + SOON_S)
    assert blocks(after) == 1
    assert len(after.disk) == 1
    pass_time(after, 7.0 + 50.0 + SOON_S)
    assert blocks(after) == 0
    assert after.disk == {}


def test_what_has_expired_while_nobody_ran_is_gone_at_once():
    tiers = ttl_model()
    on_disk(tiers, 1, 2)
    after = restarted(tiers, gone_s=TTL_S)
    assert lookup(after, 1, 2) == {}
    after.settle()
    assert blocks(after) == 0
    assert after.disk == {}


def test_after_a_clock_was_set_back_a_block_lives_one_ttl_longer_at_most():
    tiers = ttl_model()
    on_disk(tiers, 1, 2)
    after = restarted(tiers, jump_s=-1e5)
    at(after, 7.0 + TTL_S - 1)
    assert lookup(after, 1, 2) == {"disk": 2}
    at(after, 7.0 + TTL_S)
    assert lookup(after, 1, 2) == {}


def test_the_times_that_were_to_come_are_put_right():
    """Or the block would be new at each start, until the clock has come so far."""
    tiers = ttl_model()
    on_disk(tiers, 1, 2)
    after = restarted(tiers, jump_s=-1e5)
    pass_time(after, 7.0 + 60.0)
    assert told_s(after, 1, 2) == pytest.approx(7.0)
    again = restarted(after, gone_s=10.0)
    at(again, 7.0 + 9.0)
    assert lookup(again, 1, 2) == {"disk": 2}
    at(again, 7.0 + 10.0)
    assert lookup(again, 1, 2) == {}


def test_a_clock_that_was_set_ahead_makes_blocks_old():
    tiers = ttl_model()
    on_disk(tiers, 1, 2)
    after = restarted(tiers, jump_s=1e5)
    assert lookup(after, 1, 2) == {}


def test_a_use_of_what_follows_a_block_is_one_of_the_block():
    """And not the other way round, whatever the order in which they were written or told."""
    for times in itertools.permutations((10.0, 20.0, 30.0)):
        tiers = ttl_model()
        for end, tiers.now_s in enumerate(times, start=1):
            _put(tiers, (1, 2, 3)[:end])
        tiers.now_s = 40.0
        after = restarted(tiers)
        order = after.index._holdings.order
        path = after.index._holdings.radix.match(after.request(prompt(1, 2, 3)).array)
        expected = [max(times[position:]) - 40.0 + 7.0 for position in range(3)]
        assert order.touched_s(path) == pytest.approx(expected)
        after.index.check()
        after.settle()
        assert after.index._holdings.residency.state[Tier.DISK, path].tolist() == [State.PRESENT] * 3
