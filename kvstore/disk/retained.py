"""What users asked a disk store to keep: named caches, how long blocks are to live, settings. A small table of its own.

    PATH/v1/retained/    LMDB, there once something was asked for; each commit reaches the disk before it returns

    n <namespace digest> <key>     a name: version, checksum, sealed or not: digest, key, owner, sizes, times, token ids, content
    s <namespace digest>           settings: version, checksum, sealed or not: digest, content
    t <namespace digest> <block>   a term: version, checksum, seconds, whether the TTL counts too, and a rank

In the table keys are what the form of the directory calls them: of what is encrypted nobody can tell by trying which names there are.

It does not share a file with blocks: where those are damaged and start empty, names stay, and say what they have lost.
"""

import logging
import shutil
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from kvstore.block import KEY_BYTES, BlockKey, chain_key, root_key_of
from kvstore.disk.directory import ASIDE, Directory, sync_path
from kvstore.disk.environment import (
    Unsound,
    close_environment,
    items,
    lmdb_errors,
    open_environment,
)
from kvstore.disk.form import Form
from kvstore.disk.verification import problems_found_here
from kvstore.errors import StoreFailed
from kvstore.reasons import MissReason
from kvstore.steering import StoredName, StoredTerm
from kvstore.store import NO_OWNER, OWNER_BYTES

VERSION: Final = 1
_MAP_BYTES: Final = 4 << 30  # of addresses: the file is as large as what is in it
_KEYS_PER_COMMIT: Final = 4096
_NAME, _SETTINGS, _TERM = b"n", b"s", b"t"
_ENVELOPE: Final = struct.Struct("<IQ")
_HEAD: Final = struct.Struct(f"<{KEY_BYTES}s{KEY_BYTES}s{OWNER_BYTES}sIIIQQ")
_TERM_BODY: Final = struct.Struct("<d?b")

_log = logging.getLogger(__name__)


