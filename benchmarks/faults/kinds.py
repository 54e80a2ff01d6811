"""What can go wrong with a disk tier, one kind after the other."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from kvstore.block import Namespace
from kvstore.disk import LmdbStore
from kvstore.head import VERSION, header_bytes
from kvstore.layers import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    Fault,
    FaultStore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from kvstore.metas import metas_of
from kvstore.record import RecordFormat
from kvstore.store import BlockRef

PAGE = os.sysconf("SC_PAGE_SIZE")
FIXED_HEADER = header_bytes(0) - 8

Random = random.Random
OnDirectory = Callable[[Path, Random], object]
OnStore = Callable[[LmdbStore, Path, Random], object]
Faults = Callable[[Gate], list[Fault]]


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Kind:
    """One thing that goes wrong, and when: in a directory that nobody has open, in an open store, or at its calls."""

    name: str
    at_rest: OnDirectory = _nothing
    in_use: OnStore = _nothing
    faults: Faults = lambda _: []
    held: bool = False
    """Another store has the directory."""
    encrypted: bool = False
    """Blocks are encrypted."""

    def wrap(self, store: LmdbStore, gate: Gate, rng: Random) -> FaultStore:
        """The store with the faults of its calls around it. What hangs waits at the gate."""
        return FaultStore(store, self.faults(gate), seed=rng.randrange(1 << 30))


# ---- records ---------------------------------------------------------------------------------------------------------


def _refs(store: LmdbStore) -> list[BlockRef]:
    return [BlockRef(meta.key, meta.parent_key, meta.tokens) for meta in metas_of(store)]


def on_record(change: Callable[[LmdbStore, BlockRef, bytes, Random], bytes]) -> OnStore:
    """Replace one record in three by what `change` makes of it."""

    def in_use(store: LmdbStore, _: Path, rng: Random) -> None:
        refs = _refs(store)
        for ref in rng.sample(refs, max(1, len(refs) // 3)) if refs else []:
            if (record := store.raw().read(ref.key)) is not None:
                store.raw().write(ref.key, change(store, ref, record, rng))

    return in_use


def flip(first: Callable[[LmdbStore], int], end: Callable[[LmdbStore, bytes], int]) -> OnStore:
    """Flip one bit of a record, at a byte in [first, end)."""

    def change(store: LmdbStore, _: BlockRef, record: bytes, rng: Random) -> bytes:
        changed = bytearray(record)
        changed[rng.randrange(first(store), end(store, record))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return on_record(change)


def _tokens_end(store: LmdbStore, _: bytes) -> int:
    return FIXED_HEADER + store.layout.token_id_bytes


def _payload_start(store: LmdbStore) -> int:
    return header_bytes(store.layout.token_id_bytes)


FLIP_PAYLOAD = flip(_payload_start, lambda _, record: len(record))


def _cut(_store: LmdbStore, _ref: BlockRef, record: bytes, rng: Random) -> bytes:
    return record[: rng.randrange(len(record))]


def _tear(_store: LmdbStore, _ref: BlockRef, record: bytes, rng: Random) -> bytes:
    """The sectors from somewhere on were never written."""
    kept = rng.randrange(1 + len(record) // 512) * 512
    return record[:kept] + bytes(max(0, len(record) - kept))


def _others(store: LmdbStore, ref: BlockRef, record: bytes, rng: Random) -> bytes:
    """A sound record, of another block."""
    others = [other for other in _refs(store) if other.key != ref.key]
    return (others and store.raw().read(rng.choice(others).key)) or record


def _foreign(store: LmdbStore, ref: BlockRef, _: bytes, rng: Random) -> bytes:
    """A sound record of the same tokens, of another model."""
    namespace = Namespace.of({"model": f"another {rng.random()}"})
    return bytes(RecordFormat(namespace, store.layout).pack(ref, rng.randbytes(store.layout.block_bytes), 1))


def _newer(_store: LmdbStore, _ref: BlockRef, record: bytes, _rng: Random) -> bytes:
    return record[:8] + (VERSION + 1).to_bytes(2, "little") + record[10:]


# ---- files -----------------------------------------------------------------------------------------------------------


def data_file(directory: Path, table: str) -> Path:
    """LMDB's file."""
    return directory / "v1" / table / "data.mdb"


