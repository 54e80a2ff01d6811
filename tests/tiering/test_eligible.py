"""The rules that compiled loops ask, against what they mean: in Python, block by block."""

from itertools import product

import numpy as np
import pytest

from tiering import rules
from tiering.eligible import Eligible
from tiering.part import Part
from tiering.policies.lru import LRU
from tiering.policies.view import SeenBy
from tiering.radix import RadixIndex
from tiering.residency import NO_BLOCK, Residency, State, Tier
from tiering.slot_table import SlotTable

ABSENT, WRITING, PRESENT = State
DEVICE, HOST, DISK = Tier


class Block:
    """What the columns say of one block, by name."""

    def __init__(self, residency, block) -> None:
        self.device, self.host, self.disk = residency.state[:, block].tolist()
        self.read = residency.readers[:, block].tolist()
        self.leased, self.computing = residency.leases.item(block) > 0, residency.computing.item(block)
        self.held = [holds > 0 for holds in residency.held[:, block].tolist()]
        self.elsewhere = self.device != ABSENT or self.computing or self.disk == PRESENT


def device_victim(block, has_host):
    idle = block.device == PRESENT and not block.read[DEVICE] and not block.leased
    return idle and not block.held[DEVICE] and (has_host or not any(block.held))


def of_host(block):
    return block.host == PRESENT and not block.read[HOST]


def disk_victim(block, _):
    idle = block.disk == PRESENT and not block.read[DISK] and not block.held[DISK]
    return idle and (block.device == PRESENT or not (block.leased or any(block.held)))


MEANINGS = {
    rules.EVERY_BLOCK: lambda *_: True,
    rules.DEVICE_VICTIM: device_victim,
    rules.HOST_CLEAN: lambda block, _: of_host(block) and block.elsewhere and not block.held[HOST],
    rules.HOST_STORED: lambda block, _: of_host(block) and block.disk == PRESENT and not block.held[HOST],
    rules.HOST_VICTIM: lambda block, _: of_host(block) and not block.elsewhere and not any(block.held),
    rules.HOST_DIRTY: lambda block, _: of_host(block) and block.disk == ABSENT and not block.held[HOST],
    rules.DISK_VICTIM: disk_victim,
}


@pytest.fixture(scope="module")
def everything():
    """A block for each combination of states and ties, all of them in chains of 16."""
    ties = list(product((0, 1), (False, True), (0, 1), (0, 1), (0, 1)))
    cases = [(*states, *tie) for states in product(State, State, State) for tie in ties]
    cases += [(2, 2, 2, 0, False, 1, 0, 0), (1, 2, 0, 0, False, 0, 1, 0), (0, 0, 2, 0, False, 0, 0, 1)]
    residency = Residency(len(cases))
    index, order = RadixIndex(1, residency), LRU(residency)
    for start in range(0, len(cases), 16):
        tokens = np.arange(start, min(start + 16, len(cases)), dtype=np.int32)
        order.touch(index.insert(tokens))
    for block, (device, host, disk, leases, computing, *held) in enumerate(cases):
        residency.state[:, block] = device, host, disk
        residency.leases[block], residency.computing[block] = leases, computing
        residency.held[:, block] = held
        residency.readers[:, block] = np.array([device, host, disk]) == PRESENT if block % 5 == 0 else 0
    return residency, order, [Block(residency, block) for block in range(len(cases))]


@pytest.mark.parametrize("has_host", [True, False])
@pytest.mark.parametrize("rule", MEANINGS)
def test_a_rule_holds_of_the_blocks_that_it_means_however_it_is_asked(everything, rule, has_host):
    residency, order, blocks = everything
    eligible = Eligible(rule, residency, SlotTable(int(has_host)))
    expected = [bool(MEANINGS[rule](block, has_host)) for block in blocks]
    assert any(expected)
    assert rule == rules.EVERY_BLOCK or not all(expected)
    ids = np.arange(len(blocks))
    assert eligible(ids).tolist() == expected
    assert [eligible.of(block) for block in ids.tolist()] == expected
    in_order = [
        block for start in range(0, len(blocks), 16) for block in ids[start : start + 16][::-1].tolist()
    ]
    victims = [block for block in in_order if expected[block]]
    for k in (1, 7, len(victims), len(blocks)):
        view = order.view(eligible)
        assert view.peek(k).tolist() == victims[:k]
        assert view.first() == victims[0]


