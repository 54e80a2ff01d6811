"""Lossless compression of KV.

Floats of one block differ freely in sign and mantissa but little in their exponents, so only the exponents
are worth a coder's time. An element's bits are rotated left by one, which brings its exponent into the top
byte:

    bfloat16   s eeeeeeee mmmmmmm    ->   eeeeeeee | mmmmmmms
    float16    s eeeee mmmmmmmmmm    ->   eeeeemmm | mmmmmmms           gains little
    float32    s eeeeeeee m..m (23)  ->   eeeeeeee | mmmmmmmm | mmmmmmmm mmmmmmms

The top bytes of all elements form one plane, which a zstd frame tuned to be a Huffman coder compresses; the
other bytes are stored as they are. A payload of PLANES is

    frame length (4 bytes) | frame | for 4-byte elements: plane of second bytes | plane of the low byte or two

all little-endian. Where that does not gain, the payload is the data itself (RAW).
"""

import struct
import threading
from enum import IntEnum
from typing import Any, Final, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from kvstore.errors import CodecError, FormatError

Bytes: TypeAlias = NDArray[np.uint8]
Word: TypeAlias = type[np.unsignedinteger[Any]]


class Codec(IntEnum):
    """How a payload was encoded. The numbers are on disk: never reuse one."""

    RAW = 0
    PLANES = 1


_FRAME_LENGTH: Final = struct.Struct("<I")
_WORDS: Final[dict[int, Word]] = {2: np.uint16, 4: np.uint32}

# Elements worked on at a time: scratch and what it touches then stay within a core's second-level cache.
_SEGMENT_ITEMS: Final = 128 * 1024

# A payload that saves less than one part in this many is not worth decoding.
_LEAST_GAIN: Final = 32

# On an exponent plane, matches only cost: with these parameters zstd finds hardly any and is its Huffman
# coder. A target_length above 0 or a negative level would switch Huffman coding off as well.
_PARAMETERS: Final = zstandard.ZstdCompressionParameters.from_level(
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
        self.compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        self.decompressor = zstandard.ZstdDecompressor()
        self._scratch = np.empty((2, _SEGMENT_ITEMS), dtype=np.uint32)

    def scratch(self, num_items: int, word: Word) -> tuple[NDArray[Any], NDArray[Any]]:
        """Two arrays of `num_items` words, undefined in content and overwritten by the next call."""
        first, second = self._scratch
        return first.view(word)[:num_items], second.view(word)[:num_items]


_tools = _Tools()


def as_bytes(buffer: Any) -> Bytes:
    """The bytes of any C-contiguous buffer, without a copy. Writable if the buffer is."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError("buffers must be C-contiguous")
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, dtype=np.uint8)


def encode(data: Any, itemsize: int) -> tuple[Codec, list[Any]]:
    """Encode the bytes of `data`, a buffer of floats of `itemsize` bytes each.

    Answers the codec and the pieces of the payload, in order; a piece may be `data` itself. Any bytes are
    fine: what does not compress, or is no whole number of 2- or 4-byte elements, comes back RAW. Releases the
    GIL for most of its work; any thread may call it.
    """
    raw = as_bytes(data)
    word = _WORDS.get(itemsize)
    if word is None or raw.size == 0 or raw.size % itemsize:
        return Codec.RAW, [raw.data]
    exponents, rest = _split(raw, word)
    frame = _tools.compressor.compress(exponents.data)
    saved = exponents.size - len(frame) - _FRAME_LENGTH.size
    if saved * _LEAST_GAIN < raw.size:
        return Codec.RAW, [raw.data]
    return Codec.PLANES, [_FRAME_LENGTH.pack(len(frame)), frame, rest.data]


def decode(codec: int, payload: Any, itemsize: int, out: Any) -> None:
    """Decode `payload` into `out`, a writable buffer of exactly as many bytes as were encoded.

    Raises FormatError for an unknown codec and CodecError if the payload does not decode to that many bytes;
    `out` is then undefined. Releases the GIL for most of its work; any thread may call it.
    """
    source, target = as_bytes(payload), as_bytes(out)
    if codec == Codec.RAW:
        if source.size != target.size:
            raise CodecError(f"a raw payload of {source.size} bytes where {target.size} were encoded")
        target[:] = source
    elif codec == Codec.PLANES:
        _decode_planes(source, itemsize, target)
    else:
        raise FormatError(f"unknown codec {codec}")


def _decode_planes(source: Bytes, itemsize: int, target: Bytes) -> None:
    word = _WORDS.get(itemsize)
    if word is None or target.size % itemsize:
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
    _join(as_bytes(plane), source[frame_end:], word, target)


def _split(raw: Bytes, word: Word) -> tuple[Bytes, Bytes]:
    """The plane of exponents, and everything else."""
    words = raw.view(word)
    bits, num_items = words.itemsize * 8, words.size
    exponents = np.empty(num_items, dtype=np.uint8)
    rest = np.empty(raw.size - num_items, dtype=np.uint8)
    middle, low = _planes(rest, num_items)
    for begin in range(0, num_items, _SEGMENT_ITEMS):
        part = slice(begin, begin + _SEGMENT_ITEMS)
        items = words[part]
        rotated, scratch = _tools.scratch(items.size, word)
        np.left_shift(items, 1, out=rotated)
        np.right_shift(items, bits - 1, out=scratch)
        np.bitwise_or(rotated, scratch, out=rotated)
        np.copyto(low[part], rotated, casting="unsafe")  # casts to narrower words keep the low bits
        np.right_shift(rotated, bits - 8, out=scratch)
        np.copyto(exponents[part], scratch, casting="unsafe")
        if middle is not None:
            np.right_shift(rotated, 16, out=scratch)
            np.copyto(middle[part], scratch, casting="unsafe")
    return exponents, rest


def _join(exponents: Bytes, rest: Bytes, word: Word, target: Bytes) -> None:
    """Undo `_split`."""
    words = target.view(word)
    bits, num_items = words.itemsize * 8, words.size
    middle, low = _planes(rest, num_items)
    for begin in range(0, num_items, _SEGMENT_ITEMS):
        part = slice(begin, begin + _SEGMENT_ITEMS)
        items = words[part]
        rotated, scratch = _tools.scratch(items.size, word)
        np.copyto(rotated, exponents[part])
        np.left_shift(rotated, bits - 8, out=rotated)
        if middle is not None:
            np.copyto(scratch, middle[part])
            np.left_shift(scratch, 16, out=scratch)
            np.bitwise_or(rotated, scratch, out=rotated)
        np.copyto(scratch, low[part])
        np.bitwise_or(rotated, scratch, out=rotated)
        np.right_shift(rotated, 1, out=items)
        np.left_shift(rotated, bits - 1, out=scratch)
        np.bitwise_or(items, scratch, out=items)


def _planes(rest: Bytes, num_items: int) -> tuple[Bytes | None, NDArray[Any]]:
    """The plane of second bytes, which only 4-byte elements have, and the plane of low bytes or low pairs."""
    if rest.size == num_items:
        return None, rest
    return rest[:num_items], rest[num_items:].view(np.uint16)
