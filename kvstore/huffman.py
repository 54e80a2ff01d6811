"""The Huffman code of first bytes: which bits each has, and the tables that the loops of kvstore.loops go by.

A code is said by the length of each byte's bits, 0 where it has none: the bits are then those of RFC 1951, 3.2.2. What has none is
written beside. KV of one model is alike, block by block, once the baseline is subtracted, so a code is made once, and counted
again only now and then; a record says its own all the same. See docs/block-format.md.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import CodecError

MOST_BITS: Final = 11
LENGTHS_BYTES: Final = 128
HEAD_BYTES: Final = 20
"""Of the streams: how many bytes each of four has, and how many exceptions there are."""
EXCEPTION_BYTES: Final = 5
PAIR_ABSENT, PAIR_LENGTH = 1 << 23, 24
"""Of a pair's number: a bit, and where its length begins, behind twice MOST_BITS."""

UNTRIED, PROVEN, BROKEN = range(3)
"""What is said of a payload while several are restored."""

_MOST_AT_ONCE: Final = 6
"""Items that one look into the table gives: with how many they are, and how many bits they take, eight bytes."""
_RARE: Final = 1 << 15
"""A byte that is not one of so many has no code: it would lengthen those of others by more than it takes beside."""
_COUNT_EVERY: Final = 256
"""Blocks."""
_LEAST_GAIN: Final = 0.005
_SUITED: Final = (1.5, 4.0)
"""Bits that a byte takes. Of fewer, zstd makes much less; of more, a look into the table gives so few bytes that zstd is as fast, and it fits
its code to each block.
"""
_MOST_TABLES: Final = 64


@dataclass(frozen=True, eq=False)
class Code:
    """One code."""

    lengths: NDArray[np.uint8]
    """[256], of the bits of each byte."""

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> "Code":
        """The best one for bytes that are found so often, [256]: by package-merge (Larmore and Hirschberg, 1990)."""
        kept = np.where(counts * _RARE >= counts.sum(), counts, 0)
        while np.count_nonzero(kept) < 2:  # a code of one byte would take no bits
            kept[np.flatnonzero(kept == 0)[0]] = 1
        lengths = np.zeros(256, np.uint8)
        single: list[tuple[int, tuple[int, ...]]] = sorted(
            (int(kept[byte]), (int(byte),)) for byte in np.flatnonzero(kept)
        )
        merged = single
        for _ in range(MOST_BITS - 1):
            pairs = zip(merged[::2], merged[1::2], strict=False)
            merged = sorted([*single, *((one[0] + two[0], one[1] + two[1]) for one, two in pairs)])
        for _, held in merged[: 2 * len(single) - 2]:
            np.add.at(lengths, list(held), 1)  # one that it holds twice counts twice
        return cls(lengths)

    @classmethod
    def parse(cls, packed: bytes) -> "Code":
        """Of `packed`. Raises CodecError for what is no code in which every run of bits means something."""
        both = np.frombuffer(packed, np.uint8)
        lengths = np.stack([both & 15, both >> 4], axis=1).reshape(-1)
        used = lengths[lengths > 0].astype(np.int64)
        if (
            lengths.size != 256
            or used.max(initial=0) > MOST_BITS
            or (1 << (MOST_BITS - used)).sum() != 1 << MOST_BITS
        ):
            raise CodecError("the lengths are not those of a code")
        return cls(lengths)

    @cached_property
    def packed(self) -> bytes:
        """LENGTHS_BYTES bytes."""
        return (self.lengths[::2] | self.lengths[1::2] << 4).tobytes()

    def num_bits(self, counts: NDArray[np.int64]) -> int:
        """That bytes which are found so often take, with what has no code."""
        absent = int(counts[self.lengths == 0].sum())
        return int((counts * self.lengths).sum()) + absent * (
            8 * EXCEPTION_BYTES + int(self.lengths[self.lengths > 0].min())
        )

    @cached_property
    def absent(self) -> NDArray[np.bool_]:
        """[256], of bytes without a code."""
        found: NDArray[np.bool_] = self.lengths == 0
        return found

    @cached_property
    def pairs(self) -> NDArray[np.uint32]:
        """[65536], by two bytes: the bits of both, PAIR_ABSENT if one has none, in whose place are those of the shortest; and from PAIR_LENGTH on
        how many bits these are.
        """
        shortest = int(np.where(self.absent, 255, self.lengths).argmin())
        lengths = np.where(self.absent, self.lengths[shortest], self.lengths).astype(np.uint32)
        bits = self._bits()
        bits = np.where(self.absent, bits[shortest], bits)
        both = bits[None, :] | bits[:, None] << lengths[None, :]
        flags = np.where(self.absent[None, :] | self.absent[:, None], PAIR_ABSENT, 0)
        lengths_of_both = (lengths[None, :] + lengths[:, None]) << PAIR_LENGTH
        return (both | flags | lengths_of_both).astype(np.uint32).reshape(-1)

    @cached_property
    def planes(self) -> NDArray[np.uint8]:
        """[3 * 256], of each byte: the lower eight of its bits, those above them, and how many there are; zeros where it has none."""
        bits = np.where(self.absent, 0, self._bits())
        return np.concatenate([bits & 0xFF, bits >> 8, self.lengths]).astype(np.uint8)

    @cached_property
    def table(self) -> NDArray[np.uint64]:
        """[2^MOST_BITS], by the bits that come next: the bytes that they mean, six at most, the first one lowest; how many of the bits these are; and in
        the highest byte how many bytes.
        """
        first = np.zeros(1 << MOST_BITS, np.uint8)
        bits = self._bits()
        for byte in np.flatnonzero(~self.absent):
            first[bits[byte] :: 1 << int(self.lengths[byte])] = byte
        ahead = np.arange(1 << MOST_BITS)
        used, count = np.zeros_like(ahead), np.zeros_like(ahead)
        entry = np.zeros(ahead.size, np.uint64)
        goes_on = np.ones(ahead.size, np.bool_)
        for place in range(_MOST_AT_ONCE):
            byte = first[ahead >> used]
            goes_on &= used + self.lengths[byte] <= MOST_BITS
            entry |= np.where(goes_on, byte, 0).astype(np.uint64) << np.uint64(8 * place)
            used += np.where(goes_on, self.lengths[byte], 0)
            count += goes_on
        entry |= used.astype(np.uint64) << np.uint64(48)
        entry |= count.astype(np.uint64) << np.uint64(56)
        return entry

    def _bits(self) -> NDArray[np.uint32]:
        """[256], of each byte, the first bit lowest."""
        found = np.zeros(256, np.uint32)
        bits = length = 0
        for byte in np.argsort(self.lengths, kind="stable"):
            if not self.lengths[byte]:
                continue
            bits <<= int(self.lengths[byte]) - length
            length = int(self.lengths[byte])
            found[byte] = int(f"{bits:0{length}b}"[::-1], 2)
            bits += 1
        return found


