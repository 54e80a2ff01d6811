"""The metadata entry of a record: all that a scan tells, so that a scan touches no payload."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvstore.block import KEY_BYTES
from kvstore.metas import BlockMetas, rows_of
from kvstore.store import OWNER_BYTES, BlockMeta

VERSION: Final = 1

# version, bytes of token ids, stored bytes, last used at, parent key, owner; then the token ids and a checksum
_HEAD: Final = struct.Struct(f"<IIQQ{KEY_BYTES}s{OWNER_BYTES}s")
_CHECKSUM: Final = struct.Struct("<Q")
_HEAD_DTYPE: Final = np.dtype(
    [
        ("version", "<u4"),
        ("token_bytes", "<u4"),
        ("stored_bytes", "<u8"),
        ("used_ns", "<u8"),
        ("parent_key", f"V{KEY_BYTES}"),
        ("owner", f"V{OWNER_BYTES}"),
    ]
)
"""The same head, for many of them."""


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


@dataclass(frozen=True, slots=True)
class Entries:
    """Some entries: the keys of those that are sound, what these tell, and the keys of the others.

    The token ids of all that are sound are of one length.
    """

    keys: list[bytes]
    metas: BlockMetas
    damaged: list[bytes]


def unpack_entries(items: Sequence[tuple[bytes, bytes]]) -> list[Entries]:
    """`unpack_entry` for many at once, a microsecond each: one answer for each length that there is."""
    lengths = [len(value) for _, value in items]
    kinds = set(lengths)
    if len(kinds) == 1 and {len(key) for key, _ in items} == {2 * KEY_BYTES}:
        return [_unpack_alike(items, lengths[0])]
    found = []
    for length in kinds:
        same = [item for item in items if len(item[1]) == length]
        usual = all(len(key) == 2 * KEY_BYTES for key, _ in same)
        found.append(
            _unpack_alike(same, length) if usual else Entries([], BlockMetas.of(()), [key for key, _ in same])
        )
    return found


def _unpack_alike(items: Sequence[tuple[bytes, bytes]], length: int) -> Entries:
    """Of keys as long as they should be, and values that have all the same length."""
    keys = [key for key, _ in items]
    token_bytes = length - _HEAD.size - _CHECKSUM.size
    if token_bytes < 0:
        return Entries([], BlockMetas.of(()), keys)
    both = rows_of(b"".join(chain.from_iterable(items)), 2 * KEY_BYTES + length)
    names, rows = both[:, : 2 * KEY_BYTES], both[:, 2 * KEY_BYTES :]
    # hashed as one run of bytes, as they are when they are packed
    hashed = np.ascontiguousarray(both[:, : -_CHECKSUM.size])
    sums = list(map(xxhash.xxh3_64_intdigest, hashed.view(f"V{hashed.shape[1]}").ravel().tolist()))
    head = rows[:, : _HEAD.size].copy().view(_HEAD_DTYPE).ravel()
    sound = _column(rows[:, -_CHECKSUM.size :], "<u8") == np.array(sums, dtype=np.uint64)
    sound &= (head["version"] == VERSION) & (head["token_bytes"] == token_bytes)
    those = slice(None) if sound.all() else sound  # rows by a mask take several times as long
    metas = BlockMetas(
        keys=names[those, KEY_BYTES:].copy(),  # or all of the page would stay in memory
        parent_keys=_bytes_of(head["parent_key"])[those],
        tokens=rows[those, _HEAD.size : _HEAD.size + token_bytes].copy(),
        stored_bytes=head["stored_bytes"][those].astype(np.int64),
        used_ns=head["used_ns"][those].astype(np.int64),
        owners=_bytes_of(head["owner"])[those],
    )
    if sound.all():
        return Entries(keys, metas, [])
    return Entries(list(compress(keys, sound.tolist())), metas, list(compress(keys, (~sound).tolist())))


def _column(rows: NDArray[np.uint8], dtype: str) -> NDArray[np.uint64]:
    return rows.copy().view(dtype).ravel()


def _bytes_of(column: NDArray[np.void]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)


def _checksum(key: bytes, body: bytes) -> bytes:
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(key + body))
