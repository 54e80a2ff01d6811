"""How long blocks live where requests say so: the longest of those that share one wins, over restarts too."""

import math

import numpy as np
import pytest

from kvstore.reports import PrefixQuery
from tests.tiering.memory_model import MemoryModel
from tests.tiering.small_tiers import lookup, model, prompt
from tests.tiering.test_ttl import at, blocks, pass_time
from tiering.listing import Listing
from tiering.moves import Retain
from tiering.residency import Residency, Tier
from tiering.terms import Term, Terms

SHORT_S, LONG_S = 300.0, 3600.0


def run(tiers, ttl_s, *names: int):
    request = tiers.request(prompt(*names))
    request.ttl_s = ttl_s
    assert tiers.try_to_admit(request)
    tiers.settle()
    tiers.prefill(request)
    tiers.release(request)
    tiers.settle()


def test_a_block_lives_for_as_long_as_its_request_said():
    tiers = model(16, 4, 8)
    run(tiers, SHORT_S, 1, 2)
    run(tiers, LONG_S, 5, 6)
    run(tiers, None, 8)
    pass_time(tiers, SHORT_S - 1)
    assert lookup(tiers, 1, 2) == {"device": 2}
    pass_time(tiers, SHORT_S)
    assert lookup(tiers, 1, 2) == {}, "it is over before anybody has swept"
    pass_time(tiers, SHORT_S * 9 / 8)
    assert blocks(tiers) == 3, "and it is gone"
    assert lookup(tiers, 5, 6) == {"device": 2}
    pass_time(tiers, LONG_S * 9 / 8)
    assert blocks(tiers) == 1, "what nobody gave a time lives on"
    pass_time(tiers, 1e9)
    assert tiers.index.deadline_s() is None, "and nobody is woken for it"
    tiers.check_rest()


def test_each_use_begins_a_blocks_own_time_anew_whoever_it_is_that_uses_it():
    tiers = model(16, 4, 8)
    run(tiers, LONG_S, 1, 2)
    at(tiers, SHORT_S)
    run(tiers, SHORT_S, 1, 2, 3)
    at(tiers, LONG_S + SHORT_S - 1)
    assert lookup(tiers, 1, 2, 3) == {"device": 2}, "the shared ones have the longer time, the last its own"
    at(tiers, LONG_S + SHORT_S)
    assert lookup(tiers, 1, 2, 3) == {}


def test_what_leads_to_a_block_is_never_over_before_it():
    """The second request needs the first two blocks for an hour, although their own request wanted five minutes."""
    tiers = model(16, 4, 8)
    run(tiers, SHORT_S, 1, 2)
    run(tiers, LONG_S, 1, 2, 3)
    pass_time(tiers, LONG_S - 1)
    assert lookup(tiers, 1, 2, 3) == {"device": 3}


@pytest.mark.parametrize("changed_s", [None, 10.0, 1000.0])
def test_the_indexs_own_ttl_counts_for_who_said_nothing_also_when_it_changes(changed_s):
    tiers = model(16, 4, 8, ttl_s=SHORT_S)
    run(tiers, LONG_S, 1, 2)
    run(tiers, None, 1, 2, 3)
    tiers.index.change(ttl_s=changed_s)
    tiers.config = tiers.index.config
    tiers.plan()
    own_s = math.inf if changed_s is None else changed_s
    at(tiers, min(own_s, 1e6) - 1)
    assert sum(lookup(tiers, 1, 2, 3).values()) == 3
    at(tiers, max(own_s, LONG_S) if own_s < math.inf else 1e6)
    assert sum(lookup(tiers, 1, 2, 3).values()) == (3 if changed_s is None else 0)


