"""What the core does with a decision: it uses the first blocks of a match and has the others computed, for all."""

import pytest

from kvstore.reasons import MissReason
from kvstore.reports import Decision
from tests.tiering.memory_model import DIED
from tests.tiering.small_tiers import lookup, model, on_disk, prompt, stats
from tiering.costs import Costs
from tiering.decision import Chooser
from tiering.leases import Wait
from tiering.moves import Promote, Read
from tiering.residency import Tier


class Uses(Chooser):
    """Always so many blocks, whatever they would take."""

    def __init__(self, num_blocks: int, deadline_s: float | None = None) -> None:
        super().__init__(Costs())
        self.num_blocks, self.deadline_s = num_blocks, deadline_s
        self.asked = []

    def choose(self, match):
        self.asked.append(match)
        return Decision(
            num_blocks=max(match.num_on_device, min(self.num_blocks, match.num_blocks)),
            of_blocks=match.num_blocks,
            ttft_s=1.0,
            deadline_s=self.deadline_s,
        )


def test_a_part_is_loaded_and_the_rest_is_computed():
    chooser = Uses(1)
    tiers = model(device=8, host=4, disk=8, chooser=chooser)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    [read] = tiers.moves(Read)
    assert len(read.ids) == 1
    assert request.lease.found_in[:4].tolist() == [Tier.DISK, -1, -1, -1]
    assert request.lease.decision == Decision(num_blocks=1, of_blocks=3, ttft_s=1.0)
    assert request.lease.observed.stop is MissReason.COMPUTED_SOONER
    other = tiers.request(prompt(1, 2, 3))
    assert not tiers.try_to_admit(other)
    assert other.wait is Wait.FOR_BLOCKS, "who shares what is loaded or computed waits for it"
    tiers.settle()
    tiers.prefill(request)
    tiers.release(request)
    tiers.settle()
    assert tiers.where(prompt(1, 2, 3)) == ["DHK", "DK", "DK"], "what the disk has stays clean"
    assert tiers.try_to_admit(other)
    assert other.lease.decision is None, "all of it is on the device"
    stats = tiers.index.stats()["load_or_compute"]
    assert stats["decisions"]["some"] == 1
    assert stats["blocks"] == {"loaded": 1, "computed": 2}


def test_what_it_is_asked():
    chooser = Uses(9)
    tiers = model(device=3, host=8, disk=8, chooser=chooser)
    on_disk(tiers, 1, 2)
    tiers.run(prompt(1))  # and now on the device and in host memory too
    tiers.admit(prompt(1, 2))
    assert [match.runs for match in chooser.asked] == [(("disk", 1),), (("device", 1), ("disk", 1))]
    assert chooser.asked[-1].prompt_tokens == 5
    assert chooser.asked[-1].block_tokens == 2


def test_nothing_is_chosen_for_who_waits_or_finds_nothing():
    chooser = Uses(0)
    tiers = model(device=8, host=4, chooser=chooser)
    running = tiers.admit(prompt(1, 2))
    assert not tiers.try_to_admit(tiers.request(prompt(1, 2)))
    tiers.prefill(running)
    assert chooser.asked == []
    assert tiers.index.stats()["load_or_compute"]["blocks"] == {"loaded": 0, "computed": 0}


def test_without_a_chooser_all_is_loaded():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    assert tiers.admit(prompt(1, 2)).lease.num_cached_blocks == 2
    assert tiers.index.stats()["load_or_compute"] is None


def test_what_a_prompt_took_is_learned():
    chooser = Uses(2)
    tiers = model(device=8, host=4, disk=8, chooser=chooser)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.settle()
    tiers.prefill(request)
    tiers.index.computed(request.lease, 7, load_s=0.5, prefill_s=0.75)
    kept = chooser.costs.as_json()
    assert kept["prefill"] == [[4, 3, 0.75]], "two blocks of two were there"
    assert kept["loads"] == {"host": [], "disk": [[0, 2 * 16, 0.5]]}
    assert chooser.stats()["mean_error"] == pytest.approx(0.25)
    assert (request.lease.decision.took_s, request.lease.decision.error) == (1.25, 0.25)


# ---- what does not come in time


