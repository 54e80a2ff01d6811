"""One owner's flood does not empty the tiers for others; with one owner, or without quotas, all is as it was."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER
from tests.tiering.memory_model import OWNERS
from tests.tiering.small_tiers import lookup, model, on_disk, prompt
from tests.tiering.tenants import A, B, C, Tenants, flood
from tests.tiering.test_explain import now, told
from tiering.moves import Write
from tiering.policies import POLICIES
from tiering.policies.policy import PolicyError
from tiering.quotas import Quota, Quotas, split
from tiering.residency import Tier

B_PROMPT = (1, 2, 3, 4)


# ---- who gives


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6),
    st.integers(1, 60),
)
def test_who_stands_highest_gives_as_if_one_place_were_asked_for_at_a_time(owners, amount):
    used, entitled = (np.array(column, dtype=np.float64) for column in zip(*owners, strict=True))
    gives = split(used, entitled, amount)
    left = used.copy()
    for _ in range(min(amount, int(used.sum()))):
        left[(left / entitled).argmax()] -= 1
    assert gives.sum() == min(amount, used.sum())
    assert (gives <= used).all()
    # no more than the last places, which all were nearest to giving, may be others
    assert np.abs(used - gives - left).max() <= 1 + len(owners)
    assert ((used - gives) / entitled).max() <= (left / entitled).max() + (1 / entitled).max() + 1e-9


def test_who_is_within_its_part_gives_nothing_while_another_is_above():
    assert split(np.array([30.0, 10.0]), np.array([20.0, 20.0]), 8).tolist() == [8, 0]
    assert split(np.array([30.0, 20.0]), np.array([20.0, 20.0]), 20).tolist() == [15, 5]
    assert split(np.array([3.0, 2.0]), np.array([2.0, 2.0]), 9).tolist() == [3, 2], "all that there is"


# ---- the tiers


def without_and_with(device, host=0, disk=0, **settings):
    return [Tenants(device, host, disk, quotas=quotas, **settings) for quotas in (None, Quotas())]


def test_a_flood_takes_what_the_flooding_owner_has():
    plain, fair = without_and_with(16)
    for tenants in (plain, fair):
        tenants.serve(B, B_PROMPT)
        flood(tenants, A, 10, start=100)
    assert plain.there(B_PROMPT) == {}
    assert fair.there(B_PROMPT) == {"device": 4}
    assert (fair.used(A)[0], fair.used(B)[0]) == (12, 4), "what B does not use is there for A"
    assert fair.index.owners()[A.hex()]["evicted_copies"] == 28
    assert fair.index.owners()[A.hex()]["evictions_asked"] == 28


def test_a_flood_stops_before_others_in_every_tier():
    plain, fair = without_and_with(8, 12, 24)
    for tenants in (plain, fair):
        for first in range(0, 32, 4):
            tenants.serve(B, range(first, first + 4))
        flood(tenants, A, 30, start=100)
        tenants.index.check()
    assert plain.used(B) == (0, 0, 0)
    assert fair.used(B) == (4, 6, 12), "half of each"


@pytest.mark.parametrize("quotas", [None, Quotas()])
def test_room_on_disk_is_asked_for_by_whose_blocks_are_written(quotas, monkeypatch):
    """Whoever it is that has them leave host memory."""
    tenants, askers = Tenants(4, 4, 4, quotas=quotas), []
    tenants.serve(B, (1, 2))
    flood(tenants, A, 8, start=100)
    eviction, holdings = tenants.index._eviction, tenants.index._holdings
    give_up, owner_of = eviction.give_up, holdings.owners.owner

    def noted(tier, ids):
        if tier is Tier.DISK and len(ids):
            askers.append(owner_of(holdings.shares.asker))
        give_up(tier, ids)

    monkeypatch.setattr(eviction, "give_up", noted)
    tenants.serve(B, (3, 4, 5, 6))
    assert askers and set(askers) == {A}


@pytest.mark.parametrize("owner", [A, NO_OWNER])
def test_a_share_of_each_part_of_host_memory_is_kept_clean(owner):
    """Of what is no tenant's as well."""
    tenants = Tenants(4, 16, 64, quotas=Quotas(), clean_share=0.5)
    flood(tenants, B, 2, start=1000)
    flood(tenants, owner, 8, start=100, check=False)
    holdings = tenants.index._holdings
    dirty = (holdings.residency.state[Tier.HOST] > 0) & (holdings.residency.state[Tier.DISK] == 0)
    assert tenants.used(owner)[1] >= 8
    assert np.count_nonzero(dirty & (holdings.residency.owner == holdings.owners.number(owner))) <= 4


