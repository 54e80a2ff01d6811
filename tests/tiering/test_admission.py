"""Who begins, who is passed and how often, who gives way: `test_progress` shows that it all comes to an end."""

from dataclasses import dataclass

import numpy as np
import pytest

from tests.tiering.memory_model import DIED
from tests.tiering.small_tiers import BLOCK_TOKENS, model, on_disk, prompt, stats
from tiering.admission import PATIENCE, WINDOW, Admission
from tiering.claim import NO_CLAIM, Claim
from tiering.keeping import Told
from tiering.leases import Wait
from tiering.matching import CacheUse
from tiering.moves import Read, SwapOut
from tiering.residency import Tier


@dataclass(eq=False)
class Asker:
    """The least that admission knows of a request."""

    names: tuple[int, ...]
    max_blocks: int
    lease: object = None
    stash: object = None
    arrival: int = 0
    overtaken: int = 0
    waits: Wait = Wait.FOR_ROOM
    used_blocks: int = 0
    compute_last: bool = True
    priority: int = 0
    cache_use: CacheUse = CacheUse.READ_WRITE
    claim: Claim = NO_CLAIM
    told: Told | None = None
    num_preempted: int = 0

    @property
    def tokens(self):
        whole = (
            prompt(*self.names)
            if self.stash is None
            else prompt(*self.names)[: self.stash.start * BLOCK_TOKENS]
        )
        return np.array(whole, dtype="<i4")

    def num_used_blocks(self):
        return self.used_blocks

    def preempted(self):
        self.num_preempted += 1


class Queue:
    """An admission over small tiers, and askers by name."""

    def __init__(self, tiers, max_running=8, chunk_blocks=8) -> None:
        self.tiers = tiers
        self.admission = Admission(tiers.index, max_running=max_running, chunk_blocks=chunk_blocks)

    def ask(self, *names: int, max_blocks=None):
        asker = Asker(names, max_blocks or len(names) + 1)
        self.admission.add(asker)
        return asker

    def admit(self):
        self.admission.stir()
        return self.admission.admit()

    def fill(self, asker):
        """It computes all of its prompt."""
        end = len(asker.lease.ids)
        self.tiers.index.publish(asker.lease, asker.tokens, 0, end)


def test_requests_begin_in_order_of_arrival():
    queue = Queue(model(device=8))
    askers = [queue.ask(name) for name in (1, 2, 3)]
    assert queue.admit() == askers


def test_no_more_run_than_may():
    queue = Queue(model(device=8), max_running=2)
    first, second, third = (queue.ask(name) for name in (1, 2, 3))
    assert queue.admit() == [first, second]
    assert queue.admit() == []
    queue.admission.remove(first)
    assert queue.admit() == [third]


def test_who_finds_most_in_the_cache_goes_first():
    tiers = model(device=8)
    tiers.run(prompt(1, 2, 3))
    queue = Queue(tiers, max_running=1)
    cold, short, long = queue.ask(7), queue.ask(1, 8), queue.ask(1, 2, 3, 9)
    order = []
    for _ in range(3):
        order += queue.admit()
        queue.admission.remove(order[-1])
    assert order == [long, short, cold]


def test_nobody_is_passed_more_often_than_bounded():
    tiers = model(device=8)
    tiers.run(prompt(1))
    queue = Queue(tiers, max_running=1)
    cold = queue.ask(7)
    warm = [queue.ask(1, 10 + i) for i in range(8)]
    order = []
    while queue.admission.waiting:
        order += queue.admit()
        queue.admission.remove(order[-1])
    bound = PATIENCE[Wait.FOR_ROOM]
    assert order == [*warm[:bound], cold, *warm[bound:]]


def test_one_that_needs_room_is_not_starved_by_small_ones():
    """Small requests come for ever, and there is always room for them, never for the big one while they run."""
    tiers = model(device=4)
    queue = Queue(tiers)
    running = [queue.ask(1), queue.ask(2)]
    queue.admit()
    big = queue.ask(5, 6, 7)
    name = 10
    for _ in range(20):
        queue.ask(name := name + 1)
        queue.admission.remove(running.pop(0))
        running += queue.admit()
        if big in running:
            break
        tiers.settle()
    assert big in running
    assert big.overtaken <= PATIENCE[Wait.FOR_ROOM]