@dataclass(slots=True)
class _InUse:
    """The code of what is written with one baseline."""

    code: Code | None
    """None where zstd does as well."""
    num_blocks: int = 0
    """Since it was last compared with a new one."""


@dataclass(slots=True)
class Codes:
    """The codes that a writer uses, by baseline. Any thread may call it."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _in_use: dict[bytes, _InUse] = field(default_factory=dict)

    def code(self, baseline: bytes, coded: NDArray[np.uint8], *, learns: bool) -> Code | None:
        """For a block's first bytes. It is made of these if it must be and they may be learned from; None if they may not."""
        found = self._in_use.get(baseline)
        if found is not None and not (learns and found.num_blocks >= _COUNT_EVERY):
            found.num_blocks += 1  # two threads may count one; it is a rough number
            return found.code
        return self._counted(baseline, coded) if learns else None

    def _counted(self, baseline: bytes, coded: NDArray[np.uint8]) -> Code | None:
        counts = np.bincount(coded, minlength=256)
        code = Code.of(counts)
        num_bits = code.num_bits(counts)
        with self._lock:
            found = self._in_use.setdefault(baseline, _InUse(None))
            found.num_blocks = 0
            if not _SUITED[0] <= num_bits / coded.size <= _SUITED[1]:
                found.code = None
            elif found.code is None or num_bits < found.code.num_bits(counts) * (1 - _LEAST_GAIN):
                found.code = code  # else the same, of which readers have the table
            return found.code


class _Known:
    """Codes that were read, with their tables."""

    def __init__(self) -> None:
        self._codes: dict[bytes, Code] = {}

    def code(self, packed: bytes) -> Code:
        """Raises CodecError for what is none. Any thread may call it."""
        found = self._codes.get(packed)
        if found is None:
            found = Code.parse(packed)
            # a store has one or two; of damaged records there may be any
            if len(self._codes) >= _MOST_TABLES:
                self._codes = {}
            self._codes[packed] = found
        return found


code_of: Final[Callable[[bytes], Code]] = _Known().code
