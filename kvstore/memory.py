"""Blocks in a dict: the reference for every store, and the fake for tests of what is built on stores."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from kvstore.block import BlockKey, BlockLayout, Namespace, chain_key, root_key_of
from kvstore.closing import Closing
from kvstore.errors import StoreClosed, StoreFull
from kvstore.metas import BlockMetas
from kvstore.raw import RawRecords
from kvstore.reasons import MissReason
from kvstore.record import RecordFormat
from kvstore.reports import NamespaceInfo
from kvstore.steering import Elsewhere
from kvstore.store import (
    HIT,
    BlockMeta,
    BlockRef,
    Compression,
    ReadOutcome,
    StoreStats,
    check_compression,
    check_owner,
    check_times,
)

if TYPE_CHECKING:
    from kvstore.store import Readable, Writable

Shelf: TypeAlias = MutableMapping[tuple[bytes, BlockKey], tuple[BlockMeta, bytes]]
"""(namespace digest, key) -> what a scan tells, and the record."""


class MemoryStore(Closing):
    """A `Store` in memory, with the same records as on disk, so that damage and compression behave alike.

    A `shelf` outlives the store: two stores that are given the same one, one after the other, play a restart;
    of different namespaces, two models that share a disk. Open only one at a time. Records have no baseline, and
    `compression` "auto" is "on": no disk is slower than decoding, and none faster.
    """

    def __init__(
        self,
        namespace: Namespace,
        layout: BlockLayout,
        capacity_bytes: int,
        *,
        compression: Compression = "auto",
        shelf: Shelf | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if capacity_bytes < 0:
            raise ValueError(f"capacity_bytes must be at least 0, not {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        check_compression(compression)
        self._format = RecordFormat(namespace, layout, encodes=compression != "off")
        self._now_ns = now_ns
        self._shelf: Shelf = {} if shelf is None else shelf
        self._lock = threading.Lock()  # the shelf and the counts change together, or not at all
        self._closed = False
        self._damaged: Counter[MissReason] = Counter()
        self._blocks, self._stored_bytes, self._other_bytes = self._count()

    @property
    def namespace(self) -> Namespace:
        return self._format.namespace

    @property
    def layout(self) -> BlockLayout:
        return self._format.layout

    @property
    def max_stored_bytes(self) -> int:
        return self._format.max_record_bytes

    def get_many(self, refs: Sequence[BlockRef], out: "Sequence[Writable]") -> list[ReadOutcome]:
        self._format.check_out(refs, out)
        return [self._get(ref, buffer) for ref, buffer in zip(refs, out, strict=True)]

    def put_many(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> list[int]:
        if len(refs) != len(data):
            raise ValueError(f"{len(refs)} blocks but {len(data)} buffers")
        written_ns = self._now_ns()
        batch = {}
        for ref, block in zip(refs, data, strict=True):
            record = bytes(self._format.pack(ref, block, written_ns))
            batch[self._place(ref.key)] = (
                BlockMeta(ref.key, ref.parent_key, ref.tokens, len(record), written_ns, ref.owner),
                record,
            )
        with self._lock:
            self._check_open()
            self._admit(batch)
        return [batch[self._place(ref.key)][0].stored_bytes for ref in refs]

    def delete_many(self, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            self._check_open()
            for key in keys:
                self._forget(self._place(key))

    def touch_many(self, keys: Sequence[BlockKey], used_ns: Sequence[int]) -> None:
        check_times(keys, used_ns)
        with self._lock:
            self._check_open()
            for key, when_ns in zip(keys, used_ns, strict=True):
                if (entry := self._shelf.get(self._place(key))) is not None:
                    self._shelf[self._place(key)] = replace(entry[0], used_ns=when_ns), entry[1]

    def erase(self, owner: bytes) -> int:
        check_owner(owner)
        with self._lock:
            self._check_open()
            doomed = [place for place, (meta, _) in self._shelf.items() if meta.owner == owner]
            for place in doomed:
                del self._shelf[place]
            self._blocks, self._stored_bytes, self._other_bytes = self._count()
        return len(doomed)

    def scan(self) -> Iterator[BlockMetas]:
        with self._lock:
            self._check_open()
            digest = self.namespace.digest
            metas = [meta for (owner, _), (meta, _) in self._shelf.items() if owner == digest]
        return iter([BlockMetas.of(metas)])

    def sync(self) -> None:
        self._check_open()

    def stats(self) -> StoreStats:
        with self._lock:
            self._check_open()
            return StoreStats(
                blocks=self._blocks,
                stored_bytes=self._stored_bytes,
                raw_bytes=self._blocks * self.layout.block_bytes,
                capacity_bytes=self.capacity_bytes,
                other_namespaces_bytes=self._other_bytes,
                damaged=dict(self._damaged),
            )

    def check(self) -> None:
        with self._lock:
            counted = (self._blocks, self._stored_bytes, self._other_bytes)
            assert counted == self._count(), f"counts {counted}, but the shelf holds {self._count()}"

    def namespaces(self) -> list[NamespaceInfo]:
        own = self.namespace
        used: dict[bytes, list[int]] = {own.digest: []}
        with self._lock:
            self._check_open()
            for (digest, _), (meta, _) in self._shelf.items():
                used.setdefault(digest, []).append(meta.stored_bytes)
        infos = [
            NamespaceInfo(
                digest=digest.hex(),
                own=digest == own.digest,
                facts=dict(own.fields) if digest == own.digest else None,
                blocks=len(sizes),
                stored_bytes=sum(sizes),
            )
            for digest, sizes in used.items()
        ]
        return sorted(infos, key=lambda info: (not info.own, -info.stored_bytes))

    def others_with(self, tokens: Sequence[bytes]) -> list[Elsewhere]:
        with self._lock:
            self._check_open()
            others = {digest for digest, _ in self._shelf} - {self.namespace.digest}
            found = [Elsewhere(digest.hex(), None, self._num_leading(digest, tokens)) for digest in others]
        return sorted((one for one in found if one.blocks), key=lambda one: one.blocks, reverse=True)

    def raw(self) -> RawRecords:
        """The records below all checks, for tests."""
        return RawRecords(self._read_raw, self._write_raw)

    def close(self) -> None:
        self._closed = True

    def _get(self, ref: BlockRef, buffer: "Writable") -> ReadOutcome:
        place = self._place(ref.key)
        with self._lock:
            self._check_open()
            entry = self._shelf.get(place)
        if entry is None:
            return ReadOutcome(MissReason.ABSENT)
        reason = self._format.unpack(entry[1], ref, buffer)
        if reason is None:
            return HIT
        with self._lock:
            self._damaged[reason] += 1
            there = self._shelf.get(place)
            if there is not None and there[1] is entry[1]:  # not if a sound record has replaced it meanwhile
                self._forget(place)
        return ReadOutcome(reason)

    def _num_leading(self, digest: bytes, tokens: Sequence[bytes]) -> int:
        key = root_key_of(digest)
        for count, block in enumerate(tokens):
            key = chain_key(key, block)
            if (digest, key) not in self._shelf:
                return count
        return len(tokens)

    def _admit(self, batch: Shelf) -> None:
        replaced = sum(self._shelf[place][0].stored_bytes for place in batch if place in self._shelf)
        growth = sum(meta.stored_bytes for meta, _ in batch.values()) - replaced
        room = self.capacity_bytes - self._stored_bytes - self._other_bytes
        if growth > room:
            raise StoreFull(f"the batch needs {growth} bytes, {room} of {self.capacity_bytes} are left")
        self._blocks += sum(place not in self._shelf for place in batch)
        self._stored_bytes += growth
        self._shelf.update(batch)

    def _forget(self, place: tuple[bytes, BlockKey]) -> None:
        entry = self._shelf.pop(place, None)
        if entry is not None:
            self._blocks -= 1
            self._stored_bytes -= entry[0].stored_bytes

    def _place(self, key: BlockKey) -> tuple[bytes, BlockKey]:
        return self.namespace.digest, key

    def _count(self) -> tuple[int, int, int]:
        digest = self.namespace.digest
        own = [meta.stored_bytes for (owner, _), (meta, _) in self._shelf.items() if owner == digest]
        everything = sum(meta.stored_bytes for meta, _ in self._shelf.values())
        return len(own), sum(own), everything - sum(own)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the memory store is closed")

    def _read_raw(self, key: BlockKey) -> bytes | None:
        with self._lock:
            entry = self._shelf.get(self._place(key))
        return None if entry is None else entry[1]

    def _write_raw(self, key: BlockKey, record: bytes) -> None:
        with self._lock:
            meta, _ = self._shelf[self._place(key)]
            self._shelf[self._place(key)] = (meta, record)
