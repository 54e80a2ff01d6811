"""Whose a block is, from the prompt to the record and back, and what is erased with its owner."""

import random

import numpy as np
import pytest

from kvstore.store import OWNER_BYTES
from tests.tiering.memory_model import OWNERS, ownership_of
from tests.tiering.small_tiers import lookup, model, on_disk, prompt
from tests.tiering.tenants import Tenants
from tiering.fair_order import FairOrder
from tiering.owners import EVERYBODYS, NO_OWNER, NOBODY, Owners, Ownership
from tiering.quotas import Quota, Quotas
from tiering.ranks import Rank
from tiering.residency import Tier

# by the model's rule: a prompt that begins with a multiple of 3 is the first owner's, with one more everybody's, and
# with two more the second owner's behind its first block
FIRST, PUBLIC, SECOND = (3, 4, 5), (4, 5, 6), (5, 6, 7)


def owners_on_disk(tiers):
    return sorted(record.meta.owner for record in tiers.disk.values())


def test_an_owner_has_one_number():
    owners = Owners()
    numbers = [owners.number(owner) for owner in (OWNERS[0], OWNERS[1], NO_OWNER, OWNERS[0])]
    assert numbers == [1, 2, NOBODY, 1]
    assert [owners.owner(number) for number in numbers] == [OWNERS[0], OWNERS[1], NO_OWNER, OWNERS[0]]


def test_what_comes_first_is_everybodys():
    private = Ownership(OWNERS[0], 2)
    assert [private.of(position) for position in range(4)] == [NO_OWNER, NO_OWNER, OWNERS[0], OWNERS[0]]
    assert EVERYBODYS.of(0) == NO_OWNER


def test_records_say_whose_they_are():
    tiers = model(device=8, host=8, disk=16)
    for names in (FIRST, PUBLIC, SECOND):
        on_disk(tiers, *names)
    assert owners_on_disk(tiers) == sorted([*[OWNERS[0]] * 3, *[NO_OWNER] * 4, *[OWNERS[1]] * 2])
    assert ownership_of(prompt(*SECOND)).first_block == 1


def test_erasing_forgets_one_owners_blocks_in_every_tier():
    tiers = model(device=8, host=8, disk=16)
    on_disk(tiers, *FIRST)
    on_disk(tiers, *SECOND)
    tiers.run(prompt(*FIRST))  # on the device and in host memory as well
    assert tiers.index.erase(OWNERS[0])
    tiers.settle()
    assert tiers.where(prompt(*FIRST)) == []
    assert lookup(tiers, *SECOND) == {"disk": 3}
    assert tiers.index.erase(OWNERS[1])
    tiers.settle()
    assert lookup(tiers, *SECOND) == {"disk": 1}, "the first block is everybody's"
    assert owners_on_disk(tiers) == [NO_OWNER]
    tiers.check_rest()


def test_erasing_who_has_nothing_is_fine():
    tiers = model(device=8)
    tiers.run(prompt(*PUBLIC))
    assert tiers.index.erase(OWNERS[0])
    assert lookup(tiers, *PUBLIC) == {"device": 3}


def test_what_a_request_holds_stays_and_is_told():
    tiers = model(device=12)
    tiers.run(prompt(*FIRST))
    tiers.run(prompt(3, 8))
    tiers.run(prompt(6, 7))
    running = tiers.admit(prompt(*FIRST))
    assert not tiers.index.erase(OWNERS[0])
    assert lookup(tiers, 6, 7) == {}, "what nobody holds is gone"
    assert lookup(tiers, 3, 8) == {"device": 1}, "also where it branches off from what is held"
    assert lookup(tiers, *FIRST) == {"device": 3}
    tiers.prefill(running)
    tiers.release(running)
    assert tiers.index.erase(OWNERS[0])
    assert lookup(tiers, *FIRST) == {}
    tiers.check_rest()


def test_the_disk_is_not_counted_on_for_what_is_in_use():
    """The store erases all that it has of the owner's: what stays here is written anew."""
    tiers = model(device=12, host=12, disk=16)
    on_disk(tiers, *FIRST)
    running = tiers.admit(prompt(*FIRST))
    tiers.settle()
    assert not tiers.index.erase(OWNERS[0])
    tiers.settle()
    assert owners_on_disk(tiers) == []
    tiers.prefill(running)
    tiers.release(running)
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    assert owners_on_disk(tiers) == [OWNERS[0]] * 3


def test_owners_are_known_after_a_restart():
    tiers = model(device=8, host=8, disk=16)
    on_disk(tiers, *FIRST)
    on_disk(tiers, *SECOND)
    again = model(device=8, host=8, disk=16)
    again.disk.update(tiers.disk)
    again.begin_restore()
    again.restore()
    again.check_indexed()
    assert again.index.erase(OWNERS[1])
    again.settle()
    assert lookup(again, *SECOND) == {"disk": 1}
    assert lookup(again, *FIRST) == {"disk": 3}


def test_a_block_that_is_computed_again_is_its_owners_again():
    """Ids are given out anew: nothing of the one before may stick to them."""
    tiers = model(device=4)
    for names in (FIRST, PUBLIC, FIRST, PUBLIC):
        tiers.run(prompt(*names))
        tiers.check_indexed()
    tiers.check_rest()


