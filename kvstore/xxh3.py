"""XXH3-64 with seed 0, to be compiled: of bytes that lie together, or by sums that somebody else adds to as bytes come."""

from typing import Any, Final

import numpy as np
from numba import njit, types

from kvstore.instructions import XXH3_SECRET, add_block, add_stripe, folded_product, load8
from kvstore.scratch import on_stack

_COMPILED: Final[dict[str, Any]] = {"_nrt": False}
"""Without numba's memory: see kvstore.scratch."""
_U64: Final = np.uint64

eight_sums: Final = on_stack(types.uint64, 8)

# XXH3: the first sums, the keys with which they are mixed after each 1,024 bytes, and those of the end.
FIRST_SUMS: Final = np.array(
    [
        0xC2B2AE3D,
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x85EBCA77,
        0x27D4EB2F165667C5,
        0x9E3779B1,
    ],
    np.uint64,
)
_MIXING: Final = XXH3_SECRET[128:].view(np.uint64).copy()
_MERGING: Final = XXH3_SECRET[11:75].copy().view(np.uint64)
_PRIME_32: Final = np.uint64(0x9E3779B1)
_PRIME_64: Final = np.uint64(0x9E3779B185EBCA87)
_PRIME_END: Final = np.uint64(0x165667919E3779F9)
_SHORT_BYTES: Final = 240
BLOCK_BYTES: Final = 1024
"""After so many the sums are mixed."""


@njit(**_COMPILED)
def xxh3(data: Any) -> Any:
    """XXH3-64 with seed 0 of more than 128 bytes."""
    if data.size <= _SHORT_BYTES:
        return _xxh3_short(data)
    sums = eight_sums()
    for lane in range(8):
        sums[lane] = FIRST_SUMS[lane]
    at, keys, begin = (
        np.int64(sums.ctypes.data),
        np.int64(XXH3_SECRET.ctypes.data),
        np.int64(data.ctypes.data),
    )
    for block in range((data.size - 1) // BLOCK_BYTES):
        add_block(at, begin + BLOCK_BYTES * block, keys)
        mix(sums)
    return ended(sums, begin, data.size)


@njit(**_COMPILED)
def mix(sums: Any) -> None:
    """What follows each 1,024 bytes."""
    for lane in range(8):
        number = sums[lane]
        sums[lane] = ((number ^ (number >> _U64(47))) ^ _MIXING[lane]) * _PRIME_32


@njit(**_COMPILED)
def ended(sums: Any, begin: Any, num_bytes: Any) -> Any:
    """XXH3 of so many bytes at an address, when the sums have all but the last 1,024 or fewer of them."""
    at, keys = np.int64(sums.ctypes.data), np.int64(XXH3_SECRET.ctypes.data)
    done = (num_bytes - 1) // BLOCK_BYTES * BLOCK_BYTES
    for stripe in range((num_bytes - 1 - done) // 64):
        add_stripe(at, begin + done + 64 * stripe, keys + 8 * stripe)
    add_stripe(at, begin + num_bytes - 64, keys + 121)
    number = _U64(num_bytes) * _PRIME_64
    for pair in range(0, 8, 2):
        number += folded_product(sums[pair] ^ _MERGING[pair], sums[pair + 1] ^ _MERGING[pair + 1])
    return _spread(number)


@njit(**_COMPILED)
def _xxh3_short(data: Any) -> Any:
    secret, begin = np.int64(XXH3_SECRET.ctypes.data), np.int64(data.ctypes.data)
    number = _U64(data.size) * _PRIME_64
    for at in range(0, 128, 16):
        number += _mixed(begin + at, secret + at)
    number = _spread(number)
    for at in range(128, data.size // 16 * 16, 16):
        number += _mixed(begin + at, secret + at - 125)
    return _spread(number + _mixed(begin + data.size - 16, secret + 119))


@njit(**_COMPILED)
def _mixed(begin: Any, secret: Any) -> Any:
    return folded_product(load8(begin) ^ load8(secret), load8(begin + 8) ^ load8(secret + 8))


@njit(**_COMPILED)
def _spread(number: Any) -> Any:
    number = (number ^ (number >> _U64(37))) * _PRIME_END
    return number ^ (number >> _U64(32))
