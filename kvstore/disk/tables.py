"""The two environments of a disk store, kept in step.

Records rest in one, what a scan tells of them in the other, so that a scan reads no payload and damage to one
tree is not damage to both. There is no transaction over two environments; the order of commits makes up for
it:

    put       record, then entry          a crash between them leaves a record without an entry: an orphan
    delete    entry, then record          likewise
    touch     entries alone
    open      after a crash, keys are compared, and whatever has no counterpart is deleted
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, mmap
from typing import Final

import lmdb
import xxhash

from kvstore.disk.directory import Directory
from kvstore.disk.entry import Entries, namespace_of, pack_entry, unpack_entries, unpack_entry
from kvstore.disk.environment import (
    DataFile,
    Unsound,
    close_environment,
    items,
    lmdb_errors,
    open_environment,
    unpaired,
)
from kvstore.disk.payload_file import Examine, PayloadFile
from kvstore.disk.runs import Prover
from kvstore.errors import StoreError, StoreFull
from kvstore.reasons import MissReason
from kvstore.store import BlockMeta

_KEYS_PER_COMMIT: Final = 4096  # LMDB bounds the pages that one transaction may change


@dataclass(frozen=True, slots=True)
class Usage:
    """What one namespace holds."""

    blocks: int = 0
    stored_bytes: int = 0


class Tables:
    """Records and entries by entry key, of all namespaces in the directory.

    Only the writer's thread may call what changes something (`put`, `delete`, `touch`, `sweep`, `sync`); any thread
    may read. All raise StoreFailed if the medium fails; its subclass Unsound if nothing here should be used
    any more.
    """

    def __init__(
        self,
        directory: Directory,
        map_bytes: tuple[int, int],
        *,
        value_bytes: int = 0,
        num_calls: int = 1,
        strict: bool = False,
    ) -> None:
        """`map_bytes`: the most that the files of records and of entries may become. `value_bytes`, `num_calls`: see PayloadFile."""
        self._directory = directory
        with ExitStack() as opened:
            self.records = open_environment(directory.payload, map_bytes[0], strict=strict, readahead=False)
            opened.callback(close_environment, self.records)
            self.entries = open_environment(directory.meta, map_bytes[1], strict=strict, readahead=True)
            opened.callback(close_environment, self.entries)
            self._files: list[DataFile] = []
            for environment in directory.environments:
                self._files.append(DataFile(environment))
                opened.callback(self._files[-1].close)
            self._payload = PayloadFile(self.records, value_bytes=value_bytes, num_calls=num_calls)
            opened.callback(self._payload.close)
            self._opened = opened.pop_all()
        self.usage: dict[bytes, Usage] = {}
        """By namespace digest. Values are replaced, never changed: any thread may look, and copies it to go through it."""
        self._unsettled: set[bytes] = set()
        """Keys of which one environment may have what the other has not: the disk was full in between."""

    def check_files(self) -> None:
        """Raise Unsound if a part of a file is gone: to be called before the environments are used."""
        for file in self._files:
            file.check()

    def make_ready(self) -> None:
        """Have reads find what they need."""
        self._payload.make_ready()

    def examined(
        self, keys: Sequence[bytes], examine: Examine, prover: Prover | None = None
    ) -> list[MissReason | None]:
        """What they say of the record under each key; ABSENT where there is none. All are of one moment."""
        # Examined before the transaction ends: after it, the bytes may be those of reused pages.
        with self.records.begin(buffers=True) as txn:
            return self._payload.examined(txn, keys, examine, prover)

    def put(self, batch: Mapping[bytes, tuple[BlockMeta, bytes | memoryview]]) -> None:
        """Write records and their entries: all of them, or nothing if this raises; of what was to be replaced
        nothing may be left then.
        """
        self._settle()
        with lmdb_errors("writing records"):
            self._directory.mark_unclean()
        with lmdb_errors("writing records", self._directory.root), self.records.begin(write=True) as txn:
            for key, (_, record) in batch.items():
                txn.put(key, record)
        replaced = []
        with self._second_step("writing entries", batch), self.entries.begin(write=True) as txn:
            for key, (meta, _) in batch.items():
                old = txn.replace(key, pack_entry(key, meta))
                if old is not None:
                    replaced.append((key, old))
        self._account(replaced, [(key, meta) for key, (meta, _) in batch.items()])

    def delete(self, keys: Sequence[bytes]) -> None:
        """Delete what there is under these keys. Raises StoreFull if the disk has no room even for that."""
        self._settle()
        self._delete(keys)

    def touch(self, used_ns: Mapping[bytes, int]) -> None:
        """Have the entries under these keys tell another time, if they are there; records are as they were."""
        self._settle()  # what has no record must not be given another entry
        for keys in _commits(list(used_ns)):
            with lmdb_errors("noting uses"):
                self._directory.mark_unclean()
            with lmdb_errors("noting uses", self._directory.root), self.entries.begin(write=True) as txn:
                for key in keys:
                    value = txn.get(key)
                    meta = None if value is None else unpack_entry(key, value)
                    if meta is not None:
                        txn.put(key, pack_entry(key, replace(meta, used_ns=used_ns[key])))

    @property
    def map_bytes(self) -> tuple[int, int]:
        """The most that the files of records and of entries may become."""
        records, entries = (int(each.info()["map_size"]) for each in (self.records, self.entries))
        return records, entries

    def grow(self, map_bytes: tuple[int, int]) -> None:
        """Let the files become larger, where these are more than they may now. Nobody may read meanwhile.

        LMDB maps the files elsewhere then. Raises StoreFailed if there is no room for that, and nothing has changed.
        """
        both = zip((self.records, self.entries), map_bytes, strict=True)
        larger = [(each, num_bytes) for each, num_bytes in both if num_bytes > each.info()["map_size"]]
        # An environment that loses its map is lost: first see whether there is room, for both at once.
        with ExitStack() as reserved, lmdb_errors("making room for a larger map"):
            for _, num_bytes in larger:
                room = mmap(-1, num_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS, prot=PROT_READ)
                reserved.callback(room.close)
        for environment, num_bytes in larger:
            try:
                environment.set_mapsize(num_bytes)
            except lmdb.Error as error:
                raise Unsound(f"growing the map: {error}") from error

    def overwrite(self, key: bytes, record: bytes) -> None:
        """Replace a record and leave its entry as it is, to play damage. KeyError if there is none."""
        with lmdb_errors("overwriting a record"), self.records.begin(write=True) as txn:
            if txn.get(key) is None:
                raise KeyError(key.hex())
            txn.put(key, record)

    def stored_bytes(self, keys: Iterable[bytes]) -> int:
        """What the records that are there under these keys take, all together."""
        total = 0
        with lmdb_errors("reading entries"), self.entries.begin() as txn:
            for key in keys:
                value = txn.get(key)
                meta = None if value is None else unpack_entry(key, value)
                total += 0 if meta is None else meta.stored_bytes
        return total

    def used_ns(self, key: bytes) -> int | None:
        """When the block of an entry key was used last; None if there is none."""
        with lmdb_errors("reading entries"), self.entries.begin() as txn:
            value = txn.get(key)
        meta = None if value is None else unpack_entry(key, value)
        return None if meta is None else meta.used_ns

    def absent(self, keys: Iterable[bytes]) -> list[bytes]:
        """Of these entry keys, those that have no entry."""
        with lmdb_errors("reading entries"), self.entries.begin() as txn:
            return [key for key in keys if txn.get(key) is None]

    def pages(self, prefix: bytes = b"") -> Iterator[Entries]:
        """The entries whose keys start with `prefix`, some at a time."""
        for batch in items(self.entries, prefix):
            yield from unpack_entries(batch)

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, BlockMeta | None]]:
        """Entry keys and entries; None for an entry that is damaged."""
        for page in self.pages(prefix):
            yield from zip(page.keys, page.metas, strict=True)
            yield from ((key, None) for key in page.damaged)

    def sweep(self) -> int:
        """Delete what has no counterpart in the other environment. Answers how many there were."""
        only_records, only_entries = unpaired(self.records, self.entries)
        if only_records or only_entries:
            self.delete(only_records + only_entries)
        return len(only_records) + len(only_entries)

    def recount(self) -> None:
        """Count everything anew, and delete records whose entry is damaged."""
        self.usage, damaged = self.counted()
        for some in _commits(damaged):
            self._remove(some)

    def counted(self) -> tuple[dict[bytes, Usage], list[bytes]]:
        """What the entries add up to, by namespace digest, and the keys of those that are damaged and tell nothing."""
        usage: dict[bytes, Usage] = {}
        damaged: list[bytes] = []
        for page in self.pages():
            damaged += page.damaged
            _add_all(usage, page)
        return usage, damaged

    def count(self) -> None:
        """Know what there is: as the mark of a clean directory says, to which nothing has been written since; or counted."""
        counts = self._directory.counts() if self._directory.clean else None
        usage = None if counts is None else _unpacked_usage(counts)
        if usage is None:
            self.recount()
        else:
            self.usage = usage

    def sync(self) -> None:
        """Bring everything to the disk, and say so in the directory unless the environments are out of step.

        Does nothing if it is there.
        """
        if self._directory.clean:
            return
        with suppress(StoreFull):
            self._settle()
        # After a failed sync the system may call pages clean that never reached the disk: another one would
        # lie.
        try:
            with lmdb_errors("syncing"):
                # Records first: an entry must not outlive its record.
                self.records.sync(True)
                self.entries.sync(True)
        except StoreError as error:
            raise Unsound(str(error)) from error
        if not self._unsettled:  # else the next opening must look for what has no counterpart
            with lmdb_errors("marking the directory clean"):
                self._directory.mark_clean(_packed_usage(self.usage))

    def check(self) -> None:
        """Raise AssertionError unless the two environments hold the same keys and the counts are right."""
        self._settle()
        only_records, only_entries = unpaired(self.records, self.entries)
        assert not only_records, f"{len(only_records)} records have no entry"
        assert not only_entries, f"{len(only_entries)} entries have no record"
        usage, damaged = self.counted()
        assert not damaged, f"the entries under {[key.hex() for key in damaged]} are damaged"
        counted = {digest: used for digest, used in self.usage.items() if used != Usage()}
        assert usage == counted, f"the entries add up to {usage}, but {counted} was counted"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left, of any namespace."""
        return not self._unsettled and not any(used.blocks for used in self.usage.values())

    def close(self) -> None:
        self._opened.close()

    def _settle(self) -> None:
        """Delete what a full disk has left in one environment only."""
        if self._unsettled:
            self._delete(list(self._unsettled))

    def _delete(self, keys: Sequence[bytes]) -> None:
        for some in _commits(keys):
            self._account(self._remove(some), [])

    def _remove(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Delete without counting, in one commit to each environment. Answers the entries that were there."""
        with lmdb_errors("deleting entries"):
            self._directory.mark_unclean()
        with lmdb_errors("deleting entries", self._directory.root), self.entries.begin(write=True) as txn:
            removed = [(key, old) for key in keys if (old := txn.pop(key)) is not None]
        try:
            with self._second_step("deleting records", keys), self.records.begin(write=True) as txn:
                for key in keys:
                    txn.delete(key)
        except StoreFull:
            self._account(removed, [])
            raise
        self._unsettled.difference_update(keys)
        return removed

    @contextmanager
    def _second_step(self, doing: str, keys: Iterable[bytes]) -> Iterator[None]:
        """As `lmdb_errors`, where failing leaves the environments out of step with each other: for these keys
        if the disk is full, and who knows for which otherwise.
        """
        try:
            with lmdb_errors(doing, self._directory.root):
                yield
        except StoreFull:
            self._unsettled.update(keys)
            raise
        except StoreError as error:
            raise Unsound(str(error)) from error

    def _account(self, gone: Sequence[tuple[bytes, bytes]], come: Sequence[tuple[bytes, BlockMeta]]) -> None:
        metas = [(key, unpack_entry(key, value)) for key, value in gone]
        if any(meta is None for _, meta in metas):  # damaged: what it took can no longer be known
            self.recount()
            return
        for key, meta in metas:
            assert meta is not None
            _add(self.usage, key, -1, -meta.stored_bytes)
        for key, meta in come:
            _add(self.usage, key, 1, meta.stored_bytes)


def _packed_usage(usage: Mapping[bytes, Usage]) -> bytes:
    """A line for each namespace, and a checksum of them all."""
    lines = [f"{digest.hex()} {used.blocks} {used.stored_bytes}" for digest, used in usage.items()]
    body = "".join(f"{line}\n" for line in lines)
    return f"{body}{xxhash.xxh3_64_hexdigest(body.encode())}\n".encode()


def _unpacked_usage(counts: bytes) -> dict[bytes, Usage] | None:
    """None for what was not written as it is."""
    try:
        *lines, _ = counts.decode().splitlines()
        rows = [line.split(" ") for line in lines]
        usage = {bytes.fromhex(digest): Usage(int(blocks), int(size)) for digest, blocks, size in rows}
    except ValueError:
        return None
    return usage if _packed_usage(usage) == counts else None


def _add_all(usage: dict[bytes, Usage], page: Entries) -> None:
    """Count entries, which are in order."""
    start = 0
    for _, group in groupby(page.keys, namespace_of):
        num_blocks = sum(1 for _ in group)
        stored_bytes = int(page.metas.stored_bytes[start : start + num_blocks].sum())
        _add(usage, page.keys[start], num_blocks, stored_bytes)
        start += num_blocks


def _commits(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for begin in range(0, len(keys), _KEYS_PER_COMMIT):
        yield keys[begin : begin + _KEYS_PER_COMMIT]


def _add(usage: dict[bytes, Usage], key: bytes, blocks: int, stored_bytes: int) -> None:
    used = usage.get(namespace_of(key), Usage())
    usage[namespace_of(key)] = Usage(used.blocks + blocks, used.stored_bytes + stored_bytes)