def test_who_waits_for_anothers_blocks_lets_others_pass():
    queue = Queue(model(device=12))
    owner, sharer = queue.ask(1, 2), queue.ask(1, 2, 3)
    others = [queue.ask(10 + i) for i in range(PATIENCE[Wait.FOR_ROOM])]
    last = queue.ask(20)
    admitted = queue.admit()
    assert admitted[0] is owner
    assert set(admitted[1:]) >= set(others[:3])
    assert sharer.waits is Wait.FOR_BLOCKS
    queue.fill(owner)
    for other in admitted[1:]:
        queue.admission.remove(other)
    assert sharer in queue.admit()
    assert last.lease is not None


def test_if_who_computes_is_cancelled_the_first_who_waits_takes_over():
    queue = Queue(model(device=12))
    owner, first, second = queue.ask(1, 2), queue.ask(1, 2, 3), queue.ask(1, 2, 4)
    assert queue.admit() == [owner]
    queue.admission.remove(owner)
    assert queue.admit() == [first]
    assert first.lease.filling[:3].all()
    assert second.waits is Wait.FOR_BLOCKS


def test_only_so_many_are_matched_in_one_go():
    tiers = model(device=4)
    queue = Queue(tiers)
    queue.ask(1, 2, 3)
    queue.admit()
    for name in range(100):
        queue.ask(5, name)
    calls = []
    match = tiers.index.num_matching
    tiers.index.num_matching = lambda tokens, use: calls.append(1) or match(tokens, use)
    assert queue.admit() == []
    assert len(calls) == WINDOW


def test_nobody_is_tried_again_before_something_has_happened():
    tiers = model(device=6)
    queue = Queue(tiers)
    first, second = queue.ask(1, 2, 3), queue.ask(1, 2, 4)
    assert queue.admit() == [first]
    queue.tiers.index.publish(first.lease, first.tokens, 0, 3)
    assert queue.admission.admit() == []
    queue.admission.remove(first)
    assert queue.admission.admit() == [second]


# ---- growth and preemption


def test_a_request_begins_with_its_first_chunk_and_a_block_to_decode_into():
    tiers = model(device=8)
    tiers.run(prompt(1, 2))
    queue = Queue(tiers, chunk_blocks=1)
    asker = queue.ask(1, 2, 3, 4, 5, max_blocks=8)
    queue.admit()
    assert len(asker.lease.slots) == 2 + 1 + 1
    assert queue.admission.grow(asker, 6)
    assert len(asker.lease.slots) == 6
    assert queue.admission.grow(asker, 100)
    assert len(asker.lease.slots) == 8, "what it said at most"


def test_idle_blocks_make_room_and_nobody_is_preempted():
    tiers = model(device=4, host=4)
    tiers.run(prompt(1, 2, 3))
    queue = Queue(tiers)
    asker = queue.ask(5, max_blocks=4)
    queue.admit()
    tiers.settle()
    queue.admit()
    for num_blocks in (3, 4):
        while not queue.admission.grow(asker, num_blocks):
            tiers.settle()
    assert tiers.index.stats()["preempted"]["requests"] == 0
    assert tiers.where(prompt(1, 2, 3)) == ["H", "H", "H"]


def test_the_youngest_gives_way_to_the_oldest():
    tiers = model(device=9)
    queue = Queue(tiers)
    oldest, middle, youngest = (queue.ask(name, max_blocks=5) for name in (1, 2, 3))
    assert queue.admit() == [oldest, middle, youngest]
    assert queue.admission.grow(oldest, 4)
    assert queue.admission.running == [oldest, middle]
    assert queue.admission.waiting == [youngest]
    assert youngest.num_preempted == 1
    assert youngest.lease is None
    tiers.index.check()


def test_the_youngest_waits_rather_than_take_from_older_ones():
    queue = Queue(model(device=6))
    older, youngest = queue.ask(1, max_blocks=4), queue.ask(2, max_blocks=4)
    queue.admit()
    assert not queue.admission.grow(youngest, 4)
    assert queue.admission.running == [older, youngest]
    queue.admission.remove(older)
    assert queue.admission.grow(youngest, 4)


def test_what_a_running_request_has_asked_for_is_not_given_to_a_new_one():
    tiers = model(device=7)
    queue = Queue(tiers)
    older, youngest = queue.ask(1, max_blocks=3), queue.ask(2, max_blocks=5)
    queue.admit()
    assert not queue.admission.grow(youngest, 5)
    new = queue.ask(max_blocks=1)
    assert queue.admit() == [], "there is a slot, but it is asked for"
    queue.admission.remove(older)
    assert queue.admission.grow(youngest, 5)
    assert queue.admit() == [new]


