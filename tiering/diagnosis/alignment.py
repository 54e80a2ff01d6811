"""Where two sequences of tokens part, and where they meet again. Linear in their lengths, but for sorting windows.

asked   . . . . . | a a a a a | . . . . . . . | a a | . . .
cached  . . . . . | c c       | . . . . . . . | c   | . . .
                  ^ stretch   ^ same_tokens   ^ the next stretch
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]

MEETING_TOKENS = 8
"""So many equal tokens in a row are a meeting, fewer are chance; at the ends of both sequences any number is."""

_FIRST_WINDOW_TOKENS = 64
_WINDOW_GROWTH = 8
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Asked tokens [asked_start, asked_end) stand where cached ones [cached_start, cached_end) do; either may be empty.

    same_tokens: how many tokens behind them are equal, up to the next stretch or an end.
    """

    asked_start: int
    asked_end: int
    cached_start: int
    cached_end: int
    same_tokens: int


def as_ids(tokens: ArrayLike) -> Ids:
    """Token ids as int64, which holds every id and its differences."""
    return np.ascontiguousarray(np.asarray(tokens).reshape(-1), dtype=np.int64)


def first_difference(asked: ArrayLike, cached: ArrayLike) -> int:
    """How many tokens both begin with: the position of the first difference, or the length of the shorter one."""
    return _same_run(as_ids(asked), as_ids(cached), 0, 0)


def stretches(asked: ArrayLike, cached: ArrayLike, limit: int | None = None) -> Iterator[Stretch]:
    """All stretches in which they differ, in order, at most `limit`.

    Nothing is a stretch where one sequence only goes on behind the other's end. The cheapest meeting is taken each
    time, as `diff` does it: what was moved counts as gone in one place and new in another.
    """
    ours, theirs = as_ids(asked), as_ids(cached)
    at = at_cached = _same_run(ours, theirs, 0, 0)
    found = 0
    while at < len(ours) and at_cached < len(theirs) and (limit is None or found < limit):
        met = _meeting(ours[at:], theirs[at_cached:])
        end, end_cached = (len(ours), len(theirs)) if met is None else (at + met[0], at_cached + met[1])
        same = _same_run(ours, theirs, end, end_cached)
        yield Stretch(
            asked_start=at, asked_end=end, cached_start=at_cached, cached_end=end_cached, same_tokens=same
        )
        found += 1
        at, at_cached = end + same, end_cached + same


def same_characters(one: str, other: str) -> int:
    """How many characters both texts begin with."""
    length, done, size = min(len(one), len(other)), 0, 64
    while done < length and one[done : done + size] == other[done : done + size]:
        done, size = done + size, size * 2
    rest = zip(one[done : done + size], other[done : done + size], strict=False)
    return min(length, done + next((at for at, pair in enumerate(rest) if pair[0] != pair[1]), size))


def holds(haystack: Ids, needle: Ids) -> int | None:
    """Where `needle` begins in `haystack` for the first time; None if nowhere, or if it is empty."""
    size = len(needle)
    if not size or size > len(haystack):
        return None
    places = np.flatnonzero(_grams(haystack, size) == _grams(needle, size)[0])
    for place in places:
        if np.array_equal(haystack[place : place + size], needle):
            return int(place)
    return None


def _same_run(ours: Ids, theirs: Ids, start: int, start_theirs: int) -> int:
    """How many tokens are equal from there on. Looks at twice as many each time, so that short runs cost little."""
    length = min(len(ours) - start, len(theirs) - start_theirs)
    done, size = 0, _FIRST_WINDOW_TOKENS
    while done < length:
        size = min(size, length - done)
        a, b = start + done, start_theirs + done
        differ = np.flatnonzero(ours[a : a + size] != theirs[b : b + size])
        if len(differ):
            return done + int(differ[0])
        done, size = done + size, size * 2
    return length


def _meeting(ours: Ids, theirs: Ids) -> tuple[int, int] | None:
    """The meeting that leaves out the fewest tokens of both together; at their ends, what both end with."""
    window, longest = _FIRST_WINDOW_TOKENS, max(len(ours), len(theirs))
    while True:
        found = _meeting_within(ours[:window], theirs[:window])
        if found is not None:
            return found
        if window >= longest:
            break
        window *= _WINDOW_GROWTH
    same = _same_run(ours[::-1], theirs[::-1], 0, 0)
    return (len(ours) - same, len(theirs) - same) if same else None


def _meeting_within(ours: Ids, theirs: Ids) -> tuple[int, int] | None:
    if min(len(ours), len(theirs)) < MEETING_TOKENS:
        return None
    _, at, at_theirs = np.intersect1d(
        _grams(ours, MEETING_TOKENS), _grams(theirs, MEETING_TOKENS), return_indices=True
    )
    for one in np.argsort(at + at_theirs, kind="stable"):
        a, b = int(at[one]), int(at_theirs[one])
        if np.array_equal(ours[a : a + MEETING_TOKENS], theirs[b : b + MEETING_TOKENS]):
            return a, b  # the hash was right, as it nearly always is
    return None


def _grams(ids: Ids, size: int) -> NDArray[np.uint64]:
    """A hash of each run of `size` tokens, modulo 2**64."""
    values: NDArray[Any] = ids.astype(np.uint64)
    hashes = np.zeros(len(ids) - size + 1, dtype=np.uint64)
    for step in range(size):
        hashes *= _BASE
        hashes += values[step : step + len(hashes)]
    return hashes