class Retained:
    """Of all namespaces in the directory. Only the writer's thread may change something; any thread may read.

    All raise StoreFailed if the medium fails, and StoreFull if it has no room: then nothing has changed.
    """

    def __init__(self, directory: Directory, form: Form, digest: bytes) -> None:
        """`digest`: of the store's own namespace. What is there and damaged is set aside, and said."""
        self._path, self._form, self._digest = directory.retained, form, digest
        self._environment: lmdb.Environment | None = None
        self._has_terms = False
        if self._path.exists():
            self._environment = self._opened()
            self._has_terms = any(True for _ in self._rows(_TERM))

    def _opened(self) -> lmdb.Environment:
        if (self._path / "data.mdb").exists() and (found := problems_found_here([self._path])):
            with lmdb_errors("setting aside what is retained"):
                aside = self._path.with_name(f"{ASIDE}{self._path.name}")
                if aside.exists():
                    shutil.rmtree(aside)
                self._path.replace(aside)
            facts = {"path": self._path, "error": found[0]}
            _log.warning("%(path)s is damaged and starts empty: %(error)s", facts, extra=facts)
        return self._connected()

    def _connected(self) -> lmdb.Environment:
        with _sound():
            environment = open_environment(self._path, _MAP_BYTES, strict=True, readahead=True)
        try:
            with lmdb_errors(f"syncing {self._path}"):
                # LMDB brings to the disk what is in the file, not that there is one
                sync_path(self._path)
                sync_path(self._path.parent)
        except BaseException:
            close_environment(environment)
            raise
        return environment

    # --- names ----------------------------------------------------------------------------------------------------

    def names(self) -> list[StoredName]:
        """Those of the store's own namespace that can be read."""
        return list(self._names(self._digest))

    def _names(self, digest: bytes) -> Iterable[StoredName]:
        for key, value in self._rows(_NAME + digest):
            name = self._unpacked(key, value)
            if not isinstance(name, MissReason):
                yield name

    def put_name(self, name: StoredName) -> None:
        """Write a name, in place of one with the same key; it has reached the disk when this returns."""
        head = _HEAD.pack(
            self._digest,
            name.key,
            name.owner,
            name.first_block,
            name.block_bytes,
            len(name.tokens),
            name.since_ns,
            name.ttl_ns or 0,
        )
        key = _NAME + self._form.entry_key(name.key)
        body = bytes(self._form.record(head + name.tokens + name.content, name.owner))
        self._write({key: _enveloped(key, body)})

    def name_bytes(self, key: bytes) -> tuple[int, int]:
        """What the own name with this key takes, and what all others do, of all namespaces."""
        row = _NAME + self._form.entry_key(key)
        own = others = 0
        for each, value in self._rows(_NAME):
            if each == row:
                own = len(value)
            else:
                others += len(value)
        return own, others

    def delete_name(self, key: bytes) -> None:
        """Forget a name, if it is there."""
        if self._environment is not None:
            self._write({_NAME + self._form.entry_key(key): None})

    def _unpacked(self, key: bytes, value: bytes) -> StoredName | MissReason:
        body = _opened_envelope(key, value)
        if body is None:
            return MissReason.DAMAGED_CHECKSUM
        rests = self._form.opened(body)
        if isinstance(rests, MissReason):
            return rests
        told = bytes(rests)
        if len(told) < _HEAD.size:
            return MissReason.DAMAGED_LENGTH
        digest, own, owner, first_block, block_bytes, num_bytes, since_ns, ttl_ns = _HEAD.unpack_from(told)
        # what is sealed as one name is not opened as another
        if key != _NAME + digest + self._form.name(own):
            return MissReason.WRONG_IDENTITY
        tokens, content = told[_HEAD.size :][:num_bytes], told[_HEAD.size + num_bytes :]
        return StoredName(own, owner, first_block, tokens, block_bytes, since_ns, ttl_ns or None, content)

    def kept_of_others(self, now_ns: int, used_ns: Callable[[bytes], int | None]) -> set[bytes]:
        """The entry keys of blocks that named caches of other namespaces hold, and whose time is not over.

        `used_ns` says when a block was used last, by its entry key.
        """
        kept: set[bytes] = set()
        for _, chain, is_over in self._others(now_ns, used_ns):
            if not is_over:
                kept.update(chain)
        return kept

    def forget_over(self, now_ns: int, used_ns: Callable[[bytes], int | None]) -> None:
        """Forget names of other namespaces whose time is over: an engine may never come back for them."""
        doomed = dict.fromkeys(key for key, _, is_over in self._others(now_ns, used_ns) if is_over)
        if doomed:
            self._write(doomed)

    def _others(
        self, now_ns: int, used_ns: Callable[[bytes], int | None]
    ) -> Iterator[tuple[bytes, list[bytes], bool]]:
        """Of each name of another namespace its own key here, its blocks' entry keys, and whether its time is over."""
        for digest in {key[1 : 1 + KEY_BYTES] for key, _ in self._rows(_NAME)} - {self._digest}:
            for name in self._names(digest):
                chain = _entry_keys(self._form, digest, name)
                last_ns = max(name.since_ns, (used_ns(chain[-1]) if chain else None) or 0)
                is_over = name.ttl_ns is not None and last_ns + name.ttl_ns <= now_ns
                yield _NAME + digest + self._form.name(name.key), chain, is_over

    def erase(self, owner: bytes) -> None:
        """Forget what is an owner's, of all namespaces, and what nobody can read."""
        doomed: dict[bytes, None] = {}
        for key, value in self._rows(_NAME):
            name = self._unpacked(key, value)
            # of another: this owner's key is destroyed, and not unreadable
            if name is MissReason.READ_FAILED:
                continue
            if isinstance(name, MissReason) or name.owner == owner:
                doomed[key] = None
        if doomed:
            self._write(doomed)

    # --- settings -------------------------------------------------------------------------------------------------

    def settings(self) -> bytes | None:
        """What the store's own namespace was told last; None for nothing, or nothing that can be read."""
        for key, value in self._rows(_SETTINGS + self._digest):
            body = _opened_envelope(key, value)
            told = MissReason.DAMAGED_CHECKSUM if body is None else self._form.opened(body)
            if not isinstance(told, MissReason) and bytes(told[:KEY_BYTES]) == self._digest:
                return bytes(told[KEY_BYTES:])
        return None

    def put_settings(self, content: bytes | None) -> None:
        """Write them in place of what there was, None for none; they have reached the disk when this returns. Nobody's in particular."""
        key = _SETTINGS + self._digest
        if content is not None:
            body = bytes(self._form.record(self._digest + content, NO_OWNER))
            self._write({key: _enveloped(key, body)})
        elif self._environment is not None:
            self._write({key: None})

    def bodies(self) -> Iterator[bytes]:
        """Names and settings of all namespaces as they rest, also those that are damaged or of another version."""
        for prefix in (_NAME, _SETTINGS):
            for _, value in self._rows(prefix):
                yield value[_ENVELOPE.size :]

    # --- terms ----------------------------------------------------------------------------------------------------

    def put_terms(self, terms: Mapping[BlockKey, StoredTerm]) -> None:
        """Note how long blocks are to live after their last use, and their ranks."""
        rows: dict[bytes, bytes | None] = {}
        for block, term in terms.items():
            key = _TERM + self._form.entry_key(block)
            rows[key] = _enveloped(key, _TERM_BODY.pack(*term))
        self._write(rows)
        self._has_terms = True

    def terms(self, keys: Sequence[BlockKey]) -> dict[BlockKey, StoredTerm]:
        """Of these blocks, which are all that the namespace has, the terms of those that have one."""
        if not self._has_terms:
            return {}
        prefix = _TERM + self._digest
        rows = {key[1:]: _opened_envelope(key, value) for key, value in self._rows(prefix)}
        found = {}
        for key in keys:
            body = rows.pop(self._form.entry_key(key), None)
            if body is not None:
                # there may be no rank yet in it, which is 0, or what a later program knows
                found[key] = StoredTerm(*_TERM_BODY.unpack_from(body.ljust(_TERM_BODY.size, b"\0")))
        return found

    def forget(self, entry_keys: Sequence[bytes]) -> None:
        """Blocks are deleted, and so are their terms."""
        if self._has_terms and entry_keys:
            self._write({_TERM + key: None for key in entry_keys})

    def sweep(self, absent: Callable[[Collection[bytes]], Collection[bytes]]) -> None:
        """Forget the terms of blocks that are gone, of all namespaces: a crash may have left some, and who deletes another
        namespace's blocks does not look here. `absent`: which of these entry keys there are not.
        """
        keys = [key[len(_TERM) :] for key, _ in self._rows(_TERM)] if self._has_terms else []
        for begin in range(0, len(keys), _KEYS_PER_COMMIT):
            self.forget(list(absent(keys[begin : begin + _KEYS_PER_COMMIT])))

    # --- both -----------------------------------------------------------------------------------------------------

    def _rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        if self._environment is not None:
            with _sound():
                for batch in items(self._environment, prefix):
                    yield from batch

    def _write(self, rows: Mapping[bytes, bytes | None]) -> None:
        """All of them or none."""
        if self._environment is None:
            self._environment = self._connected()
        with (
            _sound(),
            lmdb_errors("writing what is retained", self._path),
            self._environment.begin(write=True) as txn,
        ):
            for key, value in rows.items():
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)

    def check(self) -> None:
        """Raise AssertionError unless every row is what was written, under its own key."""
        damaged = [key.hex() for key, value in self._rows(b"") if _opened_envelope(key, value) is None]
        assert not damaged, f"what is retained under {damaged} is damaged"
        for key, _ in self._rows(_TERM):
            assert len(key) == 1 + 2 * KEY_BYTES, "a term is not a block's"

    def close(self) -> None:
        """Let go of the files. Safe to call twice."""
        if self._environment is not None:
            with suppress(lmdb.Error):
                close_environment(self._environment)
            self._environment = None


