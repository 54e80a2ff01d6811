"""Lossless compression of KV.

Floats of one block differ freely in sign and mantissa but little in their exponents, so only the exponents are worth a
coder's time. An element's bits are parted:

    bfloat16   s eeeeeeee mmmmmmm    ->   eeeeeeee | smmmmmmm
    float16    s eeeee mmmmmmmmmm    ->   eeeeemmm | smmmmmmm
    float32    s eeeeeeee m..m (23)  ->   eeeeeeee | smmmmmmm | mmmmmmmm mmmmmmmm

The first bytes of all elements form one plane, which a zstd frame tuned to be a Huffman coder compresses; the other
bytes are stored as they are. A payload of PLANES is

    frame length (4 bytes) | frame | plane of second bytes | for 4-byte elements: plane of the low pairs

all little-endian. Exponents differ less within a channel than between channels: of BASELINE, each element's bits, as an
unsigned integer, are what is left when the channel's baseline is subtracted, and the payload of the planes follows the
digest of the table of baselines (baseline.py), which also says whether the sign is coded with the exponent, as that of a
float16 is:

    float16    s eeeee mm mmmmmmmm   ->   seeeeemm | mmmmmmmm

Where nothing gains, the payload is the data itself (RAW).
"""

import struct
import threading
from collections.abc import Iterator, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from kvstore.baseline import DIGEST_BYTES, Baseline
from kvstore.errors import CodecError, FormatError, MissingBaseline

Bytes: TypeAlias = NDArray[np.uint8]
Word: TypeAlias = type[np.unsignedinteger[Any]]


class Codec(IntEnum):
    """How a payload was encoded. The numbers are on disk: never reuse one."""

    RAW = 0
    ROTATED = 1
    """Planes of another order, which earlier versions wrote."""
    PLANES = 2
    BASELINE = 3


_FRAME_LENGTH: Final = struct.Struct("<I")
_WORDS: Final[dict[int, Word]] = {2: np.uint16, 4: np.uint32}

_NO_BASELINES: Final[Mapping[bytes, Baseline]] = MappingProxyType({})

# Elements worked on at a time: scratch and what it touches then stay within a core's second-level cache.
_SEGMENT_ITEMS: Final = 128 * 1024

# A payload that saves less than one part in this many is not worth decoding.
_LEAST_GAIN: Final = 32

# On an exponent plane, matches only cost: with these parameters zstd finds hardly any and is its Huffman
# coder. A target_length above 0 or a negative level would switch Huffman coding off as well.
PARAMETERS: Final = zstandard.ZstdCompressionParameters.from_level(
    1,
    strategy=zstandard.STRATEGY_FAST,
    target_length=0,
    min_match=7,
    hash_log=6,
    window_log=17,
    write_content_size=1,
    write_checksum=0,
)


class _Tools(threading.local):
    """What a thread reuses from call to call. Neither zstd contexts nor scratch may be shared by threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(compression_params=PARAMETERS)
        self.decompressor = zstandard.ZstdDecompressor()
        self._scratch = np.empty((2, _SEGMENT_ITEMS), dtype=np.uint32)
        self._planes = np.empty(0, dtype=np.uint8)

    def scratch(self, num_items: int, word: Word) -> tuple[NDArray[Any], NDArray[Any]]:
        """Two arrays of `num_items` words, undefined in content and overwritten by the next call."""
        if num_items > self._scratch.shape[1]:
            self._scratch = np.empty((2, num_items), dtype=np.uint32)
        first, second = self._scratch
        return first.view(word)[:num_items], second.view(word)[:num_items]

    def planes(self, num_bytes: int) -> Bytes:
        """An array likewise. Memory that is new for each block would be taken from the system page by page."""
        if num_bytes > self._planes.size:
            self._planes = np.empty(num_bytes, dtype=np.uint8)
        return self._planes[:num_bytes]


_tools = _Tools()


def as_bytes(buffer: Any) -> Bytes:
    """The bytes of any C-contiguous buffer, without a copy. Writable if the buffer is."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError("buffers must be C-contiguous")
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, dtype=np.uint8)


