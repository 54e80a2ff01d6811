"""Single numbers of arrays of float32, or of bfloat16 as words, for code that numba compiles."""

from typing import Any

import numpy as np
from numba import njit

from .lane_vectors import is_bfloat16, put_word, word_at
from .waiting import INSIDE


@njit(**INSIDE)
def number(words: Any, at: Any) -> Any:
    """A number of an array, as float32."""
    if is_bfloat16(words):
        return np.uint32(np.uint32(words[at]) << np.uint32(16)).view(np.float32)
    return np.float32(words[at])


@njit(**INSIDE)
def _nearest(one: Any) -> Any:
    """The word of the nearest bfloat16."""
    bits = np.float32(one).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(**INSIDE)
def put(words: Any, at: Any, one: Any) -> None:
    """A number into an array, rounded to the nearest."""
    if is_bfloat16(words):
        words[at] = _nearest(one)
    else:
        words[at] = one


@njit(**INSIDE)
def number_at(words: Any, at: int) -> Any:
    """A number at an address in an array."""
    if is_bfloat16(words):
        return np.uint32(np.uint32(word_at(words, at)) << np.uint32(16)).view(np.float32)
    return np.float32(word_at(words, at))


@njit(**INSIDE)
def put_at(words: Any, at: int, one: Any) -> None:
    """A number to an address in an array, rounded to the nearest."""
    if is_bfloat16(words):
        put_word(words, at, _nearest(one))
    else:
        put_word(words, at, np.float32(one))