def test_a_reply_is_the_owners_too():
    tiers = model(device=8, host=8, disk=16)
    request = tiers.admit(prompt(*SECOND), num_blocks=6)
    tiers.prefill(request)
    tiers.reply(request, [8, 8, 9, 9])
    tiers.release(request)
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    tiers.check_indexed()
    assert owners_on_disk(tiers).count(OWNERS[1]) >= 3


def test_a_number_that_was_given_back_becomes_anothers():
    owners, told = Owners(), []
    owners.came = lambda _, number: told.append(number)
    first, second = (owners.number(owner) for owner in OWNERS)
    owners.give_back([first])
    assert owners.known(OWNERS[0]) is None
    other, again = (owners.number(owner) for owner in (b"another", OWNERS[0]))
    assert (first, second, other, again) == (1, 2, 1, 3)
    assert told == [1, 2, 1, 3]
    assert owners.all() == [(NO_OWNER, NOBODY), (OWNERS[1], 2), (b"another", 1), (OWNERS[0], 3)]


def test_who_cannot_be_counted_has_no_number():
    """Or what is counted would be written where nothing is."""
    owners = Owners()

    def no_memory(owner, number):
        raise MemoryError

    owners.came, came = no_memory, owners.came
    with pytest.raises(MemoryError):
        owners.number(OWNERS[0])
    assert (owners.known(OWNERS[0]), len(owners), owners.several) == (None, 1, False)
    owners.came = came
    assert owners.number(OWNERS[0]) == 1
    owners.give_back([1])
    owners.came = no_memory
    with pytest.raises(MemoryError):
        owners.number(OWNERS[1])
    owners.came = came
    assert [owners.number(owner) for owner in OWNERS] == [1, 2], (
        "the number that was given back is there still"
    )


@pytest.mark.parametrize("failing", range(6))
def test_where_there_is_no_memory_for_one_more_nothing_has_changed(failing, monkeypatch):
    """Whichever column it is that cannot be had."""
    tenants = Tenants(8, 8, 8, quotas=Quotas())
    holdings, num = tenants.index._holdings, 7
    for number in range(1, 1 + num):
        tenants.serve(tenant(number), (number,))
    pad, padded = np.pad, []

    def pad_some(array, room, **more):
        if len(padded) == failing:
            raise MemoryError
        padded.append(array)
        return pad(array, room, **more)

    before = tenants.index.owners()
    monkeypatch.setattr(np, "pad", pad_some)
    with pytest.raises(MemoryError):
        holdings.owners.number(tenant(99))
    monkeypatch.undo()
    assert holdings.owners.known(tenant(99)) is None
    assert tenants.index.owners() == before
    tenants.serve(tenant(99), (99,))


def tenant(number):
    return number.to_bytes(OWNER_BYTES, "little")


def test_ten_thousand_tenants_that_come_and_go_leave_little_behind():
    quotas = Quotas(owners={tenant(7): Quota(weight=2.0)})
    tenants = Tenants(4, quotas=quotas, explains=False, admission="adaptive")
    holdings, num_seen = tenants.index._holdings, 10_000
    for number in range(1, num_seen + 1):
        tenants.serve(tenant(number), (number,), check=False)
        if number == 7:
            tenants.serve(NO_OWNER, (0,), check=False)
    tenants.index.check()
    assert len(holdings.owners) < 100
    assert len(holdings.order.places.columns[0]) < 200
    assert len(holdings.device_victims.parts) < 100
    assert len(holdings.device_victims.plain._parts) < 100
    assert holdings.owners.known(tenant(7)) is not None, "it has a quota of its own"
    figures = tenants.index.stats()["owners"]
    assert sum(row["evicted_copies"] for row in figures.values()) == num_seen + 1 - 4
    assert figures["*"]["evictions_asked"] > num_seen - 100, "what those did that are forgotten counts still"
    assert len(tenants.index.owners()) < 100


@pytest.mark.parametrize("admission", ["all", "adaptive"])
def test_orders_are_what_they_were_before_an_owner_was_forgotten(admission, monkeypatch):
    """Beside such as keep the parts of who has gone, for who gets the number next."""

    def served(*, check):
        tenants = Tenants(9, 6, 12, quotas=Quotas(), admission=admission)
        owners, draw = tenants.index._holdings.owners, random.Random(3)
        found = []
        for turn in range(150):
            owners.are_many = True
            owner = tenant(1 + turn // 5 + draw.randrange(4))
            prompt = [draw.randrange(3) for _ in range(draw.randrange(2))]
            public = len(prompt)
            prompt += [100 * owner[0] + draw.randrange(4) for _ in range(draw.randrange(1, 4))]
            rank = draw.choice([Rank.NORMAL, Rank.NORMAL, *Rank]) if turn > 75 else Rank.NORMAL
            found.append(
                tenants.serve(owner, prompt, public=public, rank=rank, check=check and turn % 20 == 0)
            )
        assert len(owners) < 20 < owner[0]
        return found, tenants.index.stats()["tiers"]

    forgotten = served(check=True)
    monkeypatch.setattr(FairOrder, "forget", lambda *_: None)
    assert served(check=False) == forgotten
    assert sum(forgotten[0]) > 10
