"""What an admission says of blocks that might go down, and what the core does with it."""

import pytest

from kvstore.reasons import MissReason
from tests.tiering.judges import NOT_TO_DISK, REJECTING, THROTTLING
from tests.tiering.small_tiers import RECORD_BYTES, model, prompt, stats
from tiering.explain import explain
from tiering.keeping import Everything, Verdict
from tiering.moves import Demote, Write
from tiering.residency import Tier


class ByName(Everything):
    """Rejects what it is told to, and keeps what it was asked."""

    rejected: frozenset[int] = frozenset()

    def admit(self, departing):
        verdicts = super().admit(departing)
        for at, fingerprint in enumerate(departing.fingerprints.tolist()):
            if fingerprint in self.rejected:
                verdicts[at] = Verdict.REJECT
        return verdicts


BY_NAME = f"{__name__}:ByName"


def fingerprints(tiers, *names: int):
    holdings = tiers.index._holdings
    ids = holdings.radix.match(tiers.request(prompt(*names)).array)
    return holdings.residency.fingerprint[ids].tolist()


def why(tiers, *names: int):
    explanation = explain(tiers.index.observe(tiers.request(prompt(*names)).array), lambda _: None)
    return [(part.tier, part.reason) for part in explanation.parts[:-1]]


def said(tiers, tier):
    verdicts = tiers.index.stats()["admission"][tier]["verdicts"]
    return verdicts["admit"], verdicts["reject"], verdicts["throttled"]


@pytest.mark.parametrize("admission", [REJECTING, THROTTLING])
def test_what_may_not_enter_host_memory_goes_for_good_and_is_told_of(admission):
    """Also what would have to wait: another block needs its place."""
    tiers = model(device=3, host=8, admission=admission)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(3, 4))
    assert not tiers.moves(Demote)
    assert tiers.where(prompt(3, 4)) == ["D", "D"]
    assert why(tiers, 1, 2) == [("device", MissReason.NOT_ADMITTED)]
    assert stats(tiers, "device")["not_admitted"] == stats(tiers, "device")["dropped"] == 2
    assert sum(said(tiers, "host")[1:]) == 2


def test_what_is_on_disk_stays_there_when_host_memory_does_not_take_it():
    tiers = model(device=3, host=8, disk=8, admission=REJECTING)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    tiers.run(prompt(1, 2))
    tiers.index._holdings.left(
        Tier.HOST, tiers.index._holdings.radix.match(tiers.request(prompt(1, 2)).array)
    )
    tiers.run(prompt(3, 4))
    assert tiers.where(prompt(1, 2)) == ["K", "K"]
    assert stats(tiers, "device")["not_admitted"] == 0


def test_a_block_that_others_follow_goes_down_whatever_is_said_of_it(monkeypatch):
    tiers = model(device=5, host=8, admission=BY_NAME)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(1, 3))
    first, last = fingerprints(tiers, 1, 2)
    monkeypatch.setattr(ByName, "rejected", frozenset({first}))
    tiers.run(prompt(7, 8, 9, 10))
    assert tiers.where(prompt(1, 2)) == ["H", "H"]
    assert tiers.where(prompt(1, 3)) == ["H", "H"]
    assert said(tiers, "host") == (2, 1, 0)
    monkeypatch.setattr(ByName, "rejected", frozenset({first, last}))
    tiers.run(prompt(1, 2))
    tiers.run(prompt(7, 8, 9, 10))
    assert tiers.where(prompt(1, 2)) == ["H", "H"], "there it was already, and is not asked about"


def test_what_is_rejected_leaves_host_memory_when_it_would_be_written():
    tiers = model(device=3, host=4, disk=8, admission=NOT_TO_DISK, clean_share=1.0)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(3, 4))
    assert not tiers.moves(Write)
    assert tiers.where(prompt(3, 4)) == ["D", "D"]
    assert why(tiers, 1, 2) == [("host", MissReason.NOT_ADMITTED)]
    assert said(tiers, "disk") == (0, 2, 0)
    assert stats(tiers, "host")["not_admitted"] == 2


def test_what_has_to_wait_stays_and_is_asked_about_again_later():
    tiers = model(device=3, host=4, disk=8, admission=THROTTLING, clean_share=1.0)
    tiers.index._entry._admission.admit = Everything([]).admit
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    del tiers.index._entry._admission.admit
    tiers.settle()
    for _ in range(5):
        tiers.plan()
    assert tiers.where(prompt(1, 2)) == ["H", "H"]
    assert said(tiers, "disk") == (0, 0, 2), "once a second"
    tiers.now_s += 1.0
    tiers.plan()
    assert said(tiers, "disk") == (0, 0, 4)
    tiers.index._entry._admission.admit = Everything([]).admit
    tiers.now_s += 1.0
    tiers.settle()
    assert tiers.where(prompt(1, 2)) == ["HK", "HK"]


@pytest.mark.parametrize("admission", ["all", "adaptive"])
def test_so_much_is_written_in_a_day_and_no_more(admission):
    """Two blocks in an hour; what a record takes less than was thought is left for others."""
    a_day = 24 * 2 * RECORD_BYTES
    tiers = model(device=3, host=8, disk=32, admission=admission, clean_share=1.0, disk_bytes_a_day=a_day)
    for names in ((1, 2), (3, 4), (5, 6)):
        tiers.run(prompt(*names))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    assert stats(tiers, "disk")["blocks"] == 2
    assert stats(tiers, "host")["indexed"] == 6, "what has to wait stays"
    tiers.now_s += 1801.0
    tiers.settle()
    assert stats(tiers, "disk")["blocks"] == 3
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    assert stats(tiers, "disk")["blocks"] == 6, "by hand all of it goes down"
    tiers.run(prompt(7, 8))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.now_s += 3600.0
    tiers.settle()
    assert stats(tiers, "disk")["blocks"] == 6, "which is owed"


def test_the_end_writes_all_whatever_is_said():
    tiers = model(device=3, host=8, disk=8, admission=REJECTING)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    assert tiers.where(prompt(1, 2)) == ["DHK", "DHK"]


def test_it_knows_how_large_the_tiers_are():
    tiers = model(device=3, host=8, disk=8, admission="adaptive")
    entry = tiers.index._entry
    assert entry._admission._capacities == [3, 11, 19]
    tiers.index.change(host_slots=4, disk_bytes=16 * RECORD_BYTES)
    assert entry._admission._capacities == [3, 7, 23]
    assert model(device=3, admission="all").index._entry._admission is None
