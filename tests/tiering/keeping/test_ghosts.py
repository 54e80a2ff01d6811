"""What the table of ghosts answers is what was put in last, or nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tiering.keeping.ghosts import Ghosts


def _fingerprints(blocks):
    return np.array(blocks, dtype=np.uint64)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True), max_size=30))
def test_a_block_that_is_known_is_known_as_it_was_used_last(requests):
    """Against a dict, in a table so small that most are forgotten."""
    ghosts, plain = Ghosts(16), {}
    for now, blocks in enumerate(requests, 1):
        places = ghosts.places(_fingerprints(blocks))
        seen = ghosts.seen(_fingerprints(blocks), places)
        for at, block in enumerate(blocks):
            if seen.known[at]:
                row = (seen.last[at], seen.kind[at], seen.turn[at], seen.to_end[at])
                assert row == plain[block]
        kinds = np.full(len(blocks), now % 7, dtype=np.int16)
        ghosts.remember(_fingerprints(blocks), places, kinds=kinds, last=now, turn=now % 4, again=seen.known)
        plain |= {block: (now, now % 7, now % 4, len(blocks) - 1 - at) for at, block in enumerate(blocks)}
        assert ghosts.seen(_fingerprints(blocks), places).known[-1], "the last of a request stays"
        ghosts.check(now)


def test_where_nobody_is_nothing_is_known():
    ghosts = Ghosts(1024)
    blocks = _fingerprints(range(100))
    assert not ghosts.seen(blocks, ghosts.places(blocks)).known.any()
    assert not ghosts.taken(ghosts.places(blocks)).any()
    assert len(ghosts.sample(1 << 16)[0]) == 0


def test_few_blocks_do_not_push_each_other_out():
    """Ids that count up, as a simulator has, are spread as evenly as hashes."""
    ghosts = Ghosts(1 << 14)
    blocks = _fingerprints(range(1024))
    places = ghosts.places(blocks)
    none = np.zeros(1024, dtype=np.bool_)
    ghosts.remember(blocks, places, kinds=np.zeros(1024, dtype=np.int16), last=1, turn=0, again=none)
    assert ghosts.seen(blocks, places).known.mean() > 0.9
