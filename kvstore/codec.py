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

The same first bytes in a Huffman code of our own (kvstore.huffman), in place of the frame, are HUFFMAN:

    digest of the baseline, or zeros | the code | head of the streams | exceptions | four streams | the other planes

It is for data of which a few values are nearly all: then it is written and read in less than half of a frame's time.

Where nothing gains, the payload is the data itself (RAW).
"""

import ctypes
import struct
import threading
from collections.abc import Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from kvstore.baseline import DIGEST_BYTES, Baseline
from kvstore.errors import CodecError, FormatError, MissingBaseline
from kvstore.huffman import LENGTHS_BYTES, MOST_BITS, PROVEN, Code, Codes, code_of
from kvstore.kernels import kernels

Bytes: TypeAlias = NDArray[np.uint8]
Numbers: TypeAlias = NDArray[np.int64]
Word: TypeAlias = type[np.unsignedinteger[Any]]


class Codec(IntEnum):
    """How a payload was encoded. The numbers are on disk: never reuse one."""

    RAW = 0
    ROTATED = 1
    """Planes of another order, which earlier versions wrote."""
    PLANES = 2
    BASELINE = 3
    HUFFMAN = 4


_FRAME_LENGTH: Final = struct.Struct("<I")
_STREAMS_HEAD: Final = struct.Struct("<5I")
_NO_DIGEST: Final = bytes(DIGEST_BYTES)
_STREAMS_BEGIN: Final = DIGEST_BYTES + LENGTHS_BYTES

_LEAST_ITEMS: Final = 4096
"""Of fewer, the code alone would take much of what it saves."""
_EXCEPTIONS: Final = 256
"""Where more than one in so many first bytes have no code, it is not theirs."""
_WORDS: Final[dict[int, Word]] = {2: np.uint16, 4: np.uint32}

_NO_LOW: Final = np.empty(0, np.uint16)

_NO_BASELINES: Final[Mapping[bytes, Baseline]] = MappingProxyType({})

# What is subtracted from the elements of no known channel, so many at a time.
_ZEROS: Final = {itemsize: np.zeros((1, 4096), word) for itemsize, word in _WORDS.items()}

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


class Checksums(NamedTuple):
    """XXH3-64 of both ends of an encoding."""

    payload: int
    block: int


class _Tools(threading.local):
    """What a thread reuses from call to call. Neither zstd contexts nor the plane may be shared by threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(compression_params=PARAMETERS)
        self.decompressor = zstandard.ZstdDecompressor()
        self._plane = np.empty(0, dtype=np.uint8)
        self._streams = np.empty(0, dtype=np.uint8)

    def streams(self, num_items: int, itemsize: int, code: Code) -> tuple[bytes, Bytes, Bytes, Bytes] | None:
        """Of the plane: head, exceptions' positions and values, and the streams, which the next call overwrites. None if it does not suit the code."""
        most_bytes = num_items * MOST_BITS // 8 + 64
        if most_bytes > self._streams.size:
            self._streams = np.empty(most_bytes, dtype=np.uint8)
        sizes = np.empty(4, np.int64)
        positions = np.empty(num_items // _EXCEPTIONS, np.uint32)
        values = np.empty(positions.size, np.uint8)
        number = kernels(itemsize).encode(
            self._plane,
            num_items,
            code.pairs,
            code.planes,
            code.absent,
            self._streams,
            positions,
            values,
            sizes,
        )
        if number < 0:
            return None
        num_bytes = int(sizes.sum())
        head = _STREAMS_HEAD.pack(*sizes.tolist(), number)
        return head, positions[:number].view(np.uint8), values[:number], self._streams[:num_bytes]

    def plane(self, num_bytes: int) -> Bytes:
        """An array, undefined in content and overwritten by the next call. Behind it there are three zeros."""
        if num_bytes + 3 > self._plane.size:
            self._plane = np.empty(num_bytes + 3, dtype=np.uint8)
        self._plane[num_bytes : num_bytes + 3] = 0  # they are coded too: nothing of another's block may be
        return self._plane[:num_bytes]


_tools = _Tools()


def as_bytes(buffer: Any) -> Bytes:
    """The bytes of any C-contiguous buffer, without a copy. Writable if the buffer is."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError("buffers must be C-contiguous")
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, dtype=np.uint8)


def addresses(arrays: Sequence[Bytes]) -> Numbers:
    """Where they begin [n]; nothing is kept."""
    return np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)


def encode(
    data: Any,
    itemsize: int,
    out: Bytes,
    baseline: Baseline | None = None,
    codes: Codes | None = None,
    *,
    learns: bool = False,
) -> tuple[Codec, int]:
    """Encode the bytes of `data`, a buffer of floats of `itemsize` bytes each, into the end of `out`, which is at least as long.

    Answers the codec, and how many bytes of `out` are the payload: the last ones. What is before them is undefined. Any bytes are
    fine: what does not compress, or is no whole number of 2- or 4-byte elements, becomes RAW. A baseline must be of the data's
    layout. With `codes`, HUFFMAN may be chosen; whether they learn from the data says `learns`. Releases the GIL for most of its
    work; any thread may call it.
    """
    raw = as_bytes(data)
    if out.size < raw.size:  # the kernels do not look where arrays end
        raise ValueError(f"{out.size} bytes to encode {raw.size} into")
    word = _WORDS.get(itemsize)
    if word is not None and raw.size and raw.size % itemsize == 0:
        # How long the front is, is not known before: it is laid against what follows it, which so need not be moved.
        num_items = raw.size // itemsize
        front_end = out.size - (raw.size - num_items)
        coded = _tools.plane(num_items)
        words = raw.view(word)
        subtrahend = _subtrahend(itemsize, num_items, baseline)
        kernels(itemsize).split(words, *subtrahend, coded, *_planes(out[front_end:], num_items))
        codec, *front = _front(coded, itemsize, baseline, codes, learns=learns)
        front_begin = front_end - sum(map(len, front))
        if (num_items - (front_end - front_begin)) * _LEAST_GAIN >= raw.size:
            begin = front_begin
            for part in front:
                out.data[begin : begin + len(part)] = part
                begin += len(part)
            return codec, out.size - front_begin
    out[out.size - raw.size :] = raw
    return Codec.RAW, raw.size


def _front(
    coded: Bytes, itemsize: int, baseline: Baseline | None, codes: Codes | None, *, learns: bool
) -> tuple[Codec, *tuple[Any, ...]]:
    """What stands in place of the first bytes, in parts, by the codec that suits them."""
    digest = b"" if baseline is None else baseline.digest
    if codes is not None and coded.size >= _LEAST_ITEMS:
        code = codes.code(digest, coded, learns=learns)
        streams = None if code is None else _tools.streams(coded.size, itemsize, code)
        if code is not None and streams is not None:
            return Codec.HUFFMAN, digest or _NO_DIGEST, code.packed, *streams
    frame = _tools.compressor.compress(coded.data)
    return Codec.PLANES if baseline is None else Codec.BASELINE, digest, _FRAME_LENGTH.pack(len(frame)), frame


def decode(
    codec: int,
    payload: Any,
    itemsize: int,
    out: Any,
    baselines: Mapping[bytes, Baseline] = _NO_BASELINES,
    checksums: Checksums | None = None,
) -> None:
    """Decode `payload` into `out`, a writable buffer of exactly as many bytes as were encoded.

    `baselines` are those that are known, by digest. Raises FormatError for an unknown codec, MissingBaseline for a
    baseline that is not among them, and CodecError if the payload does not decode to that many bytes, or if `checksums` are given and
    one is wrong; `out` is then undefined. A wrong one of the payload is said first. Releases the GIL for most of its work; any thread
    may call it.
    """
    source, target = as_bytes(payload), as_bytes(out)
    if codec == Codec.HUFFMAN:
        _restore(source, itemsize, target, baselines, checksums)
        return
    if checksums is not None:
        _compare("payload", source, checksums.payload)
    if codec == Codec.RAW:
        if source.size != target.size:
            raise CodecError(f"a raw payload of {source.size} bytes where {target.size} were encoded")
        target[:] = source
    elif codec == Codec.ROTATED:
        _join_rotated(*_decompressed(source, itemsize, target), target)
    elif codec == Codec.PLANES:
        _join(*_decompressed(source, itemsize, target), target, None)
    elif codec == Codec.BASELINE:
        baseline = _named(source[:DIGEST_BYTES].tobytes(), itemsize, target.size, baselines)
        _join(*_decompressed(source[DIGEST_BYTES:], itemsize, target), target, baseline)
    else:
        raise FormatError(f"unknown codec {codec}")
    if checksums is not None:
        _compare("block", target, checksums.block)


def _compare(what: str, found: Bytes, checksum: int) -> None:
    if xxhash.xxh3_64_intdigest(found.data) != checksum:
        raise CodecError(f"the {what}'s checksum is wrong")


def _restore(
    source: Bytes,
    itemsize: int,
    target: Bytes,
    baselines: Mapping[bytes, Baseline],
    checksums: Checksums | None,
) -> None:
    """Decode and check a HUFFMAN payload, in one call that does without the GIL."""
    both = np.array([] if checksums is None else [checksums], np.uint64).reshape(-1, 2)
    payload = Records(addresses([source]), np.array([source.size], np.int64), np.zeros(1, np.int64), 0, both)
    states = np.zeros(1, np.uint8)
    try:
        restore_alike(payload, 0, states, itemsize, addresses([target]), target.size, baselines)
    except (CodecError, MissingBaseline):
        if checksums is not None:
            _compare("payload", source, checksums.payload)  # or what is damaged might be called missing
        raise
    if states[0] != PROVEN:
        raise CodecError("the payload does not decode to what was encoded")


class Records(NamedTuple):
    """Records that hold HUFFMAN payloads, for what is compiled. What they lie in must stay, and nobody may write there."""

    addresses: Numbers
    """[n]"""
    sizes: Numbers
    """[n]"""
    numbers: Numbers
    """[n], of the blocks that they are of."""
    header_bytes: int
    """Before a payload."""
    checksums: NDArray[np.uint64]
    """[n, 2], of payload and block."""


def restore_alike(
    records: Records,
    first: int,
    states: Bytes,
    itemsize: int,
    targets: Numbers,
    block_bytes: int,
    baselines: Mapping[bytes, Baseline],
) -> bytes:
    """Decode the record at `first`, and of all that `states` [n] (kvstore.huffman) say UNTRIED of those of the same baseline and code.

    Blocks go to `targets` [blocks], where `block_bytes` each are written. Those become PROVEN that are, by their checksums; why the others are
    not says `decode`, and what is in their place is undefined. One call, which does without the GIL. Any thread may call it. Answers how these payloads
    begin. Raises CodecError or MissingBaseline where this one cannot be tried.
    """
    num_bytes = records.sizes[first] - records.header_bytes
    if num_bytes < _STREAMS_BEGIN:
        raise CodecError(f"{num_bytes} bytes are no code")
    front = ctypes.string_at(int(records.addresses[first]) + records.header_bytes, _STREAMS_BEGIN)
    way = way_from(front, itemsize, block_bytes, baselines)
    kernels(itemsize).restore(*records[:4], targets, records.checksums, states, *way)
    return front


def way_from(
    front: bytes, itemsize: int, block_bytes: int, baselines: Mapping[bytes, Baseline]
) -> tuple[Any, ...]:
    """What compiled code goes by from HUFFMAN payloads that begin so to elements, on this thread. Raises CodecError or MissingBaseline where there is no such way."""
    num_items, digest = _num_items(itemsize, block_bytes), front[:DIGEST_BYTES]
    if num_items < _LEAST_ITEMS:
        raise CodecError(f"{num_items} elements are too few for a code")
    baseline = None if digest == _NO_DIGEST else _named(digest, itemsize, block_bytes, baselines)
    return (
        num_items,
        np.frombuffer(front, np.uint8),
        code_of(front[DIGEST_BYTES:]).table,
        _tools.plane(num_items),
        *_subtrahend(itemsize, num_items, baseline),
        _NO_LOW if itemsize == 4 else None,
    )


def _num_items(itemsize: int, block_bytes: int) -> int:
    if itemsize not in _WORDS or block_bytes % itemsize or not block_bytes:
        raise CodecError(f"{block_bytes} bytes are no elements of {itemsize} bytes")
    return block_bytes // itemsize


def _named(digest: bytes, itemsize: int, block_bytes: int, baselines: Mapping[bytes, Baseline]) -> Baseline:
    """The baseline of this digest."""
    baseline = baselines.get(digest)
    if baseline is None:
        raise MissingBaseline(f"the baseline {digest.hex()} is not there")
    if baseline.itemsize != itemsize or block_bytes % (baseline.num_channels * itemsize):
        raise CodecError(f"the baseline {digest.hex()} is of another layout")
    return baseline


def _decompressed(source: Bytes, itemsize: int, target: Bytes) -> tuple[Bytes, Bytes]:
    """The plane of exponents, and everything else."""
    num_items = _num_items(itemsize, target.size)
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


def _join(exponents: Bytes, rest: Bytes, target: Bytes, baseline: Baseline | None) -> None:
    words = target.view(_WORDS[target.size // exponents.size])
    subtrahend = _subtrahend(words.itemsize, words.size, baseline)
    kernels(words.itemsize).join(words, *subtrahend, exponents, *_planes(rest, exponents.size))


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


def _subtrahend(itemsize: int, num_items: int, baseline: Baseline | None) -> tuple[NDArray[Any], int, int]:
    """What kernels need to know: the numbers to subtract, in rows; how many rows of elements each of them is for; and the lowest
    bit of the byte that is coded.
    """
    if baseline is None:
        return _ZEROS[itemsize], num_items, itemsize * 8 - 9
    numbers = baseline.words[:, 0]
    if num_items % numbers.size:
        raise ValueError(f"{num_items} elements for a baseline of {numbers.size} channels")
    return numbers, num_items // numbers.size, baseline.first_bit


def _planes(rest: Bytes, num_items: int) -> tuple[Bytes, NDArray[Any] | None]:
    """The plane of second bytes, and the plane of low pairs, which only 4-byte elements have."""
    if rest.size == num_items:
        return rest, None
    return rest[:num_items], rest[num_items:].view(np.uint16)
