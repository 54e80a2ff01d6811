"""What is to be kept longer goes later, children before parents, until nobody has used it for a while."""

import numpy as np
import pytest

from tests.tiering.memory_model import MemoryModel
from tests.tiering.small_tiers import model, prompt
from tests.tiering.tenants import A, B, Tenants, flood
from tiering.quotas import Quotas
from tiering.ranks import Rank
from tiering.residency import Tier

LOW, NORMAL, HIGH = Rank


@pytest.mark.parametrize("quotas", [None, Quotas()])
def test_the_lower_rank_goes_first_whenever_it_was_used(quotas):
    tenants = Tenants(12, quotas=quotas)
    tenants.serve(A, (1, 2, 3), rank=HIGH)
    tenants.serve(A, (4, 5, 6))
    tenants.serve(A, (7, 8, 9), rank=LOW)
    tenants.serve(A, range(10, 16))
    assert [tenants.there((first, first + 1, first + 2)) for first in (1, 4, 7)] == [
        {"device": 3},
        {"device": 3},
        {},
    ]
    flood(tenants, A, 4, start=100, length=3)
    assert tenants.there((1, 2, 3)) == {"device": 3}
    assert tenants.there((4, 5, 6)) == {}


def test_among_equals_the_least_recently_used_goes():
    tenants = Tenants(6)
    for first in (1, 3, 5):
        tenants.serve(A, (first, first + 1), rank=HIGH)
    tenants.serve(A, (1, 2))
    tenants.serve(A, (7, 8), rank=HIGH)
    assert [tenants.there((first, first + 1)) for first in (1, 3, 5, 7)] == [
        {"device": 2},
        {},
        {"device": 2},
        {"device": 2},
    ]


def test_a_rank_is_an_owners_own_business():
    tenants = Tenants(12, quotas=Quotas())
    tenants.serve(B, (1, 2, 3, 4), rank=LOW)
    for first in range(100, 130, 3):
        tenants.serve(A, range(first, first + 3), rank=HIGH)
    assert tenants.there((1, 2, 3, 4)) == {"device": 4}


def test_a_higher_use_raises_all_that_leads_there_and_a_lower_one_nothing():
    tenants = Tenants(9)
    tenants.serve(A, (1, 2, 3, 4), rank=LOW)
    tenants.serve(A, (1, 2, 5), rank=HIGH)
    tenants.serve(A, (1, 2), rank=LOW)
    flood(tenants, A, 4, start=100, length=3)
    assert tenants.there((1, 2, 5)) == {"device": 3}
    assert tenants.there((1, 2, 3, 4)) == {"device": 2}


def test_what_was_high_is_normal_when_nobody_has_used_it_for_a_while():
    tenants = Tenants(8, high_s=80.0)
    tenants.serve(A, (1, 2), rank=HIGH)
    tenants.serve(A, (3, 4), rank=HIGH)
    tenants.now_s += 60.0
    tenants.serve(A, (3, 4))
    tenants.now_s += 40.0  # more than an eighth after the first was due
    flood(tenants, A, 3, start=100, length=2)
    assert tenants.there((1, 2)) == {}
    assert tenants.there((3, 4)) == {"device": 2}, "a use begins the time anew"
    tenants.now_s += 100.0
    tenants.serve(A, (3, 4))
    flood(tenants, A, 5, start=200, length=2)
    assert tenants.there((3, 4)) == {}, "a normal use makes nothing high again"


def test_what_runs_for_longer_than_that_is_high_at_its_end():
    tenants = Tenants(8, high_s=80.0)
    lease = tenants.admit(A, (1, 2), rank=HIGH)
    tenants.now_s += 200.0
    tenants.settle()
    tenants.finish(lease, np.array((1, 2), dtype="<i4"))
    flood(tenants, A, 5, start=100, length=2)
    assert tenants.there((1, 2)) == {"device": 2}


def use(tiers, rank, *names: int):
    request = tiers.request(prompt(*names))
    request.rank = rank
    assert tiers.try_to_admit(request)
    tiers.settle()
    tiers.prefill(request)
    tiers.release(request)
    tiers.settle()


def ranks_of(tiers, *names: int):
    index = tiers.index
    return index._holdings.ranks.of(
        index._match(tiers.request(prompt(*names)).array, compute_last=True)
    ).tolist()


def after_a_restart(tiers, off_s):
    """With what is on disk of all that there was."""
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    tiers.index.tell_uses()
    tiers.settle()
    tiers.forget()
    again = MemoryModel(tiers.config, tiers.disk, epoch_s=tiers.epoch_s + tiers.now_s + off_s)
    again.settle()
    again.check_rest()
    return again


def test_ranks_are_what_they_were_after_a_restart():
    before = model(16, 4, 20)
    use(before, NORMAL, 1, 2)
    use(before, LOW, 1, 2, 3)
    use(before, HIGH, 1, 4)
    use(before, LOW, 5, 6)
    again = after_a_restart(before, 100.0)
    assert ranks_of(again, 1, 2, 3) == [HIGH, NORMAL, LOW]
    assert ranks_of(again, 1, 4) == [HIGH, HIGH]
    assert ranks_of(again, 5, 6) == [LOW, LOW]
    use(again, NORMAL, 5, 6)
    again = after_a_restart(again, 0.0)
    assert ranks_of(again, 5, 6) == [NORMAL, NORMAL], "a use that raises what is on disk is told of"
    again = after_a_restart(again, 700.0)
    assert ranks_of(again, 1, 4) == [NORMAL, NORMAL], "nobody has used it for ten minutes"


def test_of_what_is_found_anew_while_it_is_listed_the_higher_rank_counts():
    before = model(16, 4, 20)
    use(before, HIGH, 1, 2, 3)
    after_a_restart(before, 0.0)
    again = MemoryModel(before.config, before.disk, epoch_s=before.epoch_s, restores_in_steps=True)
    use(again, LOW, 1, 4)
    again.restore()
    again.settle()
    again.check_rest()
    assert ranks_of(again, 1, 2, 3) == [HIGH, HIGH, HIGH]
    assert ranks_of(again, 1, 4) == [HIGH, LOW]


def test_an_id_that_is_given_out_again_has_no_rank():
    tenants = Tenants(4)
    tenants.serve(A, (1, 2), rank=HIGH)
    assert tenants.index.clear()
    tenants.serve(A, (3, 4))
    tenants.serve(A, (5, 6), rank=HIGH)
    tenants.serve(A, (7, 8))
    assert tenants.there((3, 4)) == {}
    assert tenants.there((5, 6)) == {"device": 2}
