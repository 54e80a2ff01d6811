"""What is remembered of blocks that went: the last time of each, for as many as fit, and views that do not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.reasons import MissReason
from tiering import departed as module
from tiering.departed import Departed
from tiering.residency import Tier

REASONS = (MissReason.EVICTED, MissReason.EXPIRED, MissReason.REMOVED)


def fingerprints(*values: int):
    return np.array(values, dtype=np.uint64)


def found(view, *values: int):
    gone = view.find(fingerprints(*values))
    return {
        position: (gone.tiers.item(at), gone.reason(at), gone.times_s.item(at))
        for at, position in enumerate(gone.positions.tolist())
    }


def test_the_last_time_of_a_block_counts():
    departed = Departed()
    departed.note(fingerprints(7, 8), int(Tier.DEVICE), MissReason.EVICTED, 1.0)
    departed.note(fingerprints(8), np.array([2]), MissReason.EXPIRED, 2.0)
    assert found(departed.view(), 5, 8, 7) == {
        1: (Tier.DISK, MissReason.EXPIRED, 2.0),
        2: (Tier.DEVICE, MissReason.EVICTED, 1.0),
    }


def test_a_view_is_of_its_moment():
    departed = Departed()
    departed.note(fingerprints(1), 0, MissReason.EVICTED, 1.0)
    before = departed.view()
    departed.note(fingerprints(2), 0, MissReason.EVICTED, 2.0)
    departed.forget()
    assert set(found(before, 1, 2)) == {0}
    assert found(departed.view(), 1, 2) == {}
    assert len(departed) == 0


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 40), max_size=9), st.sampled_from(REASONS), st.integers(0, 3)),
        max_size=30,
    )
)
def test_against_a_list(notes):
    """As many blocks as fit are remembered, by the last of their notes; more are a chunk at the most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BLOCKS", 4)
        patch.setattr(module, "CHUNKS", 3)
        departed = Departed()
        history = []
        for now_s, (blocks, reason, tier) in enumerate(notes):
            if len(blocks) == 1 and tier:
                departed.note_one(blocks[0], tier, module.REASONS.index(reason), float(now_s))
            else:
                departed.note(fingerprints(*blocks), tier, reason, float(now_s))
            history += [(block, (tier, reason, float(now_s))) for block in blocks]
        assert len(departed) <= 12
        assert len(departed) >= min(len(history), 9)
        kept = dict(history[len(history) - len(departed) :])
        asked = list(range(41))
        assert found(departed.view(), *asked) == kept