def break_tree(data: Path) -> None:
    """No page says of itself any more what it is. The two meta pages stay, and so do all page numbers."""
    with data.open("r+b") as file:
        for page in range(2, os.fstat(file.fileno()).st_size // PAGE):
            os.pwrite(file.fileno(), b"\0\0", page * PAGE + 10)


def flip_page_bits(table: str) -> OnDirectory:
    """Flip a few bits anywhere in a file: in its trees, its free list, its meta pages, or what it holds."""

    def at_rest(directory: Path, rng: Random) -> None:
        with data_file(directory, table).open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(size)
                [byte] = os.pread(file.fileno(), 1, place)
                os.pwrite(file.fileno(), bytes([byte ^ 1 << rng.randrange(8)]), place)

    return at_rest


def crashed(after: OnDirectory = _nothing) -> OnDirectory:
    """Whoever had the directory did not end in order."""

    def at_rest(directory: Path, rng: Random) -> None:
        (directory / "v1" / "clean").unlink()
        (directory / "v1" / "lock").write_text("4242\n")
        after(directory, rng)

    return at_rest


def truncate(table: str) -> OnDirectory:
    """The end of a file is gone."""
    return lambda directory, rng: os.truncate(
        data_file(directory, table), rng.randrange(data_file(directory, table).stat().st_size)
    )


def remove(table: str) -> OnDirectory:
    """A file is gone."""
    return lambda directory, _: data_file(directory, table).unlink()


def overwrite(table: str) -> OnDirectory:
    """Somebody else's file lies there."""
    return lambda directory, rng: data_file(directory, table).write_bytes(
        rng.randbytes(rng.randrange(1 << 16))
    )


def drop_pages(directory: Path, rng: Random) -> None:
    """Of both files some pages never reached the disk, which holds zeros there: the power went."""
    for table in ("payload", "meta"):
        with data_file(directory, table).open("r+b") as file:
            for page in range(2, os.fstat(file.fileno()).st_size // PAGE):
                if rng.random() < 0.1:
                    os.pwrite(file.fileno(), bytes(PAGE), page * PAGE)


def stale(table: str) -> OnDirectory:
    """A file comes from an older copy, in which nothing was written yet."""

    def at_rest(directory: Path, _: Random) -> None:
        data_file(directory, table).unlink()
        with (
            lmdb.open(str(data_file(directory, table).parent), map_size=1 << 26) as older,
            older.begin(write=True),
        ):
            pass

    return at_rest


def strangers(directory: Path, rng: Random) -> None:
    """Files of a newer format, and of nobody's."""
    (directory / "v2" / "payload").mkdir(parents=True)
    (directory / "v2" / "payload" / "data.mdb").write_bytes(rng.randbytes(5000))
    (directory / "v1" / "notes.txt").write_text("not ours")
    (directory / "v1" / "quarantine" / "who knows").parent.mkdir(exist_ok=True)
    (directory / "v1" / "quarantine" / "who knows").write_bytes(rng.randbytes(100))


def not_a_directory(directory: Path, _: Random) -> None:
    """A file lies where the directory should be."""
    shutil.rmtree(directory)
    directory.write_text("a file")


def on_baselines(change: Callable[[Path, Random], object]) -> OnDirectory:
    """Something befalls what records are encoded with."""

    def at_rest(directory: Path, rng: Random) -> None:
        for file in sorted((directory / "v1" / "baselines").iterdir()):
            change(file, rng)

    return at_rest


def _flip_any(file: Path, rng: Random) -> None:
    """One bit of a file, anywhere."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _cut_file(file: Path, rng: Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


FLIP_BASELINE = on_baselines(_flip_any)
_AWAY = "baselines, away"


def hide_baselines(directory: Path, _: Random) -> None:
    """Who opens their folder gets an error, and not that nothing is there."""
    folder = directory / "v1" / "baselines"
    folder.rename(directory / "v1" / _AWAY)
    folder.symlink_to(folder)


def show_baselines(_store: LmdbStore, directory: Path, _: Random) -> None:
    """They can be read again."""
    folder = directory / "v1" / "baselines"
    folder.unlink()
    (directory / "v1" / _AWAY).rename(folder)


def _key_file(directory: Path, rng: Random) -> Path:
    """That of one owner's key."""
    return rng.choice(sorted((directory / "v1" / "keys").iterdir()))


def remove_key(directory: Path, rng: Random) -> None:
    """A key is gone, and with it what it encrypted."""
    _key_file(directory, rng).unlink()


def flip_key_bit(directory: Path, rng: Random) -> None:
    """A key is not what it was."""
    _flip_any(_key_file(directory, rng), rng)


# ---- a store in use --------------------------------------------------------------------------------------------------


def break_pages(table: str) -> OnStore:
    """A tree breaks while it is mapped."""
    return lambda _store, directory, _rng: break_tree(data_file(directory, table))


def while_open(damage: OnDirectory) -> OnStore:
    """What damages a directory at rest, under an open store."""
    return lambda _store, directory, rng: damage(directory, rng)


def cut_while_open(table: str) -> OnStore:
    """A file loses its end while it is mapped."""
    return while_open(truncate(table))


def no_space(store: LmdbStore, _: Path, __: Random) -> None:
    """The file system is full."""
    store.change(min_free_bytes=1)
    store._room.free_bytes = lambda: 0


class _FullMap:
    """An environment that finds its map full in two write transactions of three."""

    def __init__(self, environment: lmdb.Environment, rng: Random) -> None:
        self._environment, self._rng = environment, rng

    def begin(self, **how: Any) -> Any:
        if how.get("write") and self._rng.random() < 2 / 3:
            raise lmdb.MapFullError("full")
        return self._environment.begin(**how)

    def __getattr__(self, name: str) -> object:
        return getattr(self._environment, name)


def full_map(store: LmdbStore, _: Path, rng: Random) -> None:
    """LMDB says MapFull now and then, in either environment."""
    tables = store._tables
    for name in ("records", "entries"):
        setattr(tables, name, _FullMap(getattr(tables, name), rng))


def clock_goes_back(store: LmdbStore, _: Path, rng: Random) -> None:
    """By up to ten years, and on from there."""
    before, back = store._now_ns, rng.randrange(10 * 365 * 86_400 * 10**9)
    store._now_ns = store._changes.now_ns = lambda: before() - back


def failing(kind: type[Fault], on: str | tuple[str, ...], chance: float = 0.4) -> Faults:
    """Calls that fail now and then."""
    return lambda _: [kind(on=on, chance=chance)]


RECORDS = [
    Kind("record: bit flipped in the header", in_use=flip(lambda _: 0, lambda *_: FIXED_HEADER)),
    Kind("record: bit flipped in the token ids", in_use=flip(lambda _: FIXED_HEADER, _tokens_end)),
    Kind("record: bit flipped in the payload", in_use=FLIP_PAYLOAD),
    Kind("record: cut short", in_use=on_record(_cut)),
    Kind("record: torn write, zeros from some sector on", in_use=on_record(_tear)),
    Kind("record: another block's", in_use=on_record(_others)),
    Kind("record: another model's", in_use=on_record(_foreign)),
    Kind("record: of a newer version", in_use=on_record(_newer)),
]
FILES = [
    *[
        kind
        for table in ("payload", "meta")
        for kind in (
            Kind(f"{table} file: bits flipped in any page", at_rest=flip_page_bits(table)),
            Kind(f"{table} file: bits flipped, after a crash", at_rest=crashed(flip_page_bits(table))),
            Kind(f"{table} file: truncated", at_rest=truncate(table)),
            Kind(f"{table} file: gone", at_rest=remove(table)),
            Kind(f"{table} file: somebody else's", at_rest=overwrite(table)),
            Kind(f"{table} file: older than the other", at_rest=stale(table)),
            Kind(f"{table} file: tree pages broken while mapped", in_use=break_pages(table)),
            Kind(f"{table} file: truncated while mapped", in_use=cut_while_open(table)),
        )
    ],
    Kind("power lost: pages never written, after a crash", at_rest=crashed(drop_pages)),
    Kind("a crash, and nothing else", at_rest=crashed()),
    Kind("files of a newer format and of nobody's", at_rest=strangers),
]
BASELINES = [
    Kind("baseline: bit flipped", at_rest=FLIP_BASELINE),
    Kind("baseline: cut short", at_rest=on_baselines(_cut_file)),
    Kind("baseline: cannot be read at the opening", at_rest=hide_baselines, in_use=show_baselines),
    Kind("baseline: gone", at_rest=on_baselines(lambda file, _: file.unlink())),
    Kind("baseline: gone, after a crash", at_rest=crashed(on_baselines(lambda file, _: file.unlink()))),
    Kind(
        "baseline: gone while the store is open",
        in_use=while_open(on_baselines(lambda file, _: file.unlink())),
    ),
]
CALLS = [
    Kind("read: EIO before the work", faults=failing(ErrorBefore, "read")),
    Kind("read: EIO after the work", faults=failing(ErrorAfter, "read")),
    Kind("read: short", faults=failing(ShortData, "read")),
    Kind("read: garbage", faults=failing(Garbage, "read")),
    Kind("read: a miss that should be a hit", faults=failing(FalseMiss, "read")),
    Kind("read: a miss that leaves junk in the buffer", faults=failing(DirtyMiss, "read")),
    Kind("read: hangs", faults=lambda gate: [Hang(gate, on="read", chance=0.3)]),
    Kind("write: EIO before the work", faults=failing(ErrorBefore, "write")),
    Kind("write: EIO after the work", faults=failing(ErrorAfter, "write")),
    Kind("write: short", faults=failing(ShortData, "write")),
    Kind("write: garbage", faults=failing(Garbage, "write")),
    Kind("write: hangs", faults=lambda gate: [Hang(gate, on="write", chance=0.3)]),
    Kind("delete: EIO", faults=failing(ErrorBefore, "delete")),
    Kind("sync: EIO", faults=failing(ErrorBefore, "sync")),
    Kind("slow, every call", faults=lambda _: [Delay(0.002)]),
    Kind(
        "everything at once",
        in_use=FLIP_PAYLOAD,
        faults=lambda _: [
            kind(on=("read", "write"), chance=0.1) for kind in (ErrorBefore, ErrorAfter, ShortData, Garbage)
        ],
    ),
]
SURROUNDINGS = [
    Kind("no space left on the device", in_use=no_space),
    Kind("LMDB's map full", in_use=full_map),
    Kind("the clock goes back", in_use=clock_goes_back),
    Kind("another process has the directory", held=True),
    Kind("a file where the directory should be", at_rest=not_a_directory),
]
ENCRYPTED = [
    Kind("encrypted: bit flipped in a record", in_use=flip(lambda _: 0, lambda _, r: len(r)), encrypted=True),
    Kind("encrypted: another block's record", in_use=on_record(_others), encrypted=True),
    Kind("encrypted: power lost, after a crash", at_rest=crashed(drop_pages), encrypted=True),
    Kind("encrypted: a key gone", at_rest=remove_key, encrypted=True),
    Kind("encrypted: bit flipped in a key", at_rest=flip_key_bit, encrypted=True),
    Kind("encrypted: bit flipped in a baseline", at_rest=FLIP_BASELINE, encrypted=True),
]
KINDS = {kind.name: kind for kind in (*RECORDS, *FILES, *BASELINES, *CALLS, *SURROUNDINGS, *ENCRYPTED)}