def test_writes_leave_an_owner_most_of_its_part_of_host_memory(monkeypatch):
    """Of each owner only its own gives way meanwhile. Nor is one written later because others have asked for much."""
    tenants = Tenants(
        *(16, 64, 1024),
        quotas=Quotas(owners={B: Quota(host=16)}),
        clean_share=0.5,
        write_host_share=0.25,
        write_least_blocks=1,
    )
    writes, answer, holdings = [], tenants._answer, tenants.index._holdings
    monkeypatch.setattr(
        tenants, "_answer", lambda move: writes.append(move) if isinstance(move, Write) else answer(move)
    )
    flood(tenants, A, 12, start=1000, check=False)
    flood(tenants, B, 8, start=2000, check=False)
    sizes = [
        [len(move.ids) for move in writes if holdings.owner_of(move.ids.item(0)) == owner] for owner in (A, B)
    ]
    assert sizes == [[16, 12, 4], [4] * 6], "the first while there was nobody else"
    tenants.index.check()


def test_who_comes_later_gets_its_part_from_who_is_above():
    tenants = Tenants(12, 12, 12, quotas=Quotas())
    flood(tenants, A, 12, start=100)
    for first in range(0, 20, 4):
        tenants.serve(B, range(first, first + 4))
    assert tenants.used(B)[:2] == (6, 6)
    assert tenants.used(B)[2] > 0, "although all of A's on disk were used before"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_plug_in_chooses_among_the_blocks_of_who_is_to_give(policy):
    fair = Tenants(16, 16, quotas=Quotas(), policy=policy)
    fair.serve(B, B_PROMPT)
    flood(fair, A, 12, start=100)
    assert sum(fair.there(B_PROMPT).values()) == 4
    assert fair.used(A)[0] <= 16


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.HOST])
def test_a_policy_that_breaks_its_contract_leaves_no_room_asked_for(tier, monkeypatch):
    tenants = Tenants(8, 8, quotas=Quotas(), policy="s3fifo")
    tenants.serve(B, B_PROMPT)
    flood(tenants, A, 8, start=100)
    holdings = tenants.index._holdings
    order = (holdings.device_victims, holdings.host_victims)[tier].plain
    monkeypatch.setattr(order._policy, "evict", lambda *_: 1)  # of which it has not heard
    with pytest.raises(PolicyError):
        flood(tenants, A, 8, start=200, check=False)
    assert all(coming is None for coming in holdings.shares._coming)


@pytest.mark.parametrize(
    ("policy", "who", "device"), [("s3fifo", A, 8), ("lru", A, 8), ("lru", C, 8), ("lru", C, 64)]
)
def test_whose_admission_fails_holds_nothing(policy, who, device, monkeypatch):
    """Room is made beside what is matched, or is there. The policy breaks its contract, or there is no memory for a node, or for one
    owner more.
    """
    tenants = Tenants(device, quotas=Quotas(), policy=policy)
    tenants.serve(B, B_PROMPT)
    flood(tenants, A, 8, start=100)
    holdings, matched = tenants.index._holdings, range(128, 132)

    def no_memory(*_: object):
        raise MemoryError

    with monkeypatch.context() as broken:
        if policy != "lru":
            broken.setattr(holdings.device_victims.plain._policy, "evict", lambda *_: 1)
        if who is A:
            broken.setattr(holdings.radix._nodes, "make_room", no_memory)
        broken.setattr(holdings.owners, "came", no_memory)
        with pytest.raises(PolicyError if policy != "lru" else MemoryError):
            tenants.admit(who, [*matched, *range(500, 504)])
        assert tenants.there(matched) == {"device": 4}
    tenants.index.check()


def test_quotas_are_sizes_shares_or_by_weight():
    quotas = Quotas(
        default=Quota(weight=3.0), owners={A: Quota(device=4), B: Quota(device=0.25)}, nobodys=Quota()
    )
    tenants = Tenants(32, quotas=quotas)
    for number in range(20):
        for place, owner in enumerate((A, B, C, NO_OWNER)):
            tenants.serve(owner, range(1000 * place + 4 * number, 1000 * place + 4 * number + 4))
    assert [tenants.used(owner)[0] for owner in (A, B, C, NO_OWNER)] == [4, 8, 15, 5]


def test_a_request_that_runs_gets_more_than_its_owners_part():
    """A quota is of what is cached: what nobody uses never costs a request its place."""
    tenants = Tenants(8, quotas=Quotas(owners={A: Quota(device=2)}))
    tenants.serve(B, B_PROMPT)
    tokens = np.arange(100, 108, dtype="<i4")
    lease = tenants.admit(A, tokens)
    assert tenants.used(A)[0] == 8
    tenants.finish(lease, tokens)
    tenants.serve(B, B_PROMPT)
    assert tenants.used(A)[0] == 4, "and it goes first afterwards"


def test_what_a_request_holds_counts_and_stays():
    tenants = Tenants(12, quotas=Quotas())
    held = np.arange(100, 108, dtype="<i4")
    lease = tenants.admit(A, held)
    tenants.serve(B, B_PROMPT)
    flood(tenants, A, 3, start=200, length=2)
    assert tenants.used(A)[0] > 8
    tenants.finish(lease, held)
    assert tenants.there(held.tolist()) == {"device": 8}


