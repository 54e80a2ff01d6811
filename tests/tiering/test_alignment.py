"""Where two sequences part and meet again: against difflib, and in time that grows with their lengths."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.diagnosis.alignment import (
    MEETING_TOKENS,
    as_ids,
    first_difference,
    holds,
    same_characters,
    stretches,
)

few = st.lists(st.integers(0, 3), max_size=60)


@given(few, few)
def test_the_first_difference_is_the_first(ours, theirs):
    at = first_difference(ours, theirs)
    assert ours[:at] == theirs[:at]
    assert at == min(len(ours), len(theirs)) or ours[at] != theirs[at]


@given(few, few)
def test_stretches_and_what_is_the_same_cover_both(ours, theirs):
    at = at_theirs = first_difference(ours, theirs)
    for each in stretches(ours, theirs):
        assert (each.asked_start, each.cached_start) == (at, at_theirs)
        assert ours[at] != theirs[at_theirs]
        end, end_theirs = each.asked_end + each.same_tokens, each.cached_end + each.same_tokens
        assert ours[each.asked_end : end] == theirs[each.cached_end : end_theirs]
        assert max(end - at, end_theirs - at_theirs) > 0
        at, at_theirs = end, end_theirs
    assert at == len(ours) or at_theirs == len(theirs)


def test_a_stretch_ends_at_a_run_of_equal_tokens_that_is_no_chance():
    rest = list(range(100, 150))
    [found] = stretches([1, 2, 3, *rest], [1, 9, 8, 7, 3, *rest])
    assert (found.asked_start, found.asked_end, found.cached_end, found.same_tokens) == (1, 2, 4, 51)
    few = list(range(100, 100 + MEETING_TOKENS - 1))
    [found] = stretches([1, 2, *few, 50, 51], [1, 3, *few, 60, 61])
    assert (found.asked_end, found.same_tokens) == (len(few) + 4, 0)


def test_the_ends_meet_however_short():
    [found] = stretches([1, 2, 9], [1, 3, 4, 9])
    assert (found.asked_end, found.cached_end, found.same_tokens) == (2, 3, 1)


def test_what_only_goes_on_is_no_stretch():
    assert list(stretches([1, 2], [1, 2, 3])) == []
    assert list(stretches([], [1])) == []


def test_an_insertion_far_larger_than_the_first_window():
    rest = list(range(1000, 3000))
    [found] = stretches([1, *rest], [1, *range(5000, 25000), *rest])
    assert (found.asked_end, found.cached_end, found.same_tokens) == (1, 20001, 2000)


@given(few, st.integers(0, 60), st.integers(1, 12))
def test_a_piece_is_found_where_it_first_stands(tokens, start, size):
    piece = tokens[start : start + size]
    found = holds(as_ids(tokens), as_ids(piece))
    places = [at for at in range(len(tokens) - len(piece) + 1) if tokens[at : at + len(piece)] == piece]
    assert found == (places[0] if piece else None)


@given(st.text("ab", max_size=300), st.text("ab", max_size=300), st.text("ab", max_size=300))
def test_common_characters(both, one, other):
    found = same_characters(both + one, both + other)
    assert found >= len(both)
    assert (both + one)[:found] == (both + other)[:found]
    assert (both + one)[found : found + 1] != (both + other)[found : found + 1] or both + one == both + other


@pytest.mark.parametrize("every", [7, 9, 50, 100_000])
def test_long_prompts_take_little_time(every):
    """128k tokens that differ all the time took under a second; quadratic work would take many minutes."""
    ours = np.random.default_rng(0).integers(0, 50_000, 131_072)
    theirs = np.where(np.arange(len(ours)) % every == 0, ours + 1, ours)
    start = time.perf_counter()
    found = list(stretches(ours, theirs))
    assert time.perf_counter() - start < 30
    assert sum(each.same_tokens for each in found) <= len(ours)
    assert len(found) == (1 if every <= MEETING_TOKENS else -(-len(ours) // every))
