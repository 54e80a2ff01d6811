"""Where values lie, as our own walk of LMDB's tree has it: as LMDB itself says, or not at all, whatever the pages hold."""

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore import StoreFailed
from kvstore.disk import tree
from kvstore.disk.page_cache import drop, pages_absent
from kvstore.disk.tree import Found, Tree
from kvstore.disk.verification import Meta

PAGE = 4096
SIZES = (0, 9, 1000, 2020, 2030, 2040, 4079, 4080, 4081, 9000, 70_000)
"""Of values: some have their place in the tree, some pages for themselves."""


@contextmanager
def opened(folder: Path, map_bytes: int = 256 << 20) -> Iterator[lmdb.Environment]:
    with lmdb.open(str(folder), map_size=map_bytes, sync=False, readahead=False) as environment:
        yield environment


def walk_of(environment: lmdb.Environment) -> Tree:
    return Tree(environment, lambda: (Path(environment.path()) / "data.mdb").stat().st_size)


def address(value: memoryview) -> int:
    return int(np.frombuffer(value, np.uint8).ctypes.data)


def assert_as_lmdb(found: Found, txn, keys: list[bytes]) -> int:
    """All that is found is what LMDB finds; what is not has no pages for itself. Answers how many were found."""
    for key, begin, size in zip(keys, found.begins.tolist(), found.sizes.tolist(), strict=True):
        value = txn.get(key)
        if begin >= 0:
            assert (found.map_begin + begin, size) == (address(value), len(value))
        else:
            assert value is None or len(value) < PAGE / 2
    return int((found.begins >= 0).sum())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 32),
    most_key_bytes=st.sampled_from([3, 64, 511]),
    num_keys=st.integers(0, 300),
    num_commits=st.integers(1, 4),
)
def test_it_is_what_lmdb_finds(tmp_path_factory, seed, most_key_bytes, num_keys, num_commits):
    """Many keys and few, long and short; deleted, replaced, and never there; of trees of up to three levels."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("tree")
    keys = [rng.bytes(rng.integers(1, most_key_bytes, endpoint=True)) for _ in range(num_keys)]
    with opened(folder) as environment:
        walk = walk_of(environment)
        for _ in range(num_commits):
            with environment.begin(write=True) as txn:
                for key in keys:
                    if rng.random() < 0.3:
                        txn.delete(key)
                    elif rng.random() < 0.6:
                        txn.put(key, bytes(rng.choice(SIZES)))
            asked = [
                *keys,
                *(key[:-1] + b"\xff" for key in keys),
                *(key + b"\0" for key in keys if len(key) < 511),
                b"a",
            ]
            with environment.begin(buffers=True) as txn:
                found = walk.find(txn, asked)
                if found is not None:
                    assert_as_lmdb(found, txn, asked)
                else:  # there was nothing to learn the map's place from
                    values = (value for key in asked if (value := txn.get(key)) is not None)
                    assert len(next(values, b"")) < PAGE / 2


def filled(
    environment: lmdb.Environment, num_keys: int, key_bytes: int = 64, version: int = 0
) -> list[bytes]:
    """Keys in the order of the tree, each with its key and a version as the begin of a value that has pages for itself."""
    rng = np.random.default_rng(0)
    keys = sorted(rng.bytes(key_bytes) for _ in range(num_keys))
    with environment.begin(write=True) as txn:
        for number, key in enumerate(keys):
            txn.put(key, key + bytes([version]) + bytes(3000 + 4000 * ((number + version) % 3)))
    return keys


@pytest.mark.parametrize(("num_keys", "key_bytes", "depth"), [(1, 64, 1), (300, 64, 2), (300, 500, 3)])
def test_all_levels_are_walked(tmp_path, num_keys, key_bytes, depth):
    with opened(tmp_path) as environment:
        keys = filled(environment, num_keys, key_bytes)
        assert environment.stat()["depth"] == depth
        with environment.begin(buffers=True) as txn:
            walk = walk_of(environment)
            found = walk.find(txn, keys)
            assert assert_as_lmdb(found, txn, keys) == num_keys
            assert len(walk.find(txn, []).begins) == 0


def test_an_empty_tree_is_left_to_lmdb(tmp_path):
    with opened(tmp_path) as environment:
        walk = walk_of(environment)
        with environment.begin(buffers=True) as txn:
            assert walk.find(txn, [b"key"]) is None
        [key] = filled(environment, 1)
        with environment.begin(buffers=True) as txn:
            assert walk.find(txn, [key]) is not None
        with environment.begin(write=True) as txn:
            txn.delete(key)
        with environment.begin(buffers=True) as txn:
            assert walk.find(txn, [key]) is None


def test_the_map_may_move(tmp_path):
    """It is found again, as LMDB gives its size with it."""
    with opened(tmp_path, 16 << 20) as environment:
        walk, keys = walk_of(environment), filled(environment, 100)
        begins = set()
        for map_bytes in (16 << 20, 1 << 30, 2 << 30):
            environment.set_mapsize(map_bytes)
            with environment.begin(buffers=True) as txn:
                found = walk.find(txn, keys)
                assert assert_as_lmdb(found, txn, keys) == 100
                begins.add(found.map_begin)
        assert len(begins) > 1


def assert_since(found: Found, keys: list[bytes], version: int) -> None:
    """All are found, of this version or a later one."""
    for key, begin in zip(keys, found.begins.tolist(), strict=True):
        assert begin >= 0
        value = ctypes.string_at(found.map_begin + begin, len(key) + 1)
        assert value[:-1] == key
        assert value[-1] >= version


def test_a_transaction_keeps_what_was_committed_since(tmp_path):
    """Its own meta page is overwritten by the next commit but one, and more commits do what they like with pages that nobody has."""
    with opened(tmp_path) as environment:
        walk, keys = walk_of(environment), filled(environment, 60)
        with environment.begin(buffers=True) as txn:
            found = walk.find(txn, keys)
            assert_since(found, keys, 0)
            for version in range(1, 8):
                filled(environment, 60, version=version)
                later = walk.find(txn, keys)
                assert_since(later, keys, version)
                assert_since(found, keys, 0)


def test_a_writer_may_commit_at_any_moment(tmp_path):
    with opened(tmp_path) as environment:
        walk, keys, ended = walk_of(environment), filled(environment, 60), threading.Event()
        committed = [0]

        def write() -> None:
            for version in range(1, 100):
                filled(environment, 60, version=version)
                committed[0] = version
            ended.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while not ended.is_set():
                version = committed[0]
                with environment.begin(buffers=True) as txn:
                    found = walk.find(txn, keys)
                    if found is not None:  # two commits while it looked twice
                        assert_since(found, keys, version)
        finally:
            writer.join()


def test_the_maps_place_is_not_learned_from_a_value_that_has_moved(tmp_path):
    """As LMDB's answer would be another than ours; the next transaction tells it."""
    with opened(tmp_path) as environment:
        walk, keys = walk_of(environment), filled(environment, 10)
        with environment.begin(buffers=True) as txn:
            filled(environment, 10, version=1)
            assert walk.find(txn, keys) is None
        with environment.begin(buffers=True) as txn:
            assert_since(walk.find(txn, keys), keys, 1)