def late_model(**changed):
    """Each block is a read of its own, and is waited for one second."""
    sizes = {"device": 10, "host": 6, "disk": 10, "read_batch_blocks": 1, **changed}
    return model(chooser=Uses(9, deadline_s=1.0), **sizes)


def test_what_has_not_come_in_time_is_computed_and_is_kept_when_it_comes():
    tiers = late_model()
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    first, *others = tiers.moves(Read)
    tiers.complete(first.number)
    tiers.plan()
    assert tiers.index.deadline_s() == 1.0
    tiers.now_s = 1.0
    tiers.plan()
    assert request.lease.num_loading == 1, "what is being copied up is waited for"
    tiers.complete(tiers.moves(Promote)[0].number)
    assert request.lease.lost == {1: MissReason.LATE, 2: MissReason.LATE}
    assert request.lease.gaps(3) == [(1, 3)]
    assert request.lease.cached_blocks_by_tier() == {"device": 0, "host": 0, "disk": 1}
    assert tiers.index.stats()["failed_loads"] == {"late": 2}
    assert stats(tiers, "disk")["ready"], "it is slow, and does not hang"
    assert stats(tiers, "disk")["overdue_reads"] == 0
    assert not tiers.index.idle, "they are still awaited by whoever settles"
    tiers.prefill(request)
    for read in others:
        tiers.complete(read.number)
    tiers.check()
    assert tiers.where(prompt(1, 2, 3)) == ["DHK", "DHK", "DHK"]
    tiers.release(request)
    assert "late" in {event.kind for event in tiers.index.events.after(0)}


def test_what_comes_late_says_how_fast_the_disk_is():
    """All that was asked for, from the beginning to the last of it: else the next ones would be waited for in vain as well."""
    tiers = late_model()
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    for at, read in enumerate(tiers.moves(Read)):
        tiers.now_s = at + 0.5
        tiers.plan()
        tiers.complete(read.number)
    costs = tiers.chooser.costs.as_json()
    assert costs["loads"]["disk"] == [[0, 3 * 16, 2.5]]
    tiers.settle()
    tiers.index.computed(request.lease, 7, load_s=1.0, prefill_s=0.5)
    assert tiers.chooser.costs.as_json()["loads"] == costs["loads"], "part of it was not waited for"


@pytest.mark.parametrize("how", [{"error": DIED}, {"misses": {0: MissReason.ABSENT}}])
def test_what_does_not_come_even_late_says_nothing(how):
    tiers = late_model()
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.now_s = 2.0
    tiers.plan()
    first, second = tiers.moves(Read)
    tiers.complete(first.number, **how)
    tiers.complete(second.number)
    tiers.prefill(request)
    tiers.release(request)
    tiers.settle()
    assert tiers.chooser.costs.as_json()["loads"]["disk"] == []
    assert tiers.where(prompt(1, 2)) == ["D" if "misses" in how else "DK", "DHK"]


def test_what_was_not_asked_for_when_the_time_was_over_is_never_read():
    tiers = late_model(read_budget_blocks=1)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.now_s = 1.0
    tiers.plan()
    assert request.lease.gaps(3) == [(0, 3)]
    tiers.prefill(request)
    tiers.settle()
    assert sum(len(read.ids) for read in tiers.moves(Read)) == 1
    assert tiers.index.deadline_s() is None


def test_who_comes_while_a_late_read_is_on_its_way_does_not_wait_for_it():
    tiers = late_model()
    on_disk(tiers, 1, 2)
    first = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.now_s = 1.0
    tiers.plan()
    tiers.release(first)
    assert lookup(tiers, 1, 2) == {}
    second = tiers.admit(prompt(1, 2))
    assert second.lease.gaps(2) == [(0, 2)]
    for read in tiers.moves(Read):
        tiers.complete(read.number)
    tiers.prefill(second)
    tiers.release(second)
    assert tiers.where(prompt(1, 2)) == ["DHK", "DHK"]


def test_a_request_that_ends_before_its_time_is_over_leaves_no_deadline_behind():
    tiers = late_model(io_deadline_s=10.0)
    on_disk(tiers, 1)
    tiers.release(tiers.admit(prompt(1)))
    tiers.settle()
    assert tiers.index.deadline_s() is None
    tiers.now_s = 5.0
    tiers.plan()
    assert tiers.index.stats()["failed_loads"] == {}
