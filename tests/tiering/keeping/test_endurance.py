"""What may be written in a day, and when the rest of it."""

import pytest

from tiering.keeping.endurance import Endurance


def test_what_may_be_written_comes_back_as_time_goes_by():
    endurance = Endurance(24 * 300.0)  # 300 in an hour
    assert endurance.left_bytes(5.0) == 300
    endurance.write(250)
    assert endurance.left_bytes(5.0) == 50
    assert endurance.left_bytes(5.0 + 1200.0) == pytest.approx(150)
    assert endurance.left_bytes(1e6) == 300, "no more than an hour's worth is saved up"
    endurance.check()


def test_what_was_written_unasked_is_owed_and_what_was_not_after_all_is_given_back():
    endurance = Endurance(24 * 300.0)
    endurance.write(900)
    assert endurance.left_bytes(0.0) == -600
    endurance.write(-300)
    assert endurance.left_bytes(0.0) == -300
    assert endurance.left_bytes(3600.0) == pytest.approx(0)
    endurance.write(-(10**9))
    assert endurance.left_bytes(3600.0) == 300
    endurance.check()


def test_a_slow_rate_lets_through_one_block_in_the_end():
    """However little an hour's worth is: else nothing would ever be written."""
    endurance = Endurance(24.0, least_bytes=100)
    endurance.write(100)
    assert endurance.left_bytes(0.0) == 0
    assert endurance.left_bytes(99 * 3600.0) == pytest.approx(99)
    assert endurance.left_bytes(101 * 3600.0) == 100


def test_nothing_in_a_day_is_no_limit_that_can_be_kept():
    with pytest.raises(ValueError, match="above 0, not 0"):
        Endurance(0)
