"""The loops of one block, to be compiled: a Huffman code's, and the way back from a payload to elements that are proven.

Importing this takes numba, some tenths of a second; kvstore.kernels compiles what is here when it is first needed. What the code and
the payload are says docs/block-format.md. No loop reads or writes outside the arrays that it is given, whatever bytes these hold.
"""

from typing import Any, Final

import numpy as np
from numba import njit, types

from kvstore import huffman
from kvstore.head import CHECKSUM, CHECKSUMS_BEGIN, OPEN_BEGIN, OPEN_END, TOKENS_BEGIN
from kvstore.huffman import BROKEN, PROVEN, UNTRIED
from kvstore.instructions import (
    XXH3_SECRET,
    array_at,
    copy,
    fence,
    fetch,
    in_turn,
    join_block,
    leading_zeros,
    load4,
    load8,
    quads_of,
    store8,
    stream_block,
)
from kvstore.planes import join_words
from kvstore.scratch import on_stack
from kvstore.xxh3 import BLOCK_BYTES, FIRST_SUMS, eight_sums, ended, mix, xxh3

_U64: Final = np.uint64
_MASK: Final = np.uint64((1 << huffman.MOST_BITS) - 1)
_BITS: Final = np.uint64(48)
_ABOVE: Final = np.uint64(16)
_SHIFT: Final = np.uint64(0x3F)
_LOW: Final = np.uint64(0xFF)
_PAIR: Final = np.uint64(0xFFFF)
_CODED: Final = np.uint64((1 << 2 * huffman.MOST_BITS) - 1)
_ABSENT: Final = np.uint64(huffman.PAIR_ABSENT)
_PAIR_LENGTH: Final = np.uint64(huffman.PAIR_LENGTH)
_AT_ONCE: Final = 64
"""Bytes that are coded at once, where all have a code."""
_WHOLE: Final = np.uint64(0x38)
_BYTE: Final = np.uint64(8)
_COUNT: Final = np.uint64(56)
_MARK: Final = np.uint64(1 << 63)
_HEAD_BYTES: Final = huffman.HEAD_BYTES
_EXCEPTION_BYTES: Final = huffman.EXCEPTION_BYTES

_COMPILED: Final[dict[str, Any]] = {"_nrt": False}
"""Without numba's memory: see kvstore.scratch."""

_join_words: Final = njit(**_COMPILED)(join_words)
_two_blocks: Final = on_stack(types.uint64, 256)
_five_ends: Final = on_stack(types.int64, 5)
_quads: Final = on_stack(types.uint64, 32)

_CHECKSUM_BYTES: Final = CHECKSUM.size


