"""Whose a block is, from the prompt to the record and back, and what is erased with its owner."""

from tests.tiering.memory_model import OWNERS, ownership_of
from tests.tiering.small_tiers import lookup, model, on_disk, prompt
from tiering.owners import EVERYBODYS, NO_OWNER, NOBODY, Owners, Ownership
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
