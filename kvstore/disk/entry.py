"""The metadata entry of a record: all that a scan tells, so that a scan touches no payload."""

import struct
from typing import Final

import xxhash

from kvstore.block import KEY_BYTES
from kvstore.store import OWNER_BYTES, BlockMeta

VERSION: Final = 1

# version, bytes of token ids, stored bytes, last used at, parent key, owner; then the token ids and a checksum
_HEAD: Final = struct.Struct(f"<IIQQ{KEY_BYTES}s{OWNER_BYTES}s")
_CHECKSUM: Final = struct.Struct("<Q")


def namespace_of(key: bytes) -> bytes:
    """The namespace digest in an entry's key: the namespaces of a directory are ranges of keys."""
    return key[:KEY_BYTES]


def pack_entry(key: bytes, meta: BlockMeta) -> bytes:
    """The entry that rests under `key`."""
    head = _HEAD.pack(VERSION, len(meta.tokens), meta.stored_bytes, meta.used_ns, meta.parent_key, meta.owner)
    body = head + meta.tokens
    return body + _checksum(key, body)


def unpack_entry(key: bytes, value: bytes) -> BlockMeta | None:
    """What the entry under `key` tells; None if it is not what was written there."""
    body, checksum = value[: -_CHECKSUM.size], value[-_CHECKSUM.size :]
    if len(body) < _HEAD.size or checksum != _checksum(key, body):
        return None
    version, token_id_bytes, stored_bytes, used_ns, parent_key, owner = _HEAD.unpack_from(body)
    tokens = body[_HEAD.size :]
    if version != VERSION or len(tokens) != token_id_bytes:
        return None
    return BlockMeta(key[KEY_BYTES:], parent_key, tokens, stored_bytes, used_ns, owner)


def _checksum(key: bytes, body: bytes) -> bytes:
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(key + body))
