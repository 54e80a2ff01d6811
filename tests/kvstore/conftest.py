"""Small stores of every kind, by name, and a way to open disk stores one after the other."""

import ctypes
import mmap
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import BlockLayout, LmdbStore, MemoryStore, Namespace, Store, code
from kvstore.code import Function
from kvstore.disk import payload_file, request_words, requests
from tests.kvstore.halved import HALVE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=16, dtype="bfloat16", block_tokens=16)
FLOAT32 = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=16, dtype="float32", block_tokens=8)
NAMESPACE = Namespace.of({"model": "tiny", "dtype": "bfloat16"})
MASTER_KEY = bytes(range(32))
CAPACITY_BYTES = 40 * LAYOUT.block_bytes


def lmdb_store(path: Path, **changed) -> LmdbStore:
    """A disk store that syncs only when told to, and asks nothing of the file system."""
    options = {
        "namespace": NAMESPACE,
        "layout": LAYOUT,
        "capacity_bytes": CAPACITY_BYTES,
        "min_free_bytes": 0,
        "sync_interval_s": 3600.0,
    }
    return LmdbStore(path, **{**options, **changed})


def sqlite_store(path: Path) -> Store:
    """The store that the examples bring."""
    made = runpy.run_path(str(EXAMPLES / "sqlite_store.py"))["SqliteStore"]
    return made(path / "kv.sqlite", namespace=NAMESPACE, layout=LAYOUT, capacity_bytes=CAPACITY_BYTES)


STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda path: MemoryStore(NAMESPACE, LAYOUT, CAPACITY_BYTES),
    "memory float32": lambda path: MemoryStore(NAMESPACE, FLOAT32, CAPACITY_BYTES),
    "memory raw": lambda path: MemoryStore(NAMESPACE, LAYOUT, CAPACITY_BYTES, compression="off"),
    "lmdb": lmdb_store,
    "lmdb float32": lambda path: lmdb_store(path, layout=FLOAT32),
    "lmdb syncing": lambda path: lmdb_store(path, sync_interval_s=0.0),
    "lmdb strict": lambda path: lmdb_store(path, durability="strict"),
    "lmdb baseline": lambda path: lmdb_store(path, learn_tokens=(16, 64)),
    "lmdb encrypted": lambda path: lmdb_store(path, master_key=MASTER_KEY),
    "lmdb encrypted baseline": lambda path: lmdb_store(path, master_key=MASTER_KEY, learn_tokens=(16,)),
    "sqlite": sqlite_store,
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORES[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def memory_store() -> MemoryStore:
    return MemoryStore(NAMESPACE, LAYOUT, CAPACITY_BYTES)


@pytest.fixture
def open_lmdb(tmp_path: Path) -> Iterator[Callable[..., LmdbStore]]:
    """Opens disk stores in one directory, unless `path` names another; closes what the test left open."""
    opened: list[LmdbStore] = []

    def open_one(path: Path = tmp_path, **changed) -> LmdbStore:
        opened.append(lmdb_store(path, **changed))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def crash() -> Callable[[LmdbStore], None]:
    """Leaves the directory as a process that was killed would: unsynced, unmarked, its lock gone."""

    def end(store: LmdbStore) -> None:
        store._door.close()
        store._resources.close()

    return end


def read_by(monkeypatch: pytest.MonkeyPatch, preadv: Callable[[int, list[memoryview], int], int]) -> None:
    """Have a store's files be read by this, as `os.preadv`, which raises OSError where a disk fails."""

    @ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
    def pread(file: int, address: int, num_bytes: int, offset: int) -> int:
        memory = (ctypes.c_ubyte * num_bytes).from_address(address)
        try:
            return preadv(file, [memoryview(memory).cast("B")], offset)
        except OSError:
            return -1

    monkeypatch.setattr(payload_file.os, "preadv", preadv)
    served_by(monkeypatch, "PREAD", pread)


def absent_by(monkeypatch: pytest.MonkeyPatch, num_absent: Callable[[int, int], int]) -> None:
    """Have stores learn from this, as `pages_absent`, what of their files is not in memory."""

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    def mincore(address: int, num_bytes: int, pages: int) -> int:
        for page in range(num_bytes // mmap.PAGESIZE):
            is_absent = num_absent(address + page * mmap.PAGESIZE, mmap.PAGESIZE) > 0
            ctypes.c_ubyte.from_address(pages + page).value = not is_absent
        return 0

    served_by(monkeypatch, "MINCORE", mincore)


def patient(monkeypatch: pytest.MonkeyPatch, seconds: int = 30) -> None:
    """Have who waits for a read wait so much longer than a tenth of a second before he makes it himself: threads may be slow to begin."""

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    def clock(number: int, at: int) -> int:
        now_ns = time.clock_gettime_ns(number) + (10**9 * seconds if number == time.CLOCK_REALTIME else 0)
        told = (ctypes.c_long * 2).from_address(at)
        told[0], told[1] = divmod(now_ns, 10**9)
        return 0

    served_by(monkeypatch, "CLOCK", clock)


def served_by(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """Have requests be served by this ctypes function in place of the C library's: `name` is of kvstore.disk.request_words."""
    _KEPT.append(function)  # a thread may still be about to call it
    monkeypatch.setattr(_LIBC, name, ctypes.cast(function, ctypes.c_void_p).value)


def _address(name: str) -> property:
    number = getattr(request_words, name)
    return property(
        lambda _: requests.functions.item(number),
        lambda _, address: requests.functions.__setitem__(number, address),
    )


class _Libc:
    """What requests are served by, at this moment."""

    PREAD, MINCORE, CLOCK = map(_address, ("PREAD", "MINCORE", "CLOCK"))


_LIBC = _Libc()
_KEPT: list[Any] = []


@pytest.fixture(scope="session")
def halving() -> bytes:
    """The code of `halve`, compiled once."""
    [made] = code._compile([HALVE])
    return made


@pytest.fixture
def compiles(halving, monkeypatch) -> list[str]:
    """What was asked to be compiled; it answers at once."""
    asked: list[str] = []

    def answer(functions: list[Function]) -> list[bytes]:
        asked.extend(one.name for one in functions)
        return [halving] * len(functions)

    monkeypatch.setattr(code, "_compile", answer)
    return asked