def encode(
    coded: Any,
    num_items: Any,
    pairs: Any,
    planes: Any,
    absent: Any,
    out: Any,
    positions: Any,
    values: Any,
    sizes: Any,
) -> Any:
    """Code the first bytes of `coded` into `out`, which has room for the longest codes and eight bytes; four streams, of `sizes` bytes, one behind the
    other. `coded` goes on to a whole number of fours, with whatever it may be. `pairs` and `planes` are of kvstore.huffman.

    Where `absent` says that a byte has no code, its position and value are noted. Answers how many these are; -1 if they are too many.
    """
    begin, target = np.int64(coded.ctypes.data), np.int64(out.ctypes.data)
    of_planes = np.int64(planes.ctypes.data)
    words = _quads()
    quads = np.int64(words.ctypes.data)
    quarter, num_absent = num_items // 16 * 4, 0
    for stream in range(4):
        first = target
        word, num_bits = _U64(0), _U64(0)
        at, end = stream * quarter, (stream + 1) * quarter if stream < 3 else num_items
        while at < end:
            if end - at >= _AT_ONCE and quads_of(begin + at, of_planes, quads):
                for number in range(_AT_ONCE // 4):
                    # 44 bits at most, behind 7 that are left of those before; see quads_of for their order
                    place = number // 4 * 2 + number // 2 % 2 * 8 + number % 2
                    target, word, num_bits = _put(target, word, num_bits, words[place], words[16 + place])
                at += _AT_ONCE
                continue
            stop = min(at + _AT_ONCE, end)
            while at < stop:
                four = load4(begin + at)
                left, right = _U64(pairs[four & _PAIR]), _U64(pairs[four >> _U64(16)])
                if (left | right) & _ABSENT:
                    for position in range(at, min(at + 4, end)):
                        if absent[coded[position]]:
                            if num_absent == positions.size:
                                return -1
                            positions[num_absent], values[num_absent] = position, coded[position]
                            num_absent += 1
                of_left = left >> _PAIR_LENGTH
                bits = (left & _CODED) | (right & _CODED) << of_left
                target, word, num_bits = _put(target, word, num_bits, bits, of_left + (right >> _PAIR_LENGTH))
                at += 4
        target += num_bits > _U64(0)
        sizes[stream] = target - first
    return num_absent


@njit(**_COMPILED)
def _put(target: Any, word: Any, num_bits: Any, bits: Any, count: Any) -> Any:
    """Write so many bits behind those that are left of what was written before. Where the next go, what is left, and how many bits that is."""
    word |= bits << num_bits
    num_bits += count
    store8(target, word)
    return target + np.int64(num_bits >> _U64(3)), word >> (num_bits & _WHOLE), num_bits & _U64(7)


def checksum(data: Any) -> Any:
    """XXH3 of more than 128 bytes: faster than the library's, which is built for any processor."""
    return xxh3(data)


@njit(**_COMPILED)
def decode(payload: Any, begin: Any, end: Any, table: Any, plane: Any, num_items: Any, ahead: Any) -> Any:
    """Fill the first `num_items` of `plane`, which may have more, from `payload[begin:end]`. Whether that can be what was encoded.

    Meanwhile what lies at the address `ahead`, as much as the payload, is fetched into the caches: it is read next.
    """
    base = np.int64(payload.ctypes.data)
    if end - begin < _HEAD_BYTES:
        return False
    num_absent = np.int64(load4(base + begin + 16))
    at = begin + _HEAD_BYTES + _EXCEPTION_BYTES * num_absent
    ends = _five_ends()
    ends[0] = at
    for stream in range(4):
        ends[stream + 1] = ends[stream] + np.int64(load4(base + begin + 4 * stream))
    if ends[4] != end:
        return False
    _decode_streams(payload, ends, table, plane, num_items, ahead)
    positions = base + begin + _HEAD_BYTES
    for number in range(num_absent):
        position = np.int64(load4(positions + 4 * number))
        if position >= num_items:
            return False
        plane[position] = payload[begin + _HEAD_BYTES + 4 * num_absent + number]
    return True


@njit(**_COMPILED)
def _ahead(position: Any) -> Any:
    """The 56 bits or more from a bit on, counted from address 0, and above them a mark, by which `_behind` knows how far they were shifted out."""
    return (load8(position >> 3) | _MARK) >> _U64(position & 7)


@njit(**_COMPILED)
def _behind(position: Any, word: Any) -> Any:
    """The bit that `word` begins with, of `_ahead`."""
    return (position & ~7) + leading_zeros(word)


@njit(**_COMPILED)
def _look(table: Any, target: Any, word: Any) -> Any:
    """Write what the next bits mean. Where the next bytes go, and the bits behind these."""
    entry = table[word & _MASK]
    store8(target, entry)
    word >>= (entry >> _BITS | entry << _ABOVE) & _SHIFT  # a rotation, as that needs no copy
    return in_turn(target + np.int64(entry >> _COUNT)), word


@njit(**_COMPILED)
def _decode_streams(payload: Any, ends: Any, table: Any, plane: Any, num_items: Any, ahead: Any) -> None:
    base, begin = np.int64(payload.ctypes.data), np.int64(plane.ctypes.data)
    ahead_end = ahead + payload.size
    quarter = num_items // 16 * 4
    o0, o1, o2, o3 = begin, begin + quarter, begin + 2 * quarter, begin + 3 * quarter
    p0, p1, p2, p3 = 8 * (base + ends[0]), 8 * (base + ends[1]), 8 * (base + ends[2]), 8 * (base + ends[3])
    while True:
        # A turn takes five looks at each stream, of 11 bits and six items at most; a look reads and writes eight bytes.
        room = min(
            begin + quarter - o0, begin + 2 * quarter - o1, begin + 3 * quarter - o2, begin + num_items - o3
        )
        left = base + payload.size - (max(p0, p1, p2, p3) >> 3)
        turns = min((room - 8) // 30, (left - 8) // 7)
        if turns <= 0:
            break
        for _ in range(turns):
            w0, w1, w2, w3 = _ahead(p0), _ahead(p1), _ahead(p2), _ahead(p3)
            for _ in range(5):
                o0, w0 = _look(table, o0, w0)
                o1, w1 = _look(table, o1, w1)
                o2, w2 = _look(table, o2, w2)
                o3, w3 = _look(table, o3, w3)
            if ahead < ahead_end:  # a turn gives some 80 elements of 2 bytes, whose payload has some 110
                fetch(ahead)
                fetch(ahead + 64)
                ahead += 128
            p0, p1, p2, p3 = _behind(p0, w0), _behind(p1, w1), _behind(p2, w2), _behind(p3, w3)
    # the streams do not end together
    o0, p0 = _decode_stream(payload, p0, table, o0, begin + quarter)
    o1, p1 = _decode_stream(payload, p1, table, o1, begin + 2 * quarter)
    o2, p2 = _decode_stream(payload, p2, table, o2, begin + 3 * quarter)
    o3, p3 = _decode_stream(payload, p3, table, o3, begin + num_items)
    _decode_rest(payload, p0, table, plane, o0 - begin, quarter)
    _decode_rest(payload, p1, table, plane, o1 - begin, 2 * quarter)
    _decode_rest(payload, p2, table, plane, o2 - begin, 3 * quarter)
    _decode_rest(payload, p3, table, plane, o3 - begin, num_items)


@njit(**_COMPILED)
def _decode_stream(payload: Any, position: Any, table: Any, target: Any, end: Any) -> Any:
    """One stream, to the address `end` at most. Where its bits and its items go on."""
    payload_end = np.int64(payload.ctypes.data) + payload.size
    while True:
        turns = min((end - target - 8) // 30, (payload_end - (position >> 3) - 8) // 7)
        if turns <= 0:
            return target, position
        for _ in range(turns):
            word = _ahead(position)
            for _ in range(5):
                target, word = _look(table, target, word)
            position = _behind(position, word)


@njit(**_COMPILED)
def _decode_rest(payload: Any, position: Any, table: Any, plane: Any, at: Any, end: Any) -> None:
    """The last items of a stream, of which no more may be read or written than there is."""
    base = np.int64(payload.ctypes.data)
    while at < end:
        first = (position >> 3) - base
        word = _U64(0)
        for number in range(min(3, payload.size - first)):
            word |= _U64(payload[first + number]) << _U64(8 * number)
        entry = table[(word >> _U64(position & 7)) & _MASK]
        position += np.int64((entry >> _BITS) & _SHIFT)
        for _ in range(min(np.int64(entry >> _COUNT), end - at)):
            plane[at] = np.uint8(entry & _LOW)
            entry >>= _BYTE
            at += 1


@njit(**_COMPILED)
def _equal(left: Any, right: Any, num_bytes: Any) -> Any:
    """Whether so many bytes at two addresses, a multiple of four, are the same."""
    for at in range(0, num_bytes - 7, 8):
        if load8(left + at) != load8(right + at):
            return False
    at = num_bytes // 8 * 8
    return at == num_bytes or load4(left + at) == load4(right + at)


def recognise(records: Any, sizes: Any, numbers: Any, heads: Any, checksums: Any, states: Any) -> None:
    """Say BROKEN in `states` [n] of those records at addresses [n], of so many bytes, that do not begin with what `heads` [blocks, bytes] say of the
    block of that number [n], or not with a sound header.

    Of the others `checksums` [n, 2] become what they say of payload and block; that, and what else only they say, is left open in `heads`.
    """
    covered = heads.shape[1]
    for i in range(records.size):
        begin, wanted = records[i], np.int64(heads[numbers[i]].ctypes.data)
        if (
            sizes[i] < covered + _CHECKSUM_BYTES
            or not _equal(begin, wanted, OPEN_BEGIN)
            or not _equal(begin + OPEN_END, wanted + OPEN_END, CHECKSUMS_BEGIN - OPEN_END)
            or not _equal(begin + TOKENS_BEGIN, wanted + TOKENS_BEGIN, covered - TOKENS_BEGIN)
            or np.int64(load8(begin + OPEN_BEGIN)) != sizes[i] - covered - _CHECKSUM_BYTES
            or xxh3(array_at(begin, covered, heads)) != load8(begin + covered)
        ):
            states[i] = BROKEN
        else:
            block, payload = load8(begin + CHECKSUMS_BEGIN), load8(begin + CHECKSUMS_BEGIN + 8)
            checksums[i, 0], checksums[i, 1] = payload, block


@njit(**_COMPILED)
def _joined(
    target: Any,
    num_items: Any,
    numbers: Any,
    group_rows: Any,
    first_bit: Any,
    coded: Any,
    second: Any,
    low: Any,
) -> Any:
    """Fill the `num_items` elements at an address as `join_words` does. Answers their XXH3.

    Where each 1,024 bytes have one row of numbers, in one pass, which leaves nothing in the caches if that can be; else in two.
    """
    items, channels = BLOCK_BYTES // numbers.itemsize, numbers.shape[1]
    of_group = min(group_rows * channels, num_items)
    num_blocks = num_items // items
    if num_items % items or of_group % items or num_blocks == 0:
        _join_words(array_at(target, num_items, numbers), numbers, group_rows, first_bit, coded, second, low)
        return xxh3(array_at(target, num_items * numbers.itemsize, coded))
    sums, unused, memory = eight_sums(), eight_sums(), _two_blocks()
    window = np.int64(memory.ctypes.data)
    for lane in range(8):
        sums[lane] = FIRST_SUMS[lane]
    keys, num_bits = np.int64(XXH3_SECRET.ctypes.data), 8 * numbers.itemsize
    is_whole = first_bit == num_bits - 8
    sums_at, unused_at = np.int64(sums.ctypes.data), np.int64(unused.ctypes.data)
    coded_at, second_at, low_at = np.int64(coded.ctypes.data), np.int64(second.ctypes.data), np.int64(0)
    if low is not None:
        low_at = np.int64(low.ctypes.data)
    for block in range(num_blocks):
        first = block * items
        group = first // of_group
        at = (first - group * of_group) % channels
        row = numbers[group]
        if channels < items:
            if first == group * of_group:
                _wrapped(row, 0, window, channels + items)
            subtrahend = window + at * numbers.itemsize
        elif at + items <= channels:
            subtrahend = np.int64(row.ctypes.data) + at * numbers.itemsize
        else:
            _wrapped(row, at, window, items)
            subtrahend = window
        words = target + block * BLOCK_BYTES
        planes = coded_at + first, second_at + first, low_at + 2 * first
        if block == num_blocks - 1:
            join_block(words, subtrahend, *planes, is_whole, unused_at, keys, numbers)
        elif target % 64:
            join_block(words, subtrahend, *planes, is_whole, sums_at, keys, numbers)
            mix(sums)
        else:
            stream_block(words, subtrahend, *planes, is_whole, sums_at, keys, numbers)
            mix(sums)
    return ended(sums, target, num_items * numbers.itemsize)


@njit(**_COMPILED)
def _wrapped(row: Any, at: Any, window: Any, num: Any) -> None:
    """Fill so many numbers at an address from the row, from `at` on and over and over."""
    begin, filled = np.int64(row.ctypes.data), 0
    while filled < num:
        run = min(row.size - at, num - filled)
        copy(window + filled * row.itemsize, begin + at * row.itemsize, run * row.itemsize)
        filled, at = filled + run, 0


def restore(
    records: Any,
    sizes: Any,
    numbers: Any,
    header_bytes: Any,
    targets: Any,
    checksums: Any,
    states: Any,
    num_items: Any,
    front: Any,
    table: Any,
    plane: Any,
    subtrahend: Any,
    group_rows: Any,
    first_bit: Any,
    low: Any,
) -> None:
    """From records at addresses [n], of so many bytes, to the `num_items` elements of blocks, at addresses [blocks] by their numbers [n].

    Of those that `states` [n] say UNTRIED of, and whose payload, behind so many bytes of a header, begins with `front`: the code
    that `table` is of, and the baseline of `subtrahend`. They become PROVEN or BROKEN. `low` is None for elements of two bytes.
    All in one go, as each time that Python's lock is given up and taken again has threads wait for each other. `checksums` [n, 2] are of
    the payload and of the block; none, if they are looked at elsewhere.
    """
    begin, of_front = front.size, np.int64(front.ctypes.data)
    for i in range(records.size):
        source, num_bytes, target = records[i] + header_bytes, sizes[i] - header_bytes, targets[numbers[i]]
        end = num_bytes - num_items * (subtrahend.itemsize - 1)
        if states[i] != UNTRIED or end < begin or not _equal(source, of_front, begin):
            continue
        states[i] = BROKEN
        payload = array_at(source, num_bytes, plane)
        if checksums.size and xxh3(payload) != checksums[i, 0]:
            continue
        ahead = records[i + 1] + header_bytes if i + 1 < records.size else source
        if not decode(payload, begin, end, table, plane, num_items, ahead):
            continue
        found = _joined(
            target,
            num_items,
            subtrahend,
            group_rows,
            first_bit,
            plane,
            array_at(source + end, num_items, plane),
            array_at(source + end + num_items, num_items, low),
        )
        if checksums.size == 0 or found == checksums[i, 1]:
            states[i] = PROVEN
    fence()