def encode(data: Any, itemsize: int, baseline: Baseline | None = None) -> tuple[Codec, list[Any]]:
    """Encode the bytes of `data`, a buffer of floats of `itemsize` bytes each.

    Answers the codec and the pieces of the payload, in order; a piece may be `data` itself, or be overwritten by the
    next call on this thread. Any bytes are
    fine: what does not compress, or is no whole number of 2- or 4-byte elements, comes back RAW. A baseline must be of
    the data's layout. Releases the GIL for most of its work; any thread may call it.
    """
    raw = as_bytes(data)
    word = _WORDS.get(itemsize)
    if word is None or raw.size == 0 or raw.size % itemsize:
        return Codec.RAW, [raw.data]
    exponents, rest = _split(raw.view(word), baseline)
    frame = _tools.compressor.compress(exponents.data)
    saved = exponents.size - len(frame) - _FRAME_LENGTH.size - (0 if baseline is None else DIGEST_BYTES)
    if saved * _LEAST_GAIN < raw.size:
        return Codec.RAW, [raw.data]
    planes = [_FRAME_LENGTH.pack(len(frame)), frame, rest.data]
    return (Codec.PLANES, planes) if baseline is None else (Codec.BASELINE, [baseline.digest, *planes])


def decode(
    codec: int, payload: Any, itemsize: int, out: Any, baselines: Mapping[bytes, Baseline] = _NO_BASELINES
) -> None:
    """Decode `payload` into `out`, a writable buffer of exactly as many bytes as were encoded.

    `baselines` are those that are known, by digest. Raises FormatError for an unknown codec, MissingBaseline for a
    baseline that is not among them, and CodecError if the payload does not decode to that many bytes;
    `out` is then undefined. Releases the GIL for most of its work; any thread may call it.
    """
    source, target = as_bytes(payload), as_bytes(out)
    if codec == Codec.RAW:
        if source.size != target.size:
            raise CodecError(f"a raw payload of {source.size} bytes where {target.size} were encoded")
        target[:] = source
    elif codec == Codec.ROTATED:
        _join_rotated(*_decompressed(source, itemsize, target), target)
    elif codec == Codec.PLANES:
        _join(*_decompressed(source, itemsize, target), target, None)
    elif codec == Codec.BASELINE:
        baseline = _named(source, itemsize, target, baselines)
        _join(*_decompressed(source[DIGEST_BYTES:], itemsize, target), target, baseline)
    else:
        raise FormatError(f"unknown codec {codec}")


def _named(source: Bytes, itemsize: int, target: Bytes, baselines: Mapping[bytes, Baseline]) -> Baseline:
    """The baseline that a payload begins with the digest of."""
    digest = source[:DIGEST_BYTES].tobytes()
    baseline = baselines.get(digest)
    if baseline is None:
        raise MissingBaseline(f"the baseline {digest.hex()} is not there")
    if baseline.itemsize != itemsize or target.size % (baseline.num_channels * itemsize):
        raise CodecError(f"the baseline {digest.hex()} is of another layout")
    return baseline


def _decompressed(source: Bytes, itemsize: int, target: Bytes) -> tuple[Bytes, Bytes]:
    """The plane of exponents, and everything else."""
    if itemsize not in _WORDS or target.size % itemsize or not target.size:
        raise CodecError(f"{target.size} bytes are no elements of {itemsize} bytes")
    num_items = target.size // itemsize
    frame_end = source.size - num_items * (itemsize - 1)
    frame = source[_FRAME_LENGTH.size : max(0, frame_end)].data
    if frame_end < _FRAME_LENGTH.size or _FRAME_LENGTH.unpack_from(source.data)[0] != len(frame):
        raise CodecError(f"{source.size} bytes cannot hold {num_items} elements of {itemsize} bytes")
    try:
        # Asked first, so that a damaged size cannot make zstd reserve gigabytes.
        size = zstandard.frame_content_size(frame)
        plane = _tools.decompressor.decompress(frame) if size == num_items else b""
    except zstandard.ZstdError as error:
        raise CodecError(f"the exponents do not decompress: {error}") from error
    if len(plane) != num_items:
        raise CodecError(f"{size} exponents where {num_items} elements were encoded")
    return as_bytes(plane), source[frame_end:]