def test_nobody_looks_ahead_into_room_that_another_has_asked_for():
    queue = Queue(model(device=7))
    older, youngest = queue.ask(1, max_blocks=5), queue.ask(2, max_blocks=6)
    queue.admit()
    assert not queue.admission.grow(youngest, 5), "one slot is free, two are asked for"
    queue.admission.look_ahead(older, 4)
    assert len(older.lease.slots) == 3
    assert queue.admission.grow(youngest, 4)
    queue.admission.remove(youngest)
    queue.admission.look_ahead(older, 4)
    assert len(older.lease.slots) == 4


def test_a_preempted_request_comes_back_before_later_ones_with_what_it_had():
    tiers = model(device=6, host=4)
    queue = Queue(tiers)
    older, younger = queue.ask(1, max_blocks=6), queue.ask(2, max_blocks=4)
    queue.admit()
    later = queue.ask(max_blocks=1)
    queue.fill(younger)
    slot = younger.lease.slots.item(1)
    tiers.write((Tier.DEVICE, slot), ("own", 1))
    tiers.write((Tier.DEVICE, younger.lease.slots.item(0)), (2, 2))
    younger.used_blocks = 2
    assert not queue.admission.grow(older, 6), "what leaves has not left yet"
    assert not younger.stash.lost
    assert stats(tiers, "host")["private"] == 1
    tiers.settle()
    assert queue.admission.grow(older, 6)
    queue.admission.remove(older)
    younger.compute_last = False
    assert queue.admit() == [younger, later]
    tiers.settle()
    assert younger.lease.ready[:2].all()
    assert tiers.memory[Tier.DEVICE, younger.lease.slots.item(1)] == ("own", 1)
    assert stats(tiers, "host")["private"] == 0
    tiers.index.check()


def test_a_request_that_still_loads_gives_way_and_its_reads_are_called_off():
    tiers = model(device=7, host=4, disk=8, read_batch_blocks=1, read_budget_blocks=1)
    on_disk(tiers, 5, 6, 7)
    queue = Queue(tiers)
    older, loading = queue.ask(1, max_blocks=6), queue.ask(5, 6, 7, max_blocks=4)
    assert set(queue.admit()) == {older, loading}
    tiers.plan()
    assert loading.lease.num_loading == 3
    assert len(tiers.moves(Read)) == 1, "the budget"
    assert queue.admission.grow(older, 6)
    assert loading.lease is None
    tiers.settle()
    assert len(tiers.moves(Read)) == 1, "what had not been asked for is not read"
    queue.admission.remove(older)
    assert queue.admit() == [loading]
    tiers.settle()
    assert loading.lease.ready[:3].all()


@pytest.mark.parametrize("settled", [False, True])
def test_a_preempted_request_that_is_cancelled_leaves_nothing(settled):
    tiers = model(device=6, host=4)
    queue = Queue(tiers)
    older, younger = queue.ask(1, max_blocks=4), queue.ask(2, max_blocks=4)
    queue.admit()
    queue.fill(younger)
    for slot in younger.lease.slots.tolist():
        tiers.write((Tier.DEVICE, slot), ("own", 1))
    younger.used_blocks = 2
    queue.admission.grow(older, 4)
    if settled:
        tiers.settle()
    queue.admission.remove(younger)
    tiers.settle()
    assert stats(tiers, "host")["private"] == 0
    queue.admission.remove(older)
    assert stats(tiers, "device")["private"] == 0


def test_swapped_out_blocks_never_take_more_than_half_of_host_memory():
    tiers = model(device=9, host=4)
    queue = Queue(tiers)
    older, younger = queue.ask(1, max_blocks=8), queue.ask(2, max_blocks=8)
    queue.admit()
    queue.fill(younger)
    assert queue.admission.grow(younger, 6)
    younger.used_blocks = 4
    queue.admission.grow(older, 5)
    assert younger.stash is None
    assert younger.num_preempted == 1


def test_who_loses_what_was_saved_is_told():
    tiers = model(device=6, host=4)
    queue = Queue(tiers)
    older, younger = queue.ask(1, max_blocks=6), queue.ask(2, max_blocks=4)
    queue.admit()
    queue.fill(younger)
    for slot in younger.lease.slots.tolist():
        tiers.write((Tier.DEVICE, slot), ("own", 1))
    younger.used_blocks = 2
    queue.admission.grow(older, 6)
    tiers.plan()
    [number] = [n for n, flight in tiers.flights.items() if isinstance(flight.move, SwapOut)]
    tiers.complete(number, error=DIED)
    queue.admission.remove(older)
    assert queue.admit() == [younger]
    assert younger.num_preempted == 2


