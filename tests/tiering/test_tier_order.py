"""What lies between the core and a plug-in's order: places that are promised, and may never be given out."""

import pytest

from tests.tiering.small_tiers import model, prompt
from tiering.eviction import Room
from tiering.policies import POLICIES


@pytest.mark.parametrize("policy", POLICIES)
def test_a_place_that_was_promised_keeps_no_idle_block_from_leaving(policy):
    """A request that waits is promised a place below an idle block, and gives up: a reply that grows gets the block's place."""
    tiers = model(device=4, host=4, policy=policy)
    for name in (5, 1):
        tiers.run(prompt(name))
        tiers.settle()
    running = tiers.request(prompt(2), num_blocks=4, chunk_blocks=1)
    assert tiers.try_to_admit(running)
    assert not tiers.try_to_admit(tiers.request(prompt(1, 3)[:-1], num_blocks=2)), (
        "it waits for the place of 5"
    )
    tiers.settle()
    assert tiers.index.grow(running.lease, 3) is Room.NOW
    assert tiers.index.grow(running.lease, 4) is Room.SOON, "that of 1"
    tiers.index.check()
