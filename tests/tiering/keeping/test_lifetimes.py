"""Curves are what was seen of blocks that were used again, lost sight of, or wait still."""

import numpy as np
import pytest

from tiering.keeping.lifetimes import AGES, Lifetimes

_NONE = np.empty(0, dtype=np.int64)
_FAMILIES = np.array([0, 0, 1])


def _lifetimes(doubt: float = 1e-9) -> Lifetimes:
    return Lifetimes(_FAMILIES, doubt=doubt, half_life=1e12)


def _at(curves, kind: int, age: float) -> float:
    return float(curves.reused[kind, AGES.searchsorted(age)])


def test_a_share_that_was_used_again_is_that_share():
    lifetimes = _lifetimes()
    lifetimes.enter(0, 100)
    lifetimes.use(np.zeros(30, dtype=np.int64), np.full(30, 1000))
    lifetimes.fade(5000)
    curves = lifetimes.curves(np.zeros(70, dtype=np.int16), np.zeros(70, dtype=np.int64), 1.0)
    assert _at(curves, 0, 500) == 0
    assert _at(curves, 0, 4000) == pytest.approx(0.3)
    assert curves.share.tolist() == [1, 0, 0]
    lifetimes.check()


def test_blocks_that_were_lost_sight_of_early_say_nothing_of_later():
    """Half of the blocks are forgotten before any is used again, so half the uses go unseen: the share is the same."""
    lifetimes = _lifetimes()
    lifetimes.enter(0, 100)
    lifetimes.lose(np.zeros(50, dtype=np.int64), np.full(50, 100))
    lifetimes.use(np.zeros(15, dtype=np.int64), np.full(15, 1000))
    lifetimes.fade(5000)
    curves = lifetimes.curves(np.zeros(35, dtype=np.int16), np.zeros(35, dtype=np.int64), 1.0)
    assert _at(curves, 0, 4000) == pytest.approx(0.3)


def test_blocks_are_held_until_they_are_used_or_dropped():
    lifetimes = _lifetimes()
    lifetimes.enter(0, 10)
    lifetimes.use(np.zeros(10, dtype=np.int64), np.full(10, 1000))
    lifetimes.fade(5000)
    held = lifetimes.curves(_NONE.astype(np.int16), _NONE, 1.0).held[0]
    assert held[AGES.searchsorted(512)] == pytest.approx(512, rel=0.01)
    assert held[-1] == pytest.approx(1000, rel=0.2)


def test_a_class_of_which_nothing_is_known_is_taken_for_its_family():
    lifetimes = _lifetimes(doubt=100.0)
    lifetimes.use(np.zeros(9000, dtype=np.int64), np.full(9000, 1000))
    lifetimes.use(np.full(10, 2), np.full(10, 1000))
    lifetimes.lose(np.full(9000, 2), np.full(9000, 5000))
    lifetimes.fade(5000)
    curves = lifetimes.curves(_NONE.astype(np.int16), _NONE, 1.0)
    assert _at(curves, 1, 4000) > 0.9
    assert _at(curves, 2, 4000) < 0.1


def test_what_was_seen_long_ago_counts_less():
    lifetimes = Lifetimes(_FAMILIES, doubt=1e-9, half_life=1000.0)
    lifetimes.use(np.zeros(1000, dtype=np.int64), np.full(1000, 100))
    lifetimes.fade(20_000)
    lifetimes.lose(np.zeros(100, dtype=np.int64), np.full(100, 10_000))
    assert _at(lifetimes.curves(_NONE.astype(np.int16), _NONE, 1.0), 0, 500) < 0.01