# ---- priorities, and replies that begin from another's prompt


def test_the_lowest_number_goes_first_and_warmth_decides_within_it():
    tiers = model(device=12)
    tiers.run(prompt(1, 2, 3))
    queue = Queue(tiers, max_running=1)
    late, cold, warm, urgent = (queue.ask(*names) for names in ((1, 4), (7,), (1, 5), (8,)))
    queue.admission.waiting.clear()
    for asker, priority in ((late, 2), (cold, 1), (warm, 1), (urgent, 0)):
        asker.priority = priority
        queue.admission.add(asker)
    order = []
    while queue.admission.waiting:
        order += queue.admit()
        queue.admission.remove(order[-1])
    assert order == [urgent, warm, cold, late]


def test_who_matters_least_gives_way():
    tiers = model(device=9)
    queue = Queue(tiers)
    least, oldest, youngest = Asker((1,), 5, priority=1), Asker((2,), 5), Asker((3,), 5)
    for asker in (least, oldest, youngest):
        queue.admission.add(asker)
    assert set(queue.admit()) == {least, oldest, youngest}
    assert queue.admission.grow(youngest, 4)
    assert queue.admission.running == [oldest, youngest]


def forked(queue, parent, max_blocks=5):
    """Another reply to a prompt of one whole block and one token."""
    child = Asker(parent.names, max_blocks)
    return child, queue.admission.fork(parent, child, 2)


@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_fork_shares_whole_blocks_and_has_slots_of_its_own(first):
    tiers = model(device=8)
    queue = Queue(tiers)
    parent = queue.ask(1, max_blocks=5)
    queue.admit()
    queue.fill(parent)
    child, begun = forked(queue, parent)
    assert begun
    assert child.lease.ids.tolist() == parent.lease.ids.tolist()
    assert child.lease.slots[0] == parent.lease.slots[0]
    assert len(child.lease.slots) == 3, "the block that is not whole, and one more"
    assert not set(child.lease.slots[1:].tolist()) & set(parent.lease.slots[1:].tolist())
    tiers.index.check()
    both = {"parent": parent, "child": child}
    queue.admission.remove(both.pop(first))
    tiers.index.check()
    assert not tiers.index.clear(), "the other one still holds the path"
    queue.admission.remove(*both.values())
    assert stats(tiers, "device")["private"] == 0
    assert tiers.index.clear()


def test_a_fork_without_room_waits_and_takes_it_from_nobody():
    tiers = model(device=5)
    queue = Queue(tiers)
    parent, other = queue.ask(1, max_blocks=3), queue.ask(max_blocks=1)
    queue.admit()
    queue.fill(parent)
    child, begun = forked(queue, parent, max_blocks=3)
    assert not begun
    assert child in queue.admission.waiting
    assert child.lease is None
    assert queue.admission.running == [parent, other]
    tiers.index.check()
    queue.admission.remove(parent)
    assert queue.admit() == [child]


@pytest.mark.parametrize("reason", ["starved", "enough run"])
def test_a_fork_waits_where_a_new_request_would(reason):
    tiers = model(device=9)
    queue = Queue(tiers, max_running=2)
    parent = queue.ask(1, max_blocks=9)
    queue.admit()
    queue.fill(parent)
    if reason == "starved":
        other = queue.ask(2, max_blocks=9)
        queue.admit()
        assert not queue.admission.grow(other, 9)
    else:
        queue.ask(max_blocks=1)
        queue.admit()
    child, begun = forked(queue, parent)
    assert not begun
    assert child in queue.admission.waiting


# ---- what the cache may be used for


def test_who_may_not_write_leaves_nothing_and_who_may_not_read_finds_nothing():
    tiers = model(device=12)
    tiers.run(prompt(1, 2))
    queue = Queue(tiers)
    reads = Asker((1, 2, 3), 5, cache_use=CacheUse.READ)
    off = Asker((1, 2, 4), 5, cache_use=CacheUse.OFF)
    for asker in (reads, off):
        queue.admission.add(asker)
    assert queue.admit() == [reads, off], "the one that finds something goes first"
    assert (len(reads.lease.ids), len(off.lease.ids)) == (2, 0)
    for asker in (reads, off):
        tiers.index.publish(asker.lease, asker.tokens[:0], len(asker.lease.ids), 3)
        queue.admission.remove(asker)
    tiers.index.check()
    assert tiers.index.stats()["blocks"] == 2
    assert stats(tiers, "device")["private"] == 0
