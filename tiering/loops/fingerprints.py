"""XXH3 of blocks of tokens, chained: see tiering.fingerprints.

Of at most PIECE tokens, 240 bytes, the algorithm is a few products, which `xxhash` takes longer to be called for. A larger block is hashed piece by
piece, each with the hash of the one before as its seed.
(XXH3: Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md.)
"""

from typing import Any, Final

import numpy as np
from numba import njit

from kvstore.instructions import XXH3_SECRET
from tiering.loops.states import INSIDE, NO_BLOCK

PIECE: Final = 60

_U64: Final = np.uint64
_HALF: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)
_BYTES: Final = np.uint64(0x00FF00FF)
_PRIME_1: Final = np.uint64(0x9E3779B185EBCA87)
_PRIME_MIX: Final = np.uint64(0x9FB21C651E98DF25)
_PRIME_END: Final = np.uint64(0x165667919E3779F9)
_SECRET: Final = np.lib.stride_tricks.sliding_window_view(XXH3_SECRET, 8).copy().view("<u8").ravel()
"""The eight bytes that begin at each byte of the algorithm's secret."""


@njit(**INSIDE)
def _fold(one: Any, other: Any) -> Any:
    """The two halves of a product of 128 bits, by exclusive or."""
    low, high, other_low, other_high = one & _LOW, one >> _HALF, other & _LOW, other >> _HALF
    inner, outer = high * other_low, low * other_high
    cross = (low * other_low >> _HALF) + (inner & _LOW) + outer
    return (high * other_high + (inner >> _HALF) + (cross >> _HALF)) ^ (one * other)


@njit(**INSIDE)
def _word(tokens: Any, at: Any) -> Any:
    """Two tokens as one number."""
    return _U64(np.uint32(tokens[at])) | _U64(np.uint32(tokens[at + 1])) << _HALF


@njit(**INSIDE)
def _mix(tokens: Any, at: Any, secret: Any, seed: Any) -> Any:
    """Of four tokens."""
    one = _word(tokens, at) ^ (_SECRET[secret] + seed)
    return _fold(one, _word(tokens, at + 2) ^ (_SECRET[secret + 8] - seed))


@njit(**INSIDE)
def _spread(number: Any) -> Any:
    number = (number ^ (number >> _U64(37))) * _PRIME_END
    return number ^ (number >> _HALF)


@njit(**INSIDE)
def _swapped(number: Any) -> Any:
    """The bytes of 32 bits, back to front."""
    number = ((number >> _U64(8)) & _BYTES) | ((number & _BYTES) << _U64(8))
    return (number >> _U64(16) | number << _U64(16)) & _LOW


@njit(**INSIDE)
def _turned(number: Any, num_bits: int) -> Any:
    return number << _U64(num_bits) | number >> _U64(64 - num_bits)


@njit(**INSIDE)
def _of_few(tokens: Any, start: int, num: int, seed: Any) -> Any:
    """Of one to four tokens."""
    num_bytes = _U64(4 * num)
    if num <= 2:
        seed ^= _swapped(seed & _LOW) << _HALF
        first, last = _U64(np.uint32(tokens[start])), _U64(np.uint32(tokens[start + num - 1]))
        keyed = (last + (first << _HALF)) ^ ((_SECRET[8] ^ _SECRET[16]) - seed)
        keyed ^= _turned(keyed, 49) ^ _turned(keyed, 24)
        keyed *= _PRIME_MIX
        keyed ^= (keyed >> _U64(35)) + num_bytes
        keyed *= _PRIME_MIX
        return keyed ^ (keyed >> _U64(28))
    low = _word(tokens, start) ^ ((_SECRET[24] ^ _SECRET[32]) + seed)
    high = _word(tokens, start + num - 2) ^ ((_SECRET[40] ^ _SECRET[48]) - seed)
    swapped = _swapped(low & _LOW) << _HALF | _swapped(low >> _HALF)
    return _spread(num_bytes + swapped + high + _fold(low, high))


@njit(**INSIDE)
def _xxh3(tokens: Any, start: int, num: int, seed: Any) -> Any:
    """Of at most PIECE tokens."""
    if num <= 4:
        return _of_few(tokens, start, num, seed)
    total, end = _U64(4 * num) * _PRIME_1, start + num
    if num <= 32:
        for pair in range((num - 1) // 8 + 1):  # from both ends
            total += _mix(tokens, start + 4 * pair, 32 * pair, seed)
            total += _mix(tokens, end - 4 * pair - 4, 32 * pair + 16, seed)
        return _spread(total)
    for step in range(8):
        total += _mix(tokens, start + 4 * step, 16 * step, seed)
    total = _spread(total)
    for step in range(8, num // 4):
        total += _mix(tokens, start + 4 * step, 16 * (step - 8) + 3, seed)
    return _spread(total + _mix(tokens, end - 4, 119, seed))


@njit(**INSIDE)
def _next(tokens: Any, start: int, block_tokens: int, before: Any) -> Any:
    for at in range(0, block_tokens, PIECE):
        before = _xxh3(tokens, start + at, min(PIECE, block_tokens - at), before)
    return before


def chain(tokens: Any, block_tokens: int, found: Any) -> None:
    """The fingerprints of blocks behind `found[0]`, that of what leads to them, into what follows that."""
    for at in range(len(found) - 1):
        found[at + 1] = _next(tokens, at * block_tokens, block_tokens, found[at])


def name_blocks(edges: Any, block_tokens: int, parent: Any, seed: Any, fingerprint: Any, ids: Any) -> None:
    """The same of blocks, each after its parent, by the tokens that were laid for them. `seed[0]` leads to first blocks."""
    for at in range(len(ids)):
        block = ids[at]
        above = parent[block]
        before = seed[0] if above == NO_BLOCK else fingerprint[above]
        fingerprint[block] = _next(edges, block * block_tokens, block_tokens, before)
