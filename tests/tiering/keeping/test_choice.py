"""What `chosen` answers where the best choice can be worked out by hand."""

import numpy as np
import pytest

from tiering.keeping.choice import chosen
from tiering.keeping.lifetimes import AGES, Curves

_LONG = 1 << 30


def _curves(*waits: float, shares: tuple[float, ...] = (0.5, 0.5)) -> Curves:
    """Classes of which every block is used again after so many accesses; a negative wait: half of them, the rest never."""
    reused = np.array([np.where(abs(wait) <= AGES, 1.0 if wait > 0 else 0.5, 0.0) for wait in waits])
    steps = (1 - np.concatenate([np.zeros((len(waits), 1)), reused[:, :-1]], axis=1)) * np.diff(
        AGES, prepend=0.0
    )
    return Curves(share=np.array(shares), reused=reused, held=steps.cumsum(axis=1))


def test_all_is_kept_where_all_fits():
    curves = _curves(100.0, 200.0)
    assert chosen(curves, 10**9, until=1000, gain=0.0) is None


def test_nothing_is_chosen_before_an_age_was_seen():
    assert chosen(_curves(100.0, 200.0), 10, until=10, gain=0.0) is None


def test_what_is_used_again_is_kept_and_what_is_not_is_not():
    curves = _curves(4000.0, 1e12)
    shares = chosen(curves, 2500, until=_LONG, gain=0.02)
    assert shares is not None
    assert shares[0] == 1
    assert shares[1] < 0.3, "only what is left"


def test_of_one_class_a_part_is_kept_for_long_enough():
    """All of it would be dropped just before it is used: every second one has twice the time."""
    curves = _curves(4000.0, shares=(1.0,))
    shares = chosen(curves, 2000, until=_LONG, gain=0.02)
    assert shares is not None
    assert shares[0] == pytest.approx(0.5, abs=0.1)


def test_the_class_that_waits_less_is_kept_of_two_that_are_used_again():
    shares = chosen(_curves(1000.0, 8000.0), 600, until=_LONG, gain=0.02)
    assert shares is not None
    assert shares[0] == 1
    assert shares[1] < 0.2


def test_classes_that_are_alike_are_not_told_apart():
    """With the same curve that falls evenly there is nothing to gain by keeping fewer."""
    reused = np.tile(1 - np.exp(-AGES / 5000), (2, 1))
    held = np.tile(5000 * (1 - np.exp(-AGES / 5000)), (2, 1))
    curves = Curves(share=np.array([0.5, 0.5]), reused=reused, held=held)
    assert chosen(curves, 2000, until=_LONG, gain=0.02) is None
