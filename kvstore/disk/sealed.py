"""Encryption at rest: blocks that only a key opens. Needs the package `cryptography`."""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvstore.block import KEY_BYTES, Namespace
from kvstore.codec import as_bytes
from kvstore.disk.entry import Entries
from kvstore.disk.envelope import HEADER_BYTES, NONCE_BYTES, pack_header, verified_header
from kvstore.disk.keyring import Keyring
from kvstore.errors import StoreFailed
from kvstore.metas import BlockMetas
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER, OWNER_BYTES, BlockMeta

_TAG_BYTES: Final = 16
_RECORD, _ENTRY = b"kvtide record", b"kvtide entry"
"""What is sealed as one is not opened as the other."""


class Sealed:
    """AES-256-GCM, each owner's blocks under a key of their own; the names of blocks are keyed digests of their keys.

    Without a key one sees how many blocks there are, their sizes and times, which model's they are, and which of them
    belong to one owner, but not to whom.
    """

    extra_bytes: Final = HEADER_BYTES + _TAG_BYTES
    sealed: Final = True

    def __init__(self, namespace: Namespace, keyring: Keyring) -> None:
        self._digest, self._keyring = namespace.digest, keyring

    def entry_key(self, key: bytes) -> bytes:
        return self._digest + self.name(key)

    def name(self, key: bytes) -> bytes:
        return self._keyring.hidden(key)

    def is_owners(self, rests: BlockMeta, owner: bytes) -> bool:
        return self._keyring.is_owners(rests.owner, owner)

    def record(self, record: bytes | memoryview, owner: bytes) -> bytes:
        name, key = self._keyring.key_for(owner)
        nonce = os.urandom(NONCE_BYTES)
        sealed = key.encrypt(nonce, record, _RECORD)
        return pack_header(name, nonce, sealed) + sealed

    def opened(self, rests: Any) -> Any | MissReason:
        source = as_bytes(rests)
        header = verified_header(source)
        if isinstance(header, MissReason):
            return header
        try:
            key = self._keyring.key_of(header.name)
        except StoreFailed:
            return MissReason.READ_FAILED  # this owner's blocks, and nobody else's
        if key is None:
            return MissReason.ABSENT  # erased
        record = _opened(key, header.nonce, source[HEADER_BYTES:].data, _RECORD)
        return MissReason.DAMAGED_CHECKSUM if record is None else record

    def entry(self, meta: BlockMeta) -> BlockMeta:
        name, key = self._keyring.key_for(meta.owner)
        nonce = os.urandom(NONCE_BYTES)
        told = b"".join((meta.key, meta.parent_key, meta.owner, meta.tokens))
        sealed = key.encrypt(nonce, told, _ENTRY)
        return replace(meta, parent_key=bytes(KEY_BYTES), owner=name, tokens=nonce + sealed)

    def opened_entries(self, rests: BlockMetas) -> BlockMetas:
        return BlockMetas.of(meta for one in rests if (meta := self._opened_entry(one)) is not None)

    def _opened_entry(self, rests: BlockMeta) -> BlockMeta | None:
        key = self._keyring.key_of(rests.owner)
        if key is None:
            return None
        told = _opened(key, rests.tokens[:NONCE_BYTES], rests.tokens[NONCE_BYTES:], _ENTRY)
        if told is None:
            return None
        own, told = told[:KEY_BYTES], told[KEY_BYTES:]
        parent_key, told = told[:KEY_BYTES], told[KEY_BYTES:]
        return replace(
            rests, key=own, parent_key=parent_key, owner=told[:OWNER_BYTES], tokens=told[OWNER_BYTES:]
        )

    def lost(self, pages: Iterable[Entries]) -> tuple[list[bytes], set[bytes]]:
        @cache  # what has no key is looked for on the disk each time
        def is_erased(name: bytes) -> bool:
            return self._keyring.key_of(name) is None

        lost, names = list[bytes](), set[bytes]()
        for page in pages:
            owners = list(map(np.ndarray.tobytes, page.metas.owners))
            names.update(owners)
            lost += [key for key, owner in zip(page.keys, owners, strict=True) if is_erased(owner)]
        return lost, names

    def destroy(self, owner: bytes) -> None:
        self._keyring.destroy(owner)

    def forget_all_but(self, owners: Iterable[bytes], records: Iterable[Any]) -> None:
        headers = [verified_header(as_bytes(record)) for record in records]
        named = (header.name for header in headers if not isinstance(header, MissReason))
        # what is nobody's in particular, such as baselines, is not among the entries
        self._keyring.forget_all_but({*owners, *named}, NO_OWNER)


def _opened(key: AESGCM, nonce: bytes, sealed: Any, kind: bytes) -> bytes | None:
    """What was sealed; None if it was not this."""
    try:
        return key.decrypt(nonce, sealed, kind)
    except (InvalidTag, ValueError):  # the latter for a nonce that was cut
        return None