def _split(words: NDArray[Any], baseline: Baseline | None) -> tuple[Bytes, Bytes]:
    """The plane of exponents, and everything else. The next call on this thread overwrites them."""
    word: Word = words.dtype.type
    bits, num_items = words.itemsize * 8, words.size
    first_bit = _first_bit(words.itemsize, baseline)
    planes = _tools.planes(words.nbytes)
    exponents, rest = planes[:num_items], planes[num_items:]
    second, low = _planes(rest, num_items)
    for part, base in _segments(num_items, baseline):
        items = words[part]
        scratch, signs = _tools.scratch(items.size, word)
        if base is not None:
            np.subtract(_by_channel(items, base), base, out=_by_channel(scratch, base))
            items = scratch
        if low is not None:
            np.copyto(low[part], items, casting="unsafe")  # casts to narrower words keep the low bits
        np.right_shift(items, first_bit, out=signs)
        np.copyto(exponents[part], signs, casting="unsafe")
        if first_bit == bits - 8:
            np.copyto(second[part], items, casting="unsafe")
            continue
        np.right_shift(signs, 1, out=signs)
        np.bitwise_and(signs, 0x80, out=signs)
        np.bitwise_and(items, 0x7F << (bits - 16), out=scratch)
        if low is not None:
            np.right_shift(scratch, 16, out=scratch)
        np.bitwise_or(scratch, signs, out=scratch)
        np.copyto(second[part], scratch, casting="unsafe")
    return exponents, rest


def _join(exponents: Bytes, rest: Bytes, target: Bytes, baseline: Baseline | None) -> None:
    """Undo `_split`."""
    num_items = exponents.size
    word = _WORDS[target.size // num_items]
    words = target.view(word)
    bits = words.itemsize * 8
    first_bit = _first_bit(words.itemsize, baseline)
    second, low = _planes(rest, num_items)
    for part, base in _segments(num_items, baseline):
        items = words[part]
        scratch, _ = _tools.scratch(items.size, word)
        np.copyto(items, exponents[part])
        np.left_shift(items, first_bit, out=items)
        if first_bit == bits - 8:
            np.copyto(scratch, second[part])
        else:
            # Made wider as a signed number, a byte has its sign in the top bit; what fills the bits between is cut off.
            np.copyto(scratch.view(f"i{words.itemsize}"), second[part].view(np.int8))
            if low is not None:
                np.left_shift(scratch, 16, out=scratch)
            np.bitwise_and(scratch, 0x807F << (bits - 16), out=scratch)
        np.bitwise_or(items, scratch, out=items)
        if low is not None:
            np.copyto(scratch, low[part])
            np.bitwise_or(items, scratch, out=items)
        if base is not None:
            np.add(_by_channel(items, base), base, out=_by_channel(items, base))


def _join_rotated(exponents: Bytes, rest: Bytes, target: Bytes) -> None:
    """As `_join`, of elements that were rotated left by one bit and then cut into bytes. In one go, and slower."""
    num_items = exponents.size
    word = _WORDS[target.size // num_items]
    bits = np.dtype(word).itemsize * 8
    rotated = exponents.astype(word) << (bits - 8)
    if bits == 16:
        rotated |= rest
    else:
        rotated |= rest[:num_items].astype(word) << 16
        rotated |= rest[num_items:].view(np.uint16)
    target.view(word)[:] = (rotated >> 1) | (rotated << (bits - 1))


def _segments(num_items: int, baseline: Baseline | None) -> Iterator[tuple[slice, NDArray[Any] | None]]:
    """Runs of elements to work on at a time, each with its part of the baseline: whole layers of keys or values."""
    if baseline is None:
        for begin in range(0, num_items, _SEGMENT_ITEMS):
            yield slice(begin, begin + _SEGMENT_ITEMS), None
        return
    num_groups = len(baseline.words)
    group_items = num_items // num_groups
    step = max(1, _SEGMENT_ITEMS // group_items)
    for group in range(0, num_groups, step):
        base = baseline.words[group : group + step]
        yield slice(group * group_items, (group + len(base)) * group_items), base


def _first_bit(itemsize: int, baseline: Baseline | None) -> int:
    """The lowest bit of the byte that is coded."""
    return itemsize * 8 - 9 if baseline is None else baseline.first_bit


def _by_channel(items: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    """[layers x 2, tokens, channels]."""
    return items.reshape(base.shape[0], -1, base.shape[2])


def _planes(rest: Bytes, num_items: int) -> tuple[Bytes, NDArray[Any] | None]:
    """The plane of second bytes, and the plane of low pairs, which only 4-byte elements have."""
    if rest.size == num_items:
        return rest, None
    return rest[:num_items], rest[num_items:].view(np.uint16)
