"""A store of one's own: blocks in SQLite, behind the interface that the engine's disk tier uses.

Run it to see the laws of kvstore.testing hold for it, and an engine use it. See docs/writing-a-store.md.
"""

import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvstore import (
    HIT,
    BlockMeta,
    BlockRef,
    MissReason,
    ReadOutcome,
    StoreClosed,
    StoreFailed,
    StoreFull,
    StoreStats,
)
from kvstore.block import BlockLayout, Namespace
from kvstore.closing import Closing
from kvstore.metas import BlockMetas
from kvstore.raw import RawRecords
from kvstore.record import RecordFormat
from kvstore.store import check_owner, check_times

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    namespace BLOB, key BLOB, parent BLOB, tokens BLOB, used_ns INTEGER, owner BLOB, record BLOB,
    PRIMARY KEY (namespace, key)
)
"""


class SqliteStore(Closing):
    """Blocks of one namespace in a SQLite file, which other namespaces may share."""

    def __init__(self, path: Path, *, namespace: Namespace, layout: BlockLayout, capacity_bytes: int) -> None:
        self.namespace, self.layout, self.capacity_bytes = namespace, layout, capacity_bytes
        self._format = RecordFormat(namespace, layout)
        self._damaged: Counter[MissReason] = Counter()
        self._lock = threading.RLock()  # one connection, and several threads that call
        self._open = True
        self._sql = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._sql.execute(_SCHEMA)

    @property
    def max_stored_bytes(self) -> int:
        return self._format.max_record_bytes

    def get_many(self, refs: Sequence[BlockRef], out: Sequence) -> list[ReadOutcome]:
        self._format.check_out(refs, out)
        with self._transaction():
            records = [self._record(ref.key) for ref in refs]
        return [self._unpack(*each) for each in zip(refs, records, out, strict=True)]

    def _unpack(self, ref: BlockRef, record: bytes | None, buffer: object) -> ReadOutcome:
        """All checks are RecordFormat's. What fails one is deleted, unless somebody has replaced it meanwhile."""
        if record is None:
            return ReadOutcome(MissReason.ABSENT)
        reason = self._format.unpack(record, ref, buffer)
        if reason is None:
            return HIT
        with self._transaction():
            self._damaged[reason] += 1
            self._sql.execute(
                "DELETE FROM blocks WHERE namespace = ? AND key = ? AND record = ?",
                (self.namespace.digest, ref.key, record),
            )
        return ReadOutcome(reason)

    def put_many(self, refs: Sequence[BlockRef], data: Sequence) -> list[int]:
        if len(refs) != len(data):
            raise ValueError(f"{len(refs)} blocks but {len(data)} buffers")
        written_ns = time.time_ns()
        records = [self._format.pack(ref, block, written_ns) for ref, block in zip(refs, data, strict=True)]
        with self._transaction():  # all of the batch or nothing
            for ref, record in zip(refs, records, strict=True):
                row = (
                    self.namespace.digest,
                    ref.key,
                    ref.parent_key,
                    ref.tokens,
                    written_ns,
                    ref.owner,
                    record,
                )
                self._sql.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            if (used := self._bytes(own=True) + self._bytes(own=False)) > self.capacity_bytes:
                raise StoreFull(f"the batch would make it {used} bytes of {self.capacity_bytes}")
        return [len(record) for record in records]

    def delete_many(self, keys: Sequence[bytes]) -> None:
        with self._transaction():
            self._sql.executemany(
                "DELETE FROM blocks WHERE namespace = ? AND key = ?",
                [(self.namespace.digest, key) for key in keys],
            )

    def touch_many(self, keys: Sequence[bytes], used_ns: Sequence[int]) -> None:
        check_times(keys, used_ns)
        with self._transaction():
            self._sql.executemany(
                "UPDATE blocks SET used_ns = ? WHERE namespace = ? AND key = ?",
                [(when_ns, self.namespace.digest, key) for key, when_ns in zip(keys, used_ns, strict=True)],
            )

    def erase(self, owner: bytes) -> int:
        check_owner(owner)
        with self._transaction():
            return self._sql.execute("DELETE FROM blocks WHERE owner = ?", (owner,)).rowcount

    def scan(self) -> Iterator[BlockMetas]:
        query = "SELECT key, parent, tokens, length(record), used_ns, owner FROM blocks WHERE namespace = ?"
        with self._transaction():
            rows = self._sql.execute(query, (self.namespace.digest,))
            return iter([BlockMetas.of(BlockMeta(*row) for row in rows)])

    def sync(self) -> None:
        """Nothing to do: SQLite syncs each transaction."""
        with self._transaction():
            pass

    def stats(self) -> StoreStats:
        with self._transaction():
            (blocks,) = self._sql.execute(
                "SELECT count(*) FROM blocks WHERE namespace = ?", (self.namespace.digest,)
            ).fetchone()
            return StoreStats(
                blocks=blocks,
                stored_bytes=self._bytes(own=True),
                raw_bytes=blocks * self.layout.block_bytes,
                capacity_bytes=self.capacity_bytes,
                other_namespaces_bytes=self._bytes(own=False),
                damaged=dict(self._damaged),
            )

    def check(self) -> None:
        """Nothing is counted that could be wrong: stats asks SQLite each time."""

    def raw(self) -> RawRecords:
        """The records below all checks: the laws play damage with it."""
        return RawRecords(self._record, self._overwrite)

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._sql.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if not self._open:
                raise StoreClosed("the store is closed")
            try:
                self._sql.execute("BEGIN")
                try:
                    yield
                except BaseException:
                    self._sql.execute("ROLLBACK")
                    raise
                self._sql.execute("COMMIT")
            except sqlite3.Error as error:
                raise StoreFailed(f"SQLite: {error}") from error

    def _bytes(self, *, own: bool) -> int:
        """What this namespace's records take together, or all others'."""
        query = "SELECT coalesce(sum(length(record)), 0) FROM blocks WHERE (namespace = ?) = ?"
        return int(self._sql.execute(query, (self.namespace.digest, own)).fetchone()[0])

    def _record(self, key: bytes) -> bytes | None:
        query = "SELECT record FROM blocks WHERE namespace = ? AND key = ?"
        with self._lock:
            found = self._sql.execute(query, (self.namespace.digest, key)).fetchone()
        return None if found is None else found[0]

    def _overwrite(self, key: bytes, record: bytes) -> None:
        with self._transaction():
            done = self._sql.execute(
                "UPDATE blocks SET record = ? WHERE namespace = ? AND key = ?",
                (record, self.namespace.digest, key),
            )
            if not done.rowcount:
                raise KeyError(key.hex())


def keep_the_laws() -> int:
    """Every law over a fresh store. How many there are."""
    from kvstore.testing.laws import LAWS

    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=16, block_tokens=16, dtype="bfloat16")
    for law in LAWS:
        with (
            tempfile.TemporaryDirectory() as folder,
            SqliteStore(
                Path(folder) / "kv.sqlite",
                namespace=Namespace.of({"model": "example"}),
                layout=layout,
                capacity_bytes=40 * layout.block_bytes,
            ) as store,
        ):
            law(store, store.raw())
    return len(LAWS)


if __name__ == "__main__":
    print(f"{keep_the_laws()} laws hold")