def test_public_blocks_stay_as_long_as_an_owners_follow_them():
    tenants = Tenants(12, quotas=Quotas(nobodys=Quota(device=0)))
    tenants.serve(B, (1, 2, 3, 4), public=2)
    tenants.serve(NO_OWNER, (1, 2, 7))
    flood(tenants, A, 4, start=100)
    assert tenants.there((1, 2, 3, 4)) == {"device": 4}
    assert tenants.there((1, 2, 7)) == {"device": 2}, "which nothing follows"


@pytest.mark.parametrize("sizes", [(9, 0, 0), (6, 9, 0), (5, 7, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_with_one_owner_all_goes_as_without_quotas(sizes, seed):
    both = without_and_with(*sizes)
    draw = random.Random(seed)
    prompts = [tuple(draw.randrange(3) for _ in range(draw.randrange(1, 5))) for _ in range(60)]
    for each in prompts:
        found = {tenants.serve(A, (9, *each), check=False) for tenants in both}
        assert len(found) == 1
        assert both[0].there((9, *each)) == both[1].there((9, *each))
    for tenants in both:
        tenants.index.check()
    assert both[0].index.owners()[A.hex()]["device"] == both[1].index.owners()[A.hex()]["device"]


def test_quotas_come_and_go_while_requests_do():
    tenants = Tenants(16)
    tenants.serve(B, B_PROMPT)
    flood(tenants, A, 3, start=100)
    tenants.index.change(quotas=Quotas())
    flood(tenants, A, 4, start=200)
    assert tenants.there(B_PROMPT) == {"device": 4}
    tenants.index.change(quotas=Quotas(owners={B: Quota(device=2)}))
    flood(tenants, A, 4, start=300)
    assert tenants.there(B_PROMPT) == {"device": 2}, "what it is entitled to"
    tenants.index.change(quotas=None)
    flood(tenants, A, 5, start=400)
    assert tenants.there(B_PROMPT) == {}


def test_owners_have_what_they_had_after_a_restart():
    """The records say whose they are: nobody has to ask for them before."""
    before = model(device=8, host=8, disk=12)
    on_disk(before, 3, 4, 5)  # the first owner's, and the second's behind its first block: see `ownership_of`
    on_disk(before, 5, 6, 7)
    again = model(device=8, host=8, disk=12, quotas=Quotas())
    again.disk.update(before.disk)
    again.begin_restore()
    again.restore()
    owners = again.index.owners()
    assert [owners[owner.hex()]["disk"] for owner in OWNERS] == [30, 20]
    assert owners[""]["disk"] == 10
    for name in range(100, 160, 3):  # public
        on_disk_or_gone(again, name)
    assert lookup(again, 3, 4, 5) == {"disk": 3}
    again.check_rest()


def on_disk_or_gone(tiers, name):
    tiers.run(prompt(name, name + 1))
    tiers.settle()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": -1}, "device must be a size of at least 0 or a share up to 1.0, not -1"),
        ({"disk": 1.5}, "disk must be a size of at least 0 or a share up to 1.0, not 1.5"),
        ({"weight": 0.0}, "weight must be a number from 1e-06 to 1e\\+06, not 0.0"),
        ({"weight": float("inf")}, "weight must be a number"),
        ({"host": 1 << 63}, "host must be a size of at least 0"),
    ],
)
def test_what_is_no_quota(settings, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        Quota(**settings)


# ---- why it went


@pytest.mark.parametrize(
    ("last", "detail"),
    [
        ((6, 7), "its tenant had more than its part, and needed the room itself"),
        ((1, 2), "its tenant had more than its part, and another one needed the room"),
    ],
)
def test_what_went_over_a_quota_says_who_asked(last, detail):
    """3, 9 and 6 begin prompts of the first owner, 1 one of nobody's."""
    tiers = model(device=8, quotas=Quotas(owners={OWNERS[0]: Quota(device=3)}))
    tiers.run(prompt(4))
    tiers.run(prompt(3, 4, 5))
    tiers.run(prompt(9, 4, 5))
    tiers.run(prompt(*last))
    explanation = now(tiers, prompt(3, 4, 5))
    assert (MissReason.OVER_QUOTA.value, 1) in [(kind, min(num, 1)) for kind, num in told(explanation)]
    [part] = [part for part in explanation.parts if part.reason is MissReason.OVER_QUOTA]
    assert (part.tier, part.detail) == ("device", detail)


def test_who_is_within_its_part_was_evicted_for_want_of_room():
    tiers = model(device=4, quotas=Quotas(default=Quota(device=1.0), nobodys=Quota(device=1.0)))
    tiers.run(prompt(3, 4))
    tiers.run(prompt(1, 2))
    assert ("evicted", 1) in told(now(tiers, prompt(3, 4)))
