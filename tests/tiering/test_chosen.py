"""What the core does with a decision: it uses the first blocks of a match and has the others computed, for all."""

import pytest

from kvstore.reasons import MissReason
from tests.tiering.small_tiers import model, on_disk, prompt
from tiering.costs import Costs
from tiering.decision import Chooser, Decision
from tiering.leases import Wait
from tiering.moves import Read
from tiering.residency import Tier


class Uses(Chooser):
    """Always so many blocks, whatever they would take."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(Costs())
        self.num_blocks = num_blocks
        self.asked = []

    def choose(self, match):
        self.asked.append(match)
        return Decision(
            num_blocks=max(match.num_on_device, min(self.num_blocks, match.num_blocks)),
            of_blocks=match.num_blocks,
            ttft_s=1.0,
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