def test_terms_hold_over_a_restart():
    tiers = model(8, 4, 8)
    run(tiers, SHORT_S, 1, 2)
    run(tiers, LONG_S, 1, 3)
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    assert tiers.moves(Retain), "the disk was told"
    again = MemoryModel(tiers.config, tiers.disk, now_s=0.0, epoch_s=tiers.epoch_s + 200.0)
    pass_time(again, 100.0)
    assert lookup(again, 1, 2) == {"disk": 1}
    assert lookup(again, 1, 3) == {"disk": 2}
    pass_time(again, LONG_S)
    assert blocks(again) == 0


def test_a_term_that_grows_is_told_at_once():
    tiers = model(8, 4, 8)
    run(tiers, SHORT_S, 1, 2)
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    run(tiers, LONG_S, 1, 2)
    assert [record.wanted.term for record in tiers.disk.values()] == [Term(LONG_S, by_default=False)] * 2


def test_the_fast_way_says_what_the_plain_one_does():
    """With one term in use no block's own is looked at; with others there, none of them on these blocks, it is the same."""
    plain, mixed = (model(16, 4, 8, ttl_s=SHORT_S) for _ in range(2))
    run(mixed, LONG_S, 9)
    for tiers in (plain, mixed):
        for now_s, names in ((0, (1, 2)), (100, (1, 3)), (200, (4,))):
            at(tiers, now_s)
            run(tiers, None, *names)
    for now_s in (299, 300, 399, 400, 499, 500):
        at(plain, now_s)
        at(mixed, now_s)
        for names in ((1, 2), (1, 3), (4,)):
            assert lookup(plain, *names) == lookup(mixed, *names), (now_s, names)


def test_a_round_looks_at_no_more_than_it_must():
    """Among many blocks that live for long, those that are over are found by their touches."""
    tiers = model(500, 0, 0)
    for first in range(100, 500, 50):
        run(tiers, LONG_S, *range(first, first + 50))
    run(tiers, SHORT_S, 1, 2)
    pass_time(tiers, SHORT_S)
    looked = []
    expiry, is_old = tiers.index._expiry, tiers.index._expiry._is_old
    expiry._is_old = lambda ids: looked.append(len(ids)) or is_old(ids)
    pass_time(tiers, SHORT_S * 9 / 8)
    assert blocks(tiers) == 400
    assert sum(looked) <= 10


def test_times_beyond_number_count_as_the_next_power_of_two():
    terms = Terms(Residency(4))
    numbers = {terms.number(float(seconds)) for seconds in range(1000, 4000)}
    assert len(terms) <= 2 * 200 + 2 * 40 + 1
    assert terms.lives_s[terms.number(3999.5)] == 4096.0
    assert terms.lives_s[terms.number(1000.0)] == 1000.0, "those that were first are exact"
    assert len(numbers) > 100


def test_two_terms_together_live_as_long_as_both():
    terms = Terms(Residency(4))
    terms.change(100.0)
    both = terms.merged(terms.number(SHORT_S), terms.number(None))
    assert terms.lives_s[both] == SHORT_S
    terms.change(1000.0)
    assert terms.lives_s[both] == 1000.0
    terms.change(None)
    assert terms.lives_s[both] == math.inf
    assert np.isfinite(terms.lives_s[terms.number(SHORT_S)])


def test_listings_say_how_long_runs_will_be_kept():
    tiers = model(16, 4, 8, ttl_s=1000.0)
    run(tiers, SHORT_S, 1, 2)
    run(tiers, None, 1, 3)
    at(tiers, 100.0)
    assert tiers.index.keep.prefix(np.array(prompt(1, 3)[:-1], dtype="<i4"), Tier.DEVICE) == 4
    runs = Listing(
        lambda: _ended(tiers.index.walk()),
        bytes(32),
        2,
        clock=lambda: 100.0,
        ttl_s=lambda: 1000.0,
        wait=lambda coming: coming.result(1.0),
    )
    rows = {(row.start_token, row.held): row.ttl_s for row in runs.page(PrefixQuery(flat=True)).rows}
    assert rows == {(0, True): None, (2, True): None, (2, False): SHORT_S - 100.0}


def _ended(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
