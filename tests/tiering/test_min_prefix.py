"""What is too short is neither kept nor loaded, and what the device has of it is used all the same."""

import numpy as np

from tests.tiering.small_tiers import lookup, model, on_disk, prompt
from tests.tiering.test_explain import now, of, told
from tiering.residency import Tier


def test_a_short_prompt_is_not_kept_and_that_is_said():
    tiers = model(device=8, min_prefix_tokens=6)
    tiers.run(prompt(1, 2))
    assert tiers.where(prompt(1, 2)) == []
    assert tiers.index.stats()["blocks"] == 0
    again = tiers.run(prompt(1, 2))
    assert told(of(again)) == [("too_short", 2), ("rest", 1)]
    tiers.run(prompt(1, 2, 3))
    assert tiers.where(prompt(1, 2, 3)) == ["D"] * 3


def test_a_short_prompt_finds_what_the_device_has_for_longer_ones():
    tiers = model(device=8, min_prefix_tokens=6)
    tiers.run(prompt(1, 2, 3))
    request = tiers.run(prompt(1, 2))
    assert request.lease.num_cached_blocks == 2


def test_little_of_a_match_is_not_loaded_and_that_is_said():
    tiers = model(device=8, host=8, disk=16, min_prefix_tokens=6)
    on_disk(tiers, 1, 2, 3)
    assert lookup(tiers, 1, 2, 8) == {}, "two blocks are too little to be loaded"
    assert told(now(tiers, prompt(1, 2, 8))) == [("too_short", 2), ("differs", 1), ("rest", 1)]
    assert lookup(tiers, 1, 2, 3) == {"disk": 3}


def test_of_a_short_match_what_the_device_has_is_used():
    tiers = model(device=8, host=8, min_prefix_tokens=6)
    tiers.run(prompt(1, 2, 3))
    tiers.index.sweep(Tier.HOST, then_free=False)
    tiers.settle()
    tiers.index._eviction.evict_device(np.array(tiers.index._match(tiers.request(prompt(1, 2, 3)).array)[1:]))
    assert tiers.where(prompt(1, 2, 3)) == ["DH", "H", "H"]
    assert lookup(tiers, 1, 2) == {"device": 1}
    assert lookup(tiers, 1, 2, 3) == {"device": 1, "host": 2}


def test_a_reply_that_makes_it_long_enough_is_kept_with_its_prompt():
    tiers = model(device=8, min_prefix_tokens=6)
    request = tiers.admit(prompt(1, 2), num_blocks=5)
    tiers.prefill(request)
    assert tiers.where(prompt(1, 2)) == []
    tiers.reply(request, [3])
    assert lookup(tiers, 1, 2) == {"device": 2}
    tiers.release(request)
    tiers.check_rest()


def test_the_length_can_be_changed_while_requests_run():
    tiers = model(device=8)
    tiers.index.change(min_prefix_tokens=6)
    tiers.run(prompt(1, 2))
    assert tiers.where(prompt(1, 2)) == []
    tiers.index.change(min_prefix_tokens=0)
    tiers.run(prompt(1, 2))
    assert tiers.where(prompt(1, 2)) == ["D", "D"]
