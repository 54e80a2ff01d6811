"""`Store` on a local disk."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

from kvstore.baseline import LEARN_TOKENS, Baselines
from kvstore.block import BlockKey, BlockLayout, Namespace
from kvstore.closing import Closing
from kvstore.codec import Bytes
from kvstore.disk.allocator import keep_freed_memory
from kvstore.disk.baselines import BaselineFiles
from kvstore.disk.directory import Directory
from kvstore.disk.door import Door
from kvstore.disk.encoding import Encoding
from kvstore.disk.entry import unpack_entries
from kvstore.disk.environment import Unsound, lmdb_errors, page_rounded, some_items
from kvstore.disk.form import form_of
from kvstore.disk.lender import Lender
from kvstore.disk.limits import Limits
from kvstore.disk.master_key import MASTER_KEY_BYTES
from kvstore.disk.namespaces import FactFiles, found_elsewhere, infos
from kvstore.disk.opening import emptied_tables, expire_others, fresh_tables, map_bytes, open_tables
from kvstore.disk.quarantine import Quarantine, Quarantined
from kvstore.disk.recovery import Recovery
from kvstore.disk.retained import Retained
from kvstore.disk.tables import Tables, Usage
from kvstore.disk.worth import Rates, measured
from kvstore.disk.writer import Writer
from kvstore.errors import StoreError, StoreFailed, StoreFull
from kvstore.kernels import kernels
from kvstore.metas import BlockMetas
from kvstore.raw import RawRecords
from kvstore.reasons import MissReason
from kvstore.record import RecordFormat
from kvstore.reports import NamespaceInfo, Verified
from kvstore.steering import UNCHANGED, Elsewhere, StoredName, StoredTerm, Unchanged
from kvstore.store import (
    DURABILITIES,
    HIT,
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
_log = logging.getLogger(__name__)
Batch: TypeAlias = Mapping[bytes, tuple[BlockMeta, bytes | memoryview]]

_GIB: Final = 1 << 30

# Enough of a record to tell it from a later one under the same key: the time of writing and all checksums.
_HEAD_BYTES: Final = 256

_NAMES_PART: Final = 64
"""The records of named caches may take the capacity by this, beside it."""
_GROW_S: Final = 1.0
"""How long `change` waits for reads in progress, and readers for it, where the map must grow. A read takes milliseconds."""


@dataclass(frozen=True, slots=True)
class _Damage:
    """A record that failed a check."""

    key: bytes
    head: bytes
    reason: MissReason


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
        self._limits = Limits(capacity_bytes=capacity_bytes, min_free_bytes=min_free_bytes, ttl_s=ttl_s)
        """Replaced, never changed."""
        if sync_interval_s < 0:
            raise ValueError(f"sync_interval_s must not be negative, got {sync_interval_s}")
        if master_key is not None and len(master_key) != MASTER_KEY_BYTES:
            raise ValueError(f"a master key has {MASTER_KEY_BYTES} bytes, not {len(master_key)}")
        if durability not in DURABILITIES:
            raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}")
        self._strict = durability == "strict"
        check_compression(compression)
        if read_threads < 1:
            raise ValueError(f"read_threads must be at least 1, got {read_threads}")
        self._read_threads = read_threads
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
            self._free_bytes = free_bytes or self._directory.free_bytes
            self._retained = Retained(self._directory, self._form, namespace.digest)
            resources.callback(self._retained.close)
            self._writer = Writer(self._sync_in_background, sync_interval_s)
            resources.callback(self._writer.close)
            self._writer.run(self._open)
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
        return self._limits.capacity_bytes

    @property
    def min_free_bytes(self) -> int:
        """What the file system keeps."""
        return self._limits.min_free_bytes

    @property
    def max_stored_bytes(self) -> int:
        return page_rounded(self._format.max_record_bytes + self._form.extra_bytes)

    def get_many(self, refs: Sequence[BlockRef], out: "Sequence[Writable]") -> list[ReadOutcome]:
        buffers = self._format.check_out(refs, out)
        with self._door.enter():
            self._recovery.check_sound()
            outcomes, damaged = self._read_with_baselines(refs, buffers)
            if damaged:
                with self._lock:
                    self._damaged.update(found.reason for found in damaged)
                # Should this fail, the record stays, and the next reader finds it damaged again.
                with suppress(StoreError):
                    evidence = self._write(lambda: self._take_out(damaged))
                    self._writer.post(lambda: self._put_aside(evidence))  # nobody waits for it
        return outcomes

    def put_many(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> list[int]:
        if len(refs) != len(data):
            raise ValueError(f"{len(refs)} blocks but {len(data)} buffers")
        with self._door.enter():
            batch = self._pack(refs, data)
            if batch:
                self._write(lambda: self._put(batch))
            if self._encoding.is_due:
                self._writer.post(self._keep_baseline)
        return [batch[self._form.entry_key(ref.key)][0].stored_bytes for ref in refs]

    def delete_many(self, keys: Sequence[BlockKey]) -> None:
        doomed = [self._form.entry_key(key) for key in keys]
        with self._door.enter():
            if doomed:
                self._write(lambda: self._delete(doomed))

    def erase(self, owner: bytes) -> int:
        check_owner(owner)
        with self._door.enter():
            self._form.destroy(owner)
            return self._write(lambda: self._erase(owner))

    def names(self) -> list[StoredName]:
        with self._door.enter():
            return self._retained.names()

    def put_name(self, name: StoredName) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._put_name(name))

    def delete_name(self, key: bytes) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._retained.delete_name(key))

    def settings(self) -> bytes | None:
        with self._door.enter():
            return self._retained.settings()

    def put_settings(self, content: bytes | None) -> None:
        with self._door.enter():
            self._writer.run(lambda: self._put_settings(content))

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
                self._write(lambda: self._touch(times))

    def scan(self) -> Iterator[BlockMetas]:
        with self._door.enter():
            self._recovery.check_sound()
        return self._scan()

    def sync(self) -> None:
        with self._door.enter():
            self._write(self._sync)

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
            self._write(lambda: self._tables.check())  # noqa: PLW0108 - the tables of then
            self._writer.run(self._retained.check)
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
            self._write(lambda: self._change(self._limits.changed(capacity_bytes, min_free_bytes, ttl_s)))

    def close(self) -> None:
        self._closing.set()
        if not self._door.close():
            return
        with self._resources, lmdb_errors("closing"):
            self._writer.run(self._end)

    # ---- on the calling thread -------------------------------------------------------------------------

    def _read_with_baselines(
        self, refs: Sequence[BlockRef], out: Sequence[Bytes]
    ) -> tuple[list[ReadOutcome], list[_Damage]]:
        """As `_read`; where that fails and not all baselines could be loaded so far, once more if now they can."""
        was_loaded = self._encoding.is_loaded
        outcomes, damaged = self._read(refs, out)
        failed = any(outcome.reason is MissReason.READ_FAILED for outcome in outcomes)
        if failed and not was_loaded and self._writer.run(self._encoding.load):
            return self._read(refs, out)
        return outcomes, damaged

    def _read(
        self, refs: Sequence[BlockRef], out: Sequence[Bytes]
    ) -> tuple[list[ReadOutcome], list[_Damage]]:
        """Outcomes, and what failed a check."""
        keys = [self._form.entry_key(ref.key) for ref in refs]
        heads: dict[int, bytes] = {}

        def examine(position: int, rests: memoryview) -> MissReason | None:
            reason = self._unpack(rests, refs[position], out[position])
            if reason is not None and reason.damaged:
                heads[position] = bytes(rests[:_HEAD_BYTES])
            return reason

        wanted = None if self._form.sealed else self._format.wanted(refs, out)

        with self._recovery.reading() as tables:
            reasons = tables.examined(keys, examine, None if wanted is None else wanted.proven)
        outcomes = [HIT if reason is None else ReadOutcome(reason) for reason in reasons]
        damaged = [
            _Damage(keys[position], heads[position], reason)
            for position, reason in enumerate(reasons)
            if reason is not None and reason.damaged
        ]
        return outcomes, damaged

    def _unpack(self, rests: memoryview, ref: BlockRef, buffer: "Writable") -> MissReason | None:
        record = self._form.opened(rests)
        if isinstance(record, MissReason):
            return record
        all_known = self._encoding.is_loaded  # before: what is loaded meanwhile was not there to decode with
        reason = self._format.unpack(record, ref, buffer)
        is_unread = reason is MissReason.MISSING_BASELINE and not all_known
        return MissReason.READ_FAILED if is_unread else reason

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
                    self._writer.post(lambda: self._recovery.guarded(self._recount))
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

    # ---- on the writer's thread ------------------------------------------------------------------------

    @property
    def _tables(self) -> Tables:
        return self._lender.current

    def _open(self) -> None:
        tables, self.opening = open_tables(
            self._directory,
            self.namespace,
            self.capacity_bytes,
            self._now_ns(),
            ttl_ns=self._limits.ttl_ns,
            strict=self._strict,
            kept=lambda used_ns: self._retained.kept_of_others(self._now_ns(), used_ns),
        )
        self._lender: Lender[Tables] = Lender(tables, Tables.close)
        self._recovery = Recovery(self._lender, self._fresh_tables, self._writer, self._directory.root)
        with suppress(StoreError):  # the next opening finds what cannot be deleted now
            self._recovery.guarded(self._delete_lost)
        self._writer.post(self._sweep_terms)  # nobody waits for it
        self._encoding.load()
        if self._format.encodes:
            self._writer.post(kernels)  # a first read or write may have to wait for it, opening does not
        self._writer.post(lambda: self._tables.make_ready(self._read_threads))
        self._writer.post(self._encoding.weigh)  # nobody waits for it
        self._fact_files.learn(self.namespace)
        self._writer.changed()  # so that a directory that was left in disorder is synced and marked

    def _fresh_tables(self) -> Tables:
        return fresh_tables(self._directory, self.capacity_bytes, self._now_ns(), strict=self._strict)

    def _forget_facts(self, *, but: tuple[bytes, ...]) -> None:
        """Of namespaces that have no blocks any more, and their baselines. To be called after a sync: the blocks of one that
        went must not come back without their baseline when power is lost.
        """
        there = (digest for digest, used in self._tables.usage.items() if used.blocks)
        kept = {*there, *but}
        self._fact_files.forget_all_but(kept)
        self._encoding.forget_all_but(kept)

    def _keep_baseline(self) -> None:
        self._encoding.keep_baseline(lambda num_bytes: self._limits.leave_room(num_bytes, self._free_bytes()))

    def _change(self, limits: Limits) -> None:
        if limits.capacity_bytes > self.capacity_bytes:
            self._grow(map_bytes(limits.capacity_bytes))
        has_new_ttl = limits.ttl_s != self._limits.ttl_s
        self._limits = limits
        if has_new_ttl and limits.ttl_ns is not None:
            self._writer.changed()
            with suppress(StoreFull):  # as at an opening
                kept = self._retained.kept_of_others(self._now_ns(), self._tables.used_ns)
                expire_others(self._tables, self.namespace.digest, self._now_ns() - limits.ttl_ns, kept)

    def _grow(self, wanted: tuple[int, int]) -> None:
        if all(have >= want for have, want in zip(self._tables.map_bytes, wanted, strict=True)):
            return
        try:
            with self._lender.alone(_GROW_S) as tables:  # a reader would look where the map no longer is
                tables.grow(wanted)
        except TimeoutError as error:
            raise StoreFailed(
                f"the files of {self._directory.root} cannot become larger while a read hangs", temporary=True
            ) from error

    def _delete_lost(self) -> None:
        """Delete what nobody can read any more, or it would take space for ever."""
        lost = self._form.lost(self._tables.pages())
        if lost:
            facts = {"path": self._directory.root, "blocks": len(lost)}
            _log.warning(
                "%(path)s: %(blocks)d blocks are deleted, as their keys are gone", facts, extra=facts
            )
            self._delete(lost)

    def _put(self, batch: Batch) -> None:
        needed = sum(meta.stored_bytes for meta, _ in batch.values())
        used = sum(usage.stored_bytes for usage in self._tables.usage.values())
        limits = self._limits
        limits.check_capacity(needed, used - self._tables.stored_bytes(batch))
        with lmdb_errors("asking for free space"):
            free = self._free_bytes()
        if not limits.leave_room(needed, free) and self._directory.drop_set_aside():
            free = self._free_bytes()
        if not limits.leave_room(needed, free):
            floor = limits.min_free_bytes
            raise StoreFull(f"the batch needs {needed} of {free} free bytes, {floor} must remain")
        self._writer.changed()
        self._tables.put(batch)

    def _sweep_terms(self) -> None:
        self._retained.sweep(lambda keys: self._tables.absent(keys))  # noqa: PLW0108 - the tables of then

    def _put_name(self, name: StoredName) -> None:
        num_bytes = len(name.tokens) + len(name.content)
        self._check_free("a name", num_bytes)
        if not self._name_fits(name.key, num_bytes):
            self._retained.forget_over(self._now_ns(), self._tables.used_ns)
            if not self._name_fits(name.key, num_bytes):
                _, others = self._retained.name_bytes(name.key)
                raise StoreFull(
                    f"named caches take {others} bytes, and may take {self.capacity_bytes // _NAMES_PART}: "
                    f"a name of {num_bytes} does not fit"
                )
        self._retained.put_name(name)

    def _name_fits(self, key: bytes, num_bytes: int) -> bool:
        """Also in its own place, where all together are too many since the capacity became smaller."""
        own, others = self._retained.name_bytes(key)
        return num_bytes <= own or others + num_bytes <= self.capacity_bytes // _NAMES_PART

    def _put_settings(self, content: bytes | None) -> None:
        if content is not None:
            self._check_free("the settings", len(content))
        self._retained.put_settings(content)

    def _check_free(self, what: str, num_bytes: int) -> None:
        with lmdb_errors("asking for free space"):
            free = self._free_bytes()
        if not self._limits.leave_room(num_bytes, free):
            raise StoreFull(f"{what} would leave less than {self._limits.min_free_bytes} bytes free")

    def _delete(self, keys: Sequence[bytes]) -> None:
        self._writer.changed()
        was_empty = self._tables.is_empty
        self._tables.delete(keys)
        with suppress(StoreError):  # the blocks are gone; the next opening forgets their terms
            self._retained.forget(keys)
        if self._tables.is_empty and not was_empty:
            try:
                fresh = emptied_tables(self._directory, self.capacity_bytes, strict=self._strict)
            except StoreError as error:  # the files may be gone already: nothing must be written to them
                raise Unsound(str(error)) from error
            self._lender.replace(fresh)

    def _recount(self) -> None:
        """A scan has met damaged entries: they are deleted with their records, and no more counted."""
        self._writer.changed()
        self._tables.recount()

    def _touch(self, used_ns: Mapping[bytes, int]) -> None:
        self._writer.changed()
        self._tables.touch(used_ns)

    def _erase(self, owner: bytes) -> int:
        if not self._form.sealed:  # evidence does not say whose it is
            with lmdb_errors("deleting evidence"):
                self._directory.drop_set_aside()
                self._quarantine.clear()
        self._retained.erase(owner)
        found = list(self._tables.scan())
        doomed = [key for key, meta in found if meta is not None and self._form.is_owners(meta, owner)]
        # and what does not say whose it is: damaged entries, and what a full disk has left of a write
        self._delete([*doomed, *(key for key, meta in found if meta is None)])
        return len(doomed)

    def _take_out(self, damaged: Sequence[_Damage]) -> list[tuple[_Damage, bytes]]:
        """Delete damaged records, except where a new one has been written since it was read. Answers them."""
        with lmdb_errors("reading"), self._tables.records.begin() as txn:
            found = [(one, record) for one in damaged if (record := txn.get(one.key)) is not None]
        doomed = [(one, record) for one, record in found if record[:_HEAD_BYTES] == one.head]
        self._delete([one.key for one, _ in doomed])
        return doomed

    def _put_aside(self, evidence: Sequence[tuple[_Damage, bytes]]) -> None:
        for one, record in evidence:
            if self._limits.leave_room(len(record), self._free_bytes()):
                self._quarantine.add(one.key, one.reason, record, self._now_ns())

    def _sync(self) -> None:
        self._tables.sync()
        self._writer.synced()
        self._forget_facts(but=(self.namespace.digest,))

    def _sync_in_background(self) -> None:
        try:
            self._recovery.guarded(self._sync)
            self._writer.post(self._encoding.weigh)
        except Exception as error:  # noqa: BLE001 - nobody waits for this one
            facts = {"path": self._directory.root, "error": error}
            _log.error("%(path)s could not be synced: %(error)s", facts, extra=facts)

    def _end(self) -> None:
        if self._recovery.is_sound:
            self._sync()
            self._forget_facts(but=())
            self._directory.sign_off()
        else:
            self._directory.mark_unclean()  # a reader may have failed on a store that was in order until then
