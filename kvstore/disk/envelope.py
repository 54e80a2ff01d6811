"""The envelope of a sealed record: what can be checked of it without a key. See docs/block-format.md."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import xxhash

from kvstore.baseline import Baseline
from kvstore.codec import as_bytes
from kvstore.head import MAGIC
from kvstore.reasons import MissReason
from kvstore.record import damage_of

VERSION: Final = 2
"""In the place where a record that is not sealed has its own."""
NAME_BYTES: Final = 16
NONCE_BYTES: Final = 12

# magic, version, name of the key, nonce, bytes that follow the header, their checksum
_HEAD: Final = struct.Struct(f"<8sH{NAME_BYTES}s{NONCE_BYTES}sQQ")
_CHECKSUM: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _HEAD.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a header says."""

    name: bytes
    """Of the key."""
    nonce: bytes
    checksum: int
    """Of the sealed bytes, for who has no key; who opens them needs none."""


def pack_header(name: bytes, nonce: bytes, sealed: bytes) -> bytes:
    """The header that goes before these bytes."""
    head = _HEAD.pack(MAGIC, VERSION, name, nonce, len(sealed), xxhash.xxh3_64_intdigest(sealed))
    return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))


def verified_header(source: Any) -> Envelope | MissReason:
    """The header of these uint8s, if it is right and as much follows as it says."""
    if source.size < HEADER_BYTES:
        return MissReason.DAMAGED_LENGTH
    magic, version, name, nonce, num_bytes, checksum = _HEAD.unpack_from(source)
    if magic != MAGIC:
        return MissReason.DAMAGED_HEADER
    if version != VERSION:
        return MissReason.UNKNOWN_FORMAT
    if xxhash.xxh3_64_intdigest(source[: _HEAD.size].data) != _CHECKSUM.unpack_from(source, _HEAD.size)[0]:
        return MissReason.DAMAGED_HEADER
    if source.size != HEADER_BYTES + num_bytes:
        return MissReason.DAMAGED_LENGTH
    return Envelope(name, nonce, checksum)


def damage_at_rest(rests: Any, entry_key: bytes, baselines: Mapping[bytes, Baseline]) -> MissReason | None:
    """Why what rests under this key must not be trusted, as far as it tells without a key; None if nothing is wrong.

    A record that is not sealed tells everything.
    """
    source = as_bytes(rests)
    if source[: len(_SEALED)].tobytes() != _SEALED:
        return damage_of(rests, entry_key, baselines)
    header = verified_header(source)
    if isinstance(header, MissReason):
        return header
    if xxhash.xxh3_64_intdigest(source[HEADER_BYTES:].data) != header.checksum:
        return MissReason.DAMAGED_CHECKSUM
    return None


_SEALED: Final = MAGIC + VERSION.to_bytes(2, "little")
