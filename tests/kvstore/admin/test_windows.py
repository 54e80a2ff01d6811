"""Growth over time windows, in exact figures."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.admin.windows import Windows


def filled(samples) -> Windows:
    windows = Windows(("asked", "cached"))
    for at_s, asked, cached in samples:
        windows.add(at_s, {"asked": asked, "cached": cached}, epoch_s=1000.0 + at_s)
    return windows


def test_there_is_no_growth_without_two_samples():
    assert filled([]).growth(60) is None
    assert filled([(0.0, 5, 5)]).growth(60) is None


def test_what_was_before_the_first_sample_is_not_growth():
    growth = filled([(0.0, 100, 50), (1.0, 103, 51)]).growth(60)
    assert (growth.covered_s, growth.counts) == (1.0, {"asked": 3.0, "cached": 1.0})


def test_a_window_begins_at_its_first_second():
    windows = filled([(float(second), second * 10, second) for second in range(601)])
    for seconds in (1, 60, 300):
        growth = windows.growth(seconds)
        assert (growth.covered_s, growth.counts["asked"], growth.counts["cached"]) == (
            seconds,
            seconds * 10,
            seconds,
        )
    assert windows.growth(3600).covered_s == 600, "as far as samples reach"


def test_samples_that_come_late_count_where_they_are():
    windows = filled([(second * 1.01, second, 0) for second in range(200)])
    assert windows.growth(60).covered_s == pytest.approx(59 * 1.01)
    assert windows.growth(60).counts["asked"] == 59


def test_a_count_that_begins_anew_goes_on_growing():
    growth = filled([(0.0, 100, 10), (1.0, 110, 11), (2.0, 4, 1), (3.0, 5, 1)]).growth(60)
    assert growth.counts == {"asked": 10 + 4 + 1, "cached": 1 + 1 + 0}


def test_a_count_that_appears_later_was_0():
    windows = Windows(("asked",))
    windows.add(0.0, {}, epoch_s=0.0)
    windows.add(1.0, {"asked": 7}, epoch_s=1.0)
    assert windows.growth(60).counts == {"asked": 7.0}


def test_a_gap_is_not_part_of_a_window_that_is_shorter():
    """What grew meanwhile grew at an unknown time: a minute does not get an hour's requests."""
    windows = filled([(0.0, 0, 0), (1.0, 1, 0), (1001.0, 5001, 0)])
    assert windows.growth(60) is None
    assert windows.growth(3600).counts["asked"] == 5001
    windows.add(1002.0, {"asked": 5003}, epoch_s=0.0)
    assert (windows.growth(60).covered_s, windows.growth(60).counts["asked"]) == (1.0, 2.0)


def test_the_ring_keeps_an_hour():
    windows = filled([(float(second), second, 0) for second in range(5000)])
    assert windows.growth(3600).covered_s == 3600
    assert len(windows._samples) <= 3602
    assert len(list(windows.history())) == 720


def test_the_history_has_a_point_each_five_seconds():
    points = list(filled([(float(second), second * 10, second) for second in range(21)]).history())
    assert [point.epoch_s for point in points] == [1005.0, 1010.0, 1015.0, 1020.0]
    assert all(point.counts == {"asked": 50.0, "cached": 5.0} for point in points)


def test_a_point_after_a_gap_covers_it():
    points = list(filled([(0.0, 0, 0), (5.0, 5, 0), (65.0, 605, 1), (70.0, 606, 1)]).history())
    assert [(point.epoch_s, point.counts["asked"]) for point in points] == [
        (1005.0, 5.0),
        (1065.0, 600.0),
        (1070.0, 1.0),
    ]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=20), st.sampled_from([0, 70, 2900])
)
def test_what_stays_is_as_if_it_had_been_sampled_all_the_time(steps, last_s):
    """Of any times of rest: windows and history are those of a sample a second."""
    sampled, rested, at_s, asked = filled([(0.0, 0, 0)]), filled([(0.0, 0, 0)]), 0, 0
    for seconds, more in [*steps, (last_s, 0)]:
        for _ in range(seconds):
            at_s += 1
            sampled.add(float(at_s), {"asked": asked}, epoch_s=at_s)
        rested.stay(at_s + 0.5, epoch_s=at_s + 0.5)
        at_s, asked = at_s + 1, asked + more
        for windows in (sampled, rested):
            windows.add(float(at_s), {"asked": asked}, epoch_s=at_s)
    assert [sampled.growth(seconds) for seconds in (5, 60, 3600)] == [
        rested.growth(seconds) for seconds in (5, 60, 3600)
    ]
    assert list(sampled.history()) == list(rested.history())


def test_after_a_rest_of_days_an_hour_is_made_up():
    windows = filled([(0.0, 0, 0), (1.0, 5, 0)])
    windows.stay(1e6, epoch_s=1e6)
    assert windows.growth(3600).counts["asked"] == 0
    assert windows.growth(3600).covered_s == pytest.approx(3600, abs=1)
    assert len(list(windows.history())) == 720
    assert len(windows._samples) <= 3602


steps = st.lists(st.tuples(st.floats(0.5, 400.0), st.integers(0, 1000)), min_size=1, max_size=60)


@given(steps)
def test_growth_is_what_was_added_within_the_window(steps):
    """Against sums over a list, whatever the distances between samples."""
    at_s, total, samples = 0.0, 0, [(0.0, 0)]
    windows = filled([(0.0, 0, 0)])
    for distance_s, more in steps:
        at_s, total = at_s + distance_s, total + more
        samples.append((at_s, total))
        windows.add(at_s, {"asked": total}, epoch_s=at_s)
    for seconds in (60, 300, 3600):
        inside = [sample for sample in samples if sample[0] >= at_s - seconds - 0.5]
        growth = windows.growth(seconds)
        if len(inside) < 2:
            assert growth is None
        else:
            assert growth.counts["asked"] == total - inside[0][1]
            assert growth.covered_s == pytest.approx(at_s - inside[0][0])