@contextmanager
def _sound() -> Iterator[None]:
    """The blocks beside are not damaged by what is wrong here."""
    try:
        yield
    except Unsound as error:
        raise StoreFailed(str(error)) from error


def counted(path: Path) -> tuple[int, int]:
    """How many names there are in a table, of all namespaces, and how many of its rows are damaged. Nobody may have it open, and
    it must be sound.
    """
    if not path.exists():
        return 0, 0
    environment = open_environment(path, _MAP_BYTES, strict=True, readahead=True)
    try:
        rows = [row for batch in items(environment) for row in batch]
    finally:
        close_environment(environment)
    num_damaged = sum(_opened_envelope(key, value) is None for key, value in rows)
    return sum(key.startswith(_NAME) for key, _ in rows), num_damaged


def _entry_keys(form: Form, digest: bytes, name: StoredName) -> list[bytes]:
    keys, key = [], root_key_of(digest)
    for at in range(0, len(name.tokens), name.block_bytes):
        key = chain_key(key, name.tokens[at : at + name.block_bytes])
        keys.append(digest + form.name(key))
    return keys


def _enveloped(key: bytes, body: bytes) -> bytes:
    return _ENVELOPE.pack(VERSION, xxhash.xxh3_64_intdigest(key + body)) + body


def _opened_envelope(key: bytes, value: bytes) -> bytes | None:
    """The body, unless it is another's, damaged, or of a version that this program does not know."""
    if len(value) < _ENVELOPE.size:
        return None
    version, checksum = _ENVELOPE.unpack_from(value)
    body = value[_ENVELOPE.size :]
    return body if version == VERSION and checksum == xxhash.xxh3_64_intdigest(key + body) else None
