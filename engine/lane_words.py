"""Single numbers of arrays of float32, or of bfloat16 as words, for code that numba compiles."""

from typing import Any

import numpy as np
from numba import njit

from .lane_vectors import is_bfloat16
from .waiting import COMPILED


@njit(**COMPILED)
def number(words: Any, at: Any) -> Any:
    """A number of an array, as float32."""
    if is_bfloat16(words):
        return np.uint32(np.uint32(words[at]) << np.uint32(16)).view(np.float32)
    return np.float32(words[at])


@njit(**COMPILED)
def put(words: Any, at: Any, one: Any) -> None:
    """A number into an array, rounded to the nearest."""
    if is_bfloat16(words):
        bits = np.float32(one).view(np.uint32)
        words[at] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    else:
        words[at] = one
