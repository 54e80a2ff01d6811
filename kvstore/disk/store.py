"""`Store` on a local disk."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from kvstore.baseline import LEARN_TOKENS, Baselines
from kvstore.block import BlockKey, BlockLayout, Namespace
from kvstore.closing import Closing
from kvstore.disk.allocator import keep_freed_memory
from kvstore.disk.baselines import BaselineFiles
from kvstore.disk.changes import Batch, Changes
from kvstore.disk.directory import Directory
from kvstore.disk.door import Door
from kvstore.disk.encoding import Encoding
from kvstore.disk.entry import unpack_entries
from kvstore.disk.environment import lmdb_errors, page_rounded, some_items
from kvstore.disk.form import form_of
from kvstore.disk.limits import Limits
from kvstore.disk.master_key import MASTER_KEY_BYTES
from kvstore.disk.namespaces import FactFiles, found_elsewhere, infos
from kvstore.disk.quarantine import Quarantine, Quarantined
from kvstore.disk.reading import Reading
from kvstore.disk.retained import Retained
from kvstore.disk.room import Room
from kvstore.disk.tables import Tables, Usage
from kvstore.disk.worth import Rates, measured
from kvstore.errors import StoreError, StoreFailed
from kvstore.metas import BlockMetas
from kvstore.raw import RawRecords
from kvstore.reasons import MissReason
from kvstore.record import RecordFormat
from kvstore.reports import NamespaceInfo, Verified
from kvstore.steering import UNCHANGED, Elsewhere, StoredName, StoredTerm, Unchanged
from kvstore.store import (
    DURABILITIES,
    BlockMeta,
    BlockRef,
    Compression,
    Durability,
    ReadOutcome,
    StoreStats,
    check_compression,
    check_owner,
    check_times,
)
from kvstore.verify import verify

if TYPE_CHECKING:
    from kvstore.store import Readable, Writable

T = TypeVar("T")

_GIB: Final = 1 << 30


class LmdbStore(Closing):
    """Blocks in LMDB, in the directory `path`, which it has for itself while it is open.

    Several namespaces may rest in one directory, opened one at a time. The capacity covers all of them: on
    opening, the others are cut, oldest blocks first, to at most half of it; with `ttl_s`, those of their blocks
    that nobody has used for so long are deleted before (of its own blocks a store deletes none by itself). Puts are refused with StoreFull
    when records would take more than `capacity_bytes`, or when the file system would have less than
    `min_free_bytes` left. The files themselves become larger, within bounds: `capacity_within` says which
    capacity keeps them within a size.

    A put is visible when `put_many` returns, and survives a crash of the process. With `durability` "strict" it
    survives a loss of power then as well. With "relaxed" it does after the next sync: one comes by itself
    `sync_interval_s` after a write, and one with `close`. If power is lost before, the trees are checked at the
    next opening, and a store whose trees are damaged starts empty.

    If LMDB itself fails, the call raises StoreFailed, what it held is set aside, and the store goes on empty:
    `StoreStats.fresh_starts` counts that. While the disk does not even allow that, every call raises
    StoreFailed, and tries again.

    When the last block of all is deleted, the files are as well: nothing of it is left in free pages, and their
    space is the file system's again.

    With a `master_key` (32 bytes) blocks are encrypted, each owner's with a key of their own, which lies beside them and is
    encrypted itself; `erase` destroys it. A directory is encrypted from its first opening on or never: StoreFailed if it
    is not as it is wanted here. See docs/privacy.md.

    Blocks are encoded as `compression` says; "auto" is "on" until the files are large enough to measure what the disk gives
    to `read_threads` threads (docs/durability.md). What all blocks of a model have in common is learned from the first
    ones that are everybody's, `learn_tokens` of them, and kept in files beside (kvstore.baseline).

    Records are packed and unpacked on the calling threads, so several threads read and compress side by side;
    one thread of the store's own does all writing. Raises StoreLocked if another store has the directory,
    StoreFailed if it cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        namespace: Namespace,
        layout: BlockLayout,
        capacity_bytes: int,
        min_free_bytes: int = _GIB,
        durability: Durability = "relaxed",
        master_key: bytes | None = None,
        sync_interval_s: float = 5.0,
        ttl_s: float | None = None,
        compression: Compression = "auto",
        read_threads: int = 2,
        learn_tokens: Sequence[int] = LEARN_TOKENS,
        now_ns: Callable[[], int] = time.time_ns,
        free_bytes: Callable[[], int] | None = None,
        rates: Callable[[], Rates | None] | None = None,
    ) -> None:
        limits = Limits(capacity_bytes=capacity_bytes, min_free_bytes=min_free_bytes, ttl_s=ttl_s)
        _check_options(durability, master_key, sync_interval_s, compression, read_threads)
        baselines = Baselines(layout, learn_tokens)
        self._format = RecordFormat(namespace, layout, encodes=compression != "off", baselines=baselines)
        self._now_ns = now_ns
        self._damaged: Counter[MissReason] = Counter()
        self._lock = threading.Lock()  # readers find damage at the same time
        self._door = Door(f"the store at {os.fspath(path)}")
        self._closing = threading.Event()
        keep_freed_memory()
        with ExitStack() as resources:
            self._directory = Directory(path)
            resources.callback(self._directory.close)
            try:
                self._form = form_of(self._directory, namespace, master_key)
            except StoreFailed:
                self._directory.leave_as_found()
                raise
            self._quarantine = Quarantine(self._directory.quarantine)
            self._fact_files = FactFiles(self._directory.namespaces)
            self._encoding = Encoding(
                self._format,
                BaselineFiles(self._directory.baselines, namespace.digest, self._form),
                rates=(rates or partial(measured, self._directory.payload / "data.mdb", layout, read_threads))
                if compression == "auto"
                else None,
                read_threads=read_threads,
            )
            self._room = Room(limits, free_bytes or self._directory.free_bytes)
            self._retained = Retained(self._directory, self._form, namespace.digest)
            resources.callback(self._retained.close)
            self._changes = Changes(
                namespace=namespace,
                directory=self._directory,
                form=self._form,
                encoding=self._encoding,
                room=self._room,
                retained=self._retained,
                quarantine=self._quarantine,
                fact_files=self._fact_files,
                now_ns=now_ns,
                strict=durability == "strict",
                sync_interval_s=sync_interval_s,
                value_bytes=self.max_stored_bytes,
                read_threads=read_threads,
            )
            self._writer = self._changes.writer
            resources.callback(self._writer.close)
            self._writer.run(self._changes.open)
            self.opening = self._changes.opening
            self._lender, self._recovery = self._changes.lender, self._changes.recovery
            self._reading = Reading(self._format, self._form, self._encoding, self._recovery, self._writer)
            resources.callback(self._lender.close)
            # Last in, first out: the writer ends, then its environments close, then others get the lock.
            resources.callback(self._writer.close)
            self._resources = resources.pop_all()

    @property
    def namespace(self) -> Namespace:
        return self._format.namespace

    @property
    def layout(self) -> BlockLayout:
        return self._format.layout

    @property
    def capacity_bytes(self) -> int:
        """What records of all namespaces together may take."""
        return self._room.limits.capacity_bytes

    @property
    def min_free_bytes(self) -> int:
        """What the file system keeps."""
        return self._room.limits.min_free_bytes

    @property
    def max_stored_bytes(self) -> int:
        return page_rounded(self._format.max_record_bytes + self._form.extra_bytes)

    def get_many(self, refs: Sequence[BlockRef], out: "Sequence[Writable]") -> list[ReadOutcome]:
        buffers = self._format.check_out(refs, out)
        with self._door.enter():
            self._recovery.check_sound()
            outcomes, damaged = self._reading.read(refs, buffers)
            if damaged:
                with self._lock:
                    self._damaged.update(found.reason for found in damaged)
                # Should this fail, the record stays, and the next reader finds it damaged again.
                with suppress(StoreError):
                    evidence = self._write(lambda: self._changes.take_out(damaged))
                    self._writer.post(lambda: self._changes.put_aside(evidence))  # nobody waits for it
        return outcomes

    def put_many(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> list[int]:
        if len(refs) != len(data):
            raise ValueError(f"{len(refs)} blocks but {len(data)} buffers")
        with self._door.enter():
            batch = self._pack(refs, data)
            if batch:
                self._write(lambda: self._changes.put(batch))
            if self._encoding.is_due:
                self._writer.post(self._changes.keep_baseline)
        return [batch[self._form.entry_key(ref.key)][0].stored_bytes for ref in refs]

    def delete_many(self, keys: Sequence[BlockKey]) -> None:
        doomed = [self._form.entry_key(key) for key in keys]
        with self._door.enter():
            if doomed:
                self._write(lambda: self._changes.delete(doomed))

    def erase(self, owner: bytes) -> int:
        check_owner(owner)
        with self._door.enter():
            self._form.destroy(owner)
            return self._write(lambda: self._changes.erase(owner))

    def names(self) -> list[StoredName]:
        with self._door.enter():
            return self._retained.names()

    def put_name(self, name: StoredName) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._changes.put_name(name))

    def delete_name(self, key: bytes) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._retained.delete_name(key))

    def settings(self) -> bytes | None:
        with self._door.enter():
            return self._retained.settings()

    def put_settings(self, content: bytes | None) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._changes.put_settings(content))

    def put_terms(self, terms: Mapping[BlockKey, StoredTerm]) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._retained.put_terms(terms))

    def terms(self, keys: Sequence[BlockKey]) -> dict[BlockKey, StoredTerm]:
        with self._door.enter():
            return self._retained.terms(keys)

    def touch_many(self, keys: Sequence[BlockKey], used_ns: Sequence[int]) -> None:
        check_times(keys, used_ns)
        times = {self._form.entry_key(key): when_ns for key, when_ns in zip(keys, used_ns, strict=True)}
        with self._door.enter():
            if times:
                self._write(lambda: self._changes.touch(times))

    def scan(self) -> Iterator[BlockMetas]:
        with self._door.enter():
            self._recovery.check_sound()
        return self._scan()

    def sync(self) -> None:
        with self._door.enter():
            self._write(self._changes.sync)

    def stats(self) -> StoreStats:
        with self._door.enter():
            usage = dict(self._lender.current.usage)
        with self._lock:
            damaged = dict(self._damaged)
        own = usage.pop(self.namespace.digest, Usage())
        return StoreStats(
            blocks=own.blocks,
            stored_bytes=own.stored_bytes,
            raw_bytes=own.blocks * self.layout.block_bytes,
            capacity_bytes=self.capacity_bytes,
            other_namespaces_bytes=sum(used.stored_bytes for used in usage.values()),
            damaged=damaged,
            written=self._encoding.written(),
            encodes=self._encoding.encodes,
            fresh_starts=self._recovery.fresh_starts,
        )

    def check(self) -> None:
        with self._door.enter():
            self._write(self._changes.check)
        self._encoding.check()

    def raw(self) -> RawRecords:
        """The records below all checks, for tests and tools."""
        return RawRecords(self._read_raw, self._write_raw)

    def quarantined(self) -> list[Quarantined]:
        """The damaged records that were put aside, of all namespaces in the directory, oldest first."""
        with self._door.enter():
            return self._quarantine.listed()

    def namespaces(self) -> list[NamespaceInfo]:
        with self._door.enter():
            return infos(dict(self._lender.current.usage), self._fact_files, self.namespace)

    def others_with(self, tokens: Sequence[bytes]) -> list[Elsewhere]:
        with self._door.enter():
            self._recovery.check_sound()
            with self._recovery.reading() as tables:
                return found_elsewhere(tables, self._form, self._fact_files, self.namespace, tokens)

    def verify(self) -> Verified:
        """See kvstore.verify. Closing the store stops it."""
        return verify(self, stopped=self._closing)

    def change(
        self,
        *,
        capacity_bytes: int | None = None,
        min_free_bytes: int | None = None,
        ttl_s: float | Unchanged | None = UNCHANGED,
    ) -> None:
        """See Changeable.change. A smaller capacity does not make files smaller. A larger one may need larger files than were
        allowed so far: these are mapped anew, for which calls that read wait a moment. StoreFailed while one hangs.
        """
        with self._door.enter():
            self._write(
                lambda: self._changes.change(self._room.limits.changed(capacity_bytes, min_free_bytes, ttl_s))
            )

    def close(self) -> None:
        self._closing.set()
        if not self._door.close():
            return
        with self._resources, lmdb_errors("closing"):
            self._writer.run(self._changes.end)

    def _pack(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> Batch:
        written_ns = self._now_ns()
        batch = {}
        for ref, block in zip(refs, data, strict=True):
            record = self._form.record(self._encoding.pack(ref, block, written_ns), ref.owner)
            stored_bytes = page_rounded(len(record))
            meta = BlockMeta(ref.key, ref.parent_key, ref.tokens, stored_bytes, written_ns, ref.owner)
            batch[self._form.entry_key(ref.key)] = self._form.entry(meta), record
        return batch

    def _scan(self) -> Iterator[BlockMetas]:
        prefix = self.namespace.digest
        begun, start = self._recovery.fresh_starts, cast("bytes | None", prefix)
        while start is not None:
            with self._door.enter(), self._recovery.reading() as tables:
                if self._recovery.fresh_starts != begun:
                    return  # what there was is gone
                page, start = some_items(tables.entries, start, prefix)
            for entries in unpack_entries(page):
                if entries.damaged:
                    self._writer.post(lambda: self._recovery.guarded(self._changes.recount))
                yield self._form.opened_entries(entries.metas)

    def _read_raw(self, key: BlockKey) -> bytes | None:
        with self._door.enter(), self._recovery.reading() as tables, tables.records.begin() as txn:
            return txn.get(self._form.entry_key(key))

    def _write_raw(self, key: BlockKey, record: bytes) -> None:
        with self._door.enter():
            self._write(lambda: self._tables.overwrite(self._form.entry_key(key), record))

    def _write(self, job: Callable[[], T]) -> T:
        """Run a job of the writer's, on tables that are sound."""
        return self._writer.run(lambda: self._recovery.guarded(job))

    @property
    def _tables(self) -> Tables:
        return self._lender.current


def _check_options(
    durability: str, master_key: bytes | None, sync_interval_s: float, compression: str, read_threads: int
) -> None:
    """Raise ValueError for what cannot be meant."""
    if sync_interval_s < 0:
        raise ValueError(f"sync_interval_s must not be negative, got {sync_interval_s}")
    if master_key is not None and len(master_key) != MASTER_KEY_BYTES:
        raise ValueError(f"a master key has {MASTER_KEY_BYTES} bytes, not {len(master_key)}")
    if durability not in DURABILITIES:
        raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}")
    check_compression(compression)
    if read_threads < 1:
        raise ValueError(f"read_threads must be at least 1, got {read_threads}")
