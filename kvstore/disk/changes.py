"""What the writer's thread does to a store on disk: all that changes something."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from kvstore.block import Namespace
from kvstore.disk.compiled import load_code
from kvstore.disk.directory import Directory
from kvstore.disk.encoding import Encoding
from kvstore.disk.environment import Unsound, lmdb_errors
from kvstore.disk.form import Form
from kvstore.disk.lender import Lender
from kvstore.disk.limits import Limits
from kvstore.disk.namespaces import FactFiles
from kvstore.disk.opening import emptied_tables, expire_others, fresh_tables, map_bytes, open_tables
from kvstore.disk.quarantine import Quarantine
from kvstore.disk.reading import HEAD_BYTES, Damage
from kvstore.disk.recovery import Recovery
from kvstore.disk.retained import Retained
from kvstore.disk.room import Room
from kvstore.disk.tables import Tables
from kvstore.disk.writer import Writer
from kvstore.errors import StoreError, StoreFailed, StoreFull
from kvstore.steering import StoredName
from kvstore.store import BlockMeta

_log = logging.getLogger(__name__)
Batch: TypeAlias = Mapping[bytes, tuple[BlockMeta, bytes | memoryview]]

_NAMES_PART: Final = 64
"""The records of named caches may take the capacity by this, beside it."""
_GROW_S: Final = 1.0
"""How long `change` waits for reads in progress, and readers for it, where the map must grow. A read takes milliseconds."""


class Changes:
    """Has the writer's thread, on which all its methods are to be called. They raise StoreFull and StoreFailed as a store does.

    Whoever calls puts `recovery.guarded` around them, save around what concerns `retained` alone, and `end`.
    """

    def __init__(
        self,
        *,
        namespace: Namespace,
        directory: Directory,
        form: Form,
        encoding: Encoding,
        room: Room,
        retained: Retained,
        quarantine: Quarantine,
        fact_files: FactFiles,
        now_ns: Callable[[], int],
        strict: bool,
        sync_interval_s: float,
        value_bytes: int,
        read_threads: int,
    ) -> None:
        """`value_bytes`: the most that a record takes. So many threads read at once, at most."""
        self._namespace, self._directory, self._form, self._encoding = namespace, directory, form, encoding
        self._room, self._retained, self._quarantine = room, retained, quarantine
        self._fact_files, self.now_ns = fact_files, now_ns
        self._strict, self._value_bytes, self._read_threads = strict, value_bytes, read_threads
        self.writer = Writer(self._sync_in_background, sync_interval_s)

    def open(self) -> None:
        """To be called first. What an opening need not wait for is done after it."""
        tables, self.opening = open_tables(
            self._directory,
            self._opened,
            self._namespace,
            self._room.limits.capacity_bytes,
            self.now_ns(),
            ttl_ns=self._room.limits.ttl_ns,
            kept=lambda used_ns: self._retained.kept_of_others(self.now_ns(), used_ns),
        )
        self.lender: Lender[Tables] = Lender(tables, Tables.close)
        self.recovery = Recovery(self.lender, self._fresh_tables, self.writer, self._directory.root)
        with suppress(StoreError):  # the next opening finds what cannot be deleted now
            self.recovery.guarded(self._delete_lost)
        self.writer.post(self._sweep_terms)  # nobody waits for it
        self._encoding.load()
        with suppress(StoreError):  # who needs it is told
            # where it has to be compiled first, a write that waited for it would seem to hang
            load_code(self._encoding.itemsize)
        self.writer.post(self._tables.make_ready)
        self.writer.post(self._encoding.weigh)  # nobody waits for it
        self._fact_files.learn(self._namespace)
        self.writer.changed()  # so that a directory that was left in disorder is synced and marked

    @property
    def _tables(self) -> Tables:
        return self.lender.current

    def check(self) -> None:
        """Raise AssertionError unless books and tables agree."""
        self._tables.check()
        self._retained.check()

    def _fresh_tables(self) -> Tables:
        return fresh_tables(self._directory, self._opened, self.now_ns())

    def _opened(self) -> Tables:
        """The directory's environments, opened; new ones where there are none."""
        return Tables(
            self._directory,
            map_bytes(self._room.limits.capacity_bytes),
            value_bytes=self._value_bytes,
            num_calls=self._read_threads,
            strict=self._strict,
        )

    def _forget_facts(self, *, but: tuple[bytes, ...]) -> None:
        """Of namespaces that have no blocks any more, and their baselines. To be called after a sync: the blocks of one that
        went must not come back without their baseline when power is lost.
        """
        there = (digest for digest, used in self._tables.usage.items() if used.blocks)
        kept = {*there, *but}
        self._fact_files.forget_all_but(kept)
        self._encoding.forget_all_but(kept)

    def keep_baseline(self) -> None:
        self._encoding.keep_baseline(self._room.has)

    def change(self, limits: Limits) -> None:
        if limits.capacity_bytes > self._room.limits.capacity_bytes:
            self._grow(map_bytes(limits.capacity_bytes))
        has_new_ttl = limits.ttl_s != self._room.limits.ttl_s
        self._room.limits = limits
        if has_new_ttl and limits.ttl_ns is not None:
            self.writer.changed()
            with suppress(StoreFull):  # as at an opening
                kept = self._retained.kept_of_others(self.now_ns(), self._tables.used_ns)
                expire_others(self._tables, self._namespace.digest, self.now_ns() - limits.ttl_ns, kept)

    def _grow(self, wanted: tuple[int, int]) -> None:
        if all(have >= want for have, want in zip(self._tables.map_bytes, wanted, strict=True)):
            return
        try:
            with self.lender.alone(_GROW_S) as tables:  # a reader would look where the map no longer is
                tables.grow(wanted)
        except TimeoutError as error:
            raise StoreFailed(
                f"the files of {self._directory.root} cannot become larger while a read hangs", temporary=True
            ) from error

    def _delete_lost(self) -> None:
        """Delete what nobody can read any more, or it would take space for ever. To be called at an opening only: see `Form.forget_all_but`."""
        lost, owners = self._form.lost(self._tables.pages())
        if lost:
            facts = {"path": self._directory.root, "blocks": len(lost)}
            _log.warning(
                "%(path)s: %(blocks)d blocks are deleted, as their keys are gone", facts, extra=facts
            )
            self.delete(lost)
        # evidence says nothing without
        if not self._quarantine.listed() and not self._directory.set_aside_paths():
            self._form.forget_all_but(owners, self._retained.bodies())

    def put(self, batch: Batch) -> None:
        needed = sum(meta.stored_bytes for meta, _ in batch.values())
        used = sum(usage.stored_bytes for usage in self._tables.usage.values())
        self._room.limits.check_capacity(needed, used - self._tables.stored_bytes(batch))
        if not self._room.has(needed):
            self._directory.drop_set_aside()
            self._room.check("the batch", needed)
        self.writer.changed()
        self._tables.put(batch)

    def _sweep_terms(self) -> None:
        self._retained.sweep(lambda keys: self._tables.absent(keys))  # noqa: PLW0108 - the tables of then

    def put_name(self, name: StoredName) -> None:
        num_bytes = len(name.tokens) + len(name.content)
        self._room.check("a name", num_bytes)
        if not self._name_fits(name.key, num_bytes):
            self._retained.forget_over(self.now_ns(), self._tables.used_ns)
            if not self._name_fits(name.key, num_bytes):
                _, others = self._retained.name_bytes(name.key)
                raise StoreFull(
                    f"named caches take {others} bytes, and may take {self._room.limits.capacity_bytes // _NAMES_PART}: "
                    f"a name of {num_bytes} does not fit"
                )
        self._retained.put_name(name)

    def _name_fits(self, key: bytes, num_bytes: int) -> bool:
        """Also in its own place, where all together are too many since the capacity became smaller."""
        own, others = self._retained.name_bytes(key)
        return num_bytes <= own or others + num_bytes <= self._room.limits.capacity_bytes // _NAMES_PART

    def put_settings(self, content: bytes | None) -> None:
        if content is not None:
            self._room.check("the settings", len(content))
        self._retained.put_settings(content)

    def delete(self, keys: Sequence[bytes]) -> None:
        self.writer.changed()
        was_empty = self._tables.is_empty
        self._tables.delete(keys)
        with suppress(StoreError):  # the blocks are gone; the next opening forgets their terms
            self._retained.forget(keys)
        if self._tables.is_empty and not was_empty:
            try:
                fresh = emptied_tables(self._directory, self._opened)
            except StoreError as error:  # the files may be gone already: nothing must be written to them
                raise Unsound(str(error)) from error
            self.lender.replace(fresh)

    def recount(self) -> None:
        """A scan has met damaged entries: they are deleted with their records, and no more counted."""
        self.writer.changed()
        self._tables.recount()

    def touch(self, used_ns: Mapping[bytes, int]) -> None:
        self.writer.changed()
        self._tables.touch(used_ns)

    def erase(self, owner: bytes) -> int:
        if not self._form.sealed:  # evidence does not say whose it is
            with lmdb_errors("deleting evidence"):
                self._directory.drop_set_aside()
                self._quarantine.clear()
        self._retained.erase(owner)
        found = list(self._tables.scan())
        doomed = [key for key, meta in found if meta is not None and self._form.is_owners(meta, owner)]
        # and what does not say whose it is: damaged entries, and what a full disk has left of a write
        self.delete([*doomed, *(key for key, meta in found if meta is None)])
        return len(doomed)

    def take_out(self, damaged: Sequence[Damage]) -> list[tuple[Damage, bytes]]:
        """Delete damaged records, except where a new one has been written since it was read. Answers them."""
        with lmdb_errors("reading"), self._tables.records.begin() as txn:
            found = [(one, record) for one in damaged if (record := txn.get(one.key)) is not None]
        doomed = [(one, record) for one, record in found if record[:HEAD_BYTES] == one.head]
        self.delete([one.key for one, _ in doomed])
        return doomed

    def put_aside(self, evidence: Sequence[tuple[Damage, bytes]]) -> None:
        for one, record in evidence:
            if self._room.has(len(record)):
                self._quarantine.add(one.key, one.reason, record, self.now_ns())

    def sync(self) -> None:
        self._tables.sync()
        self.writer.synced()
        self._forget_facts(but=(self._namespace.digest,))

    def _sync_in_background(self) -> None:
        try:
            self.recovery.guarded(self.sync)
            self.writer.post(self._encoding.weigh)
        except Exception as error:  # noqa: BLE001 - nobody waits for this one
            facts = {"path": self._directory.root, "error": error}
            _log.error("%(path)s could not be synced: %(error)s", facts, extra=facts)

    def end(self) -> None:
        if self.recovery.is_sound:
            self.sync()
            self._forget_facts(but=())
            self._directory.sign_off()
        else:
            self._directory.mark_unclean()  # a reader may have failed on a store that was in order until then