def test_a_view_goes_back_only_to_what_it_may_see(everything):
    """With a rule as with a part."""
    residency, order, blocks = everything
    eligible = Eligible(rules.HOST_DIRTY, residency, SlotTable(1))
    views = order.view(eligible), order.view(Part(eligible, Ends()))
    first, second = views[0].peek(2).tolist()
    residency.readers[HOST, first] += 1
    assert [view.first() for view in views] == [second, second]
    for view in views:
        view.rewind(np.arange(len(blocks)))
        view.check()
    residency.readers[HOST, first] -= 1
    for view in views:
        assert view.first() == second, "nobody has told it"
        view.rewind(np.array([second, first]))
        assert view.first() == first


def test_views_that_are_set_back_together_stand_where_each_alone_would(everything):
    residency, order, blocks = everything
    host = SlotTable(1)
    pairs = [[order.view(Eligible(rule, residency, host)) for rule in MEANINGS] for _ in range(2)]
    together = SeenBy(pairs[0])
    rng = np.random.default_rng(3)
    for _ in range(20):
        ids = rng.permutation(len(blocks))[: rng.integers(len(blocks))]
        residency.readers[:, ids] ^= 1  # some are seen no more, and some again
        seen = [[view.first() for view in views] for views in pairs]
        assert seen[0] == seen[1]
        ids = rng.permutation(len(blocks))[:9]
        together.rewind(ids)
        for view in pairs[1]:
            view.rewind(ids)
        assert [view.first() for view in pairs[0]] == [view.first() for view in pairs[1]]
        SeenBy([]).rewind(ids)


class Ends:
    until = 0


def plainly(order, part, k):
    """The first `k` blocks of a part, found among all that there are."""
    ids = np.concatenate([each[part(each)] for each in order.upwards(0, NO_BLOCK, 64)])
    return ids[:k].tolist()


def part_rows(residency):
    """Owners, stems, ranks and other uses for `everything`; what leads to a block of an owner's keeps to what a path may have."""
    rng = np.random.default_rng(8)
    order, num = LRU(residency), int(residency.live.sum())
    chains = [np.arange(start, min(start + 16, num)) for start in range(0, num, 16)]
    for chain in chains:
        public = rng.integers(len(chain) + 1)
        residency.owner[chain] = np.where(np.arange(len(chain)) < public, 0, rng.integers(1, 4))
        residency.stems[chain] = (np.arange(len(chain)) < public) & (public < len(chain))
        residency.rank[chain] = np.sort(rng.integers(-1, 2, len(chain)))[::-1]
    for _ in range(4 * len(chains)):
        chain = chains[rng.integers(len(chains))]
        order.touch(chain[: rng.integers(1, len(chain) + 1)])
    return order


@pytest.mark.parametrize("until", [0, 300])
@pytest.mark.parametrize("rule", [rules.DEVICE_VICTIM, rules.HOST_CLEAN, rules.DISK_VICTIM])
def test_a_part_is_what_meets_a_rule_and_is_an_owners_or_of_a_rank(everything, rule, until):
    """However it is asked, and wherever a view of it stands."""
    residency, _, blocks = everything
    residency.stamp[:] = 0
    order, ends, rng = part_rows(residency), Ends(), np.random.default_rng(9)
    ends.until, eligible = until, Eligible(rule, residency, SlotTable(1))
    ids = np.arange(len(blocks))
    met = eligible(ids).tolist()
    for owner, rank in product((-1, 0, 1, 3), (2, -1, 0, 1)):
        part = Part(eligible, ends, owner, rank)
        expected = []
        for block in ids.tolist():
            is_high = residency.rank[block] == 1 and residency.stamp[block] > until
            now = 1 if is_high else min(0, residency.rank[block])
            mine = owner == -1 or residency.owner[block] == owner
            is_stem = owner == 0 and residency.stems[block] != 0
            expected.append(met[block] and mine and not is_stem and rank in (2, now))
        assert part(ids).tolist() == expected
        view = order.view(part)
        for k in (1, 5, len(blocks), 3):
            assert view.peek(k).tolist() == plainly(order, part, k)
        for _ in range(5):
            some = rng.permutation(ids)[:40]
            residency.readers[:, some] ^= 1  # some are seen no more, and some again
            view.rewind(some)
            view.check()
            assert [view.first()] == (plainly(order, part, 1) or [NO_BLOCK])
            assert view.peek(4).tolist() == plainly(order, part, 4)
        met = eligible(ids).tolist()