def test_no_value_is_touched(tmp_path):
    with opened(tmp_path) as environment:
        keys = filled(environment, 100)
    drop(tmp_path / "data.mdb")
    with opened(tmp_path) as environment, environment.begin(buffers=True) as txn:
        walk = walk_of(environment)
        walk.find(txn, keys[:1])
        drop(tmp_path / "data.mdb")
        found = walk.find(txn, keys)
        places = [
            (found.map_begin + begin, size) for begin, size in zip(found.begins, found.sizes, strict=True)
        ]
        absent = [
            pages_absent(int(begin), int(size)) == -(-(int(size) + 16) // PAGE) for begin, size in places
        ]
        # on a file system that is nothing but memory, all are in memory anyway
        assert sum(absent[1:]) >= 90 or not any(absent)


# ---- damage ------------------------------------------------------------------------------------------------------------


class Guarded:
    """A copy of a file in memory, between pages that nobody may touch."""

    def __init__(self, content: bytes) -> None:
        self.num_bytes = -(-len(content) // PAGE) * PAGE
        self._memory = mmap.mmap(-1, self.num_bytes + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = np.frombuffer(self._memory, np.uint8)[PAGE : PAGE + self.num_bytes]
        self.bytes[: len(content)] = np.frombuffer(content, np.uint8)
        self.begin = int(self.bytes.ctypes.data)
        libc = ctypes.CDLL(None, use_errno=True)
        for at in (self.begin - PAGE, self.begin + self.num_bytes):
            assert not libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(PAGE), 0)

    def find(self, meta: Meta, keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        firsts, sizes = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        num_pages = min(meta.last_page + 1, self.num_bytes // PAGE)
        joined, ends = np.frombuffer(b"".join(keys), np.uint8), np.cumsum([len(key) for key in keys])
        tree.finding()(self.begin, num_pages, PAGE, meta.root, meta.depth, joined, ends, firsts, sizes)
        return firsts, sizes


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> tuple[Guarded, list[bytes]]:
    """The pages of a tree of three levels, those of its branches and leaves, and its keys."""
    folder = tmp_path_factory.mktemp("damaged")
    with opened(folder) as environment:
        keys = filled(environment, 120, 500)
        assert environment.stat()["depth"] == 3
        return Guarded((folder / "data.mdb").read_bytes()), keys


def meta_of(pages: Guarded) -> Meta | None:
    return tree._newest(pages.begin, PAGE, 0)


def test_no_damage_leads_out_of_the_pages(damaged):
    """Bits that flip, and numbers that become others, in branches and leaves: what is answered may be wrong, or that it is not sure."""
    pages, keys = damaged
    meta, rng = meta_of(pages), np.random.default_rng(1)
    firsts, _ = pages.find(meta, keys)
    assert (firsts > 1).all()
    words = pages.bytes.view(np.uint16)
    kinds = words.reshape(-1, PAGE // 2)[:, 5]
    of_tree = np.flatnonzero((kinds == 1) | (kinds == 2))
    of_tree = of_tree[of_tree >= 2]
    num_unsure = 0
    for _ in range(6000):
        page = int(rng.choice(of_tree))
        within = rng.integers(0, 32) if rng.random() < 0.5 else rng.integers(0, PAGE // 2)
        at = page * PAGE // 2 + int(within)
        was = words[at]
        words[at] = (
            rng.integers(0, 1 << 16) if rng.random() < 0.5 else was ^ np.uint16(1 << rng.integers(0, 16))
        )
        some = [keys[number] for number in rng.integers(0, len(keys), 6)]
        now, now_sizes = pages.find(meta, some)
        assert ((now == -1) | ((now >= 0) & (now <= 1 << 40))).all()
        assert ((now == -1) | ((now_sizes >= 0) & (now_sizes < 1 << 32))).all()
        num_unsure += int((now == -1).sum())
        words[at] = was
    assert num_unsure
    assert np.array_equal(pages.find(meta, keys)[0], firsts)


@pytest.mark.parametrize("depth", [0, 1, 2, 4, 32])
def test_a_tree_that_is_not_so_deep_is_not_walked(damaged, depth):
    """And none that goes round in a circle."""
    pages, keys = damaged
    meta = meta_of(pages)
    meta.depth = depth
    assert (pages.find(meta, keys)[0] == -1).all()
    whole = pages.bytes.copy()
    words = pages.bytes.view(np.uint16).reshape(-1, PAGE // 2)
    [root] = words[meta.root : meta.root + 1]
    for place in root[8 : 8 + (int(root[6]) - 16) // 2]:
        root[int(place) // 2 : int(place) // 2 + 3] = [meta.root, 0, 0]
    assert (pages.find(meta, keys)[0] == -1).all()
    pages.bytes[:] = whole


def test_a_meta_page_that_is_damaged_is_not_believed_blindly(damaged):
    """It is none, or what it says of the tree is within its bounds: no walk from there leads out of the pages."""
    pages, keys = damaged
    rng, num_refused = np.random.default_rng(2), 0
    for _ in range(3000):
        at = int(rng.integers(0, 2)) * PAGE + int(rng.integers(0, Meta.num_bytes))
        was = pages.bytes[at]
        pages.bytes[at] ^= np.uint8(1 << rng.integers(0, 8))
        meta = meta_of(pages)
        num_refused += meta is None
        if meta is not None:
            assert meta.root <= meta.last_page
            pages.find(meta, keys[:5])
        pages.bytes[at] = was
    assert num_refused > 100


@pytest.mark.parametrize(
    ("name", "value"), [("_VERSION", 2), ("_META", 4), ("VALUE_OFFSET", 24), ("_MOST_DEPTH", 0)]
)
def test_another_format_is_left_to_lmdb(tmp_path, monkeypatch, name, value):
    """Whatever of it is another: its own answer is compared with ours, once for a map."""
    monkeypatch.setattr(tree, name, value)
    with opened(tmp_path) as environment:
        walk, keys = walk_of(environment), filled(environment, 10)
        for _ in range(2):
            with environment.begin(buffers=True) as txn:
                assert walk.find(txn, keys) is None
        monkeypatch.undo()
        with environment.begin(buffers=True) as txn:
            assert walk.find(txn, keys) is None


def test_where_nothing_can_be_compiled_lmdb_is_asked(tmp_path, monkeypatch):
    def fail() -> None:
        raise StoreFailed("NUMBA_DISABLE_JIT is set")

    monkeypatch.setattr(tree, "finding", fail)
    with opened(tmp_path) as environment, environment.begin(buffers=True) as txn:
        assert walk_of(environment).find(txn, [b"key"]) is None
    with opened(tmp_path) as environment:
        keys = filled(environment, 3)
        with environment.begin(buffers=True) as txn:
            assert walk_of(environment).find(txn, keys) is None
