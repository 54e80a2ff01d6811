"""A directory remembers whose blocks it holds, and finds a prompt that another namespace has."""

import json
import shutil
from dataclasses import replace

import pytest

from kvstore import BlockRef, MemoryStore, Namespace, Unsupported, chain_key
from kvstore.disk import LmdbStore, maintenance, namespaces
from kvstore.facts import differing_facts, shortened
from kvstore.layers import FaultStore
from kvstore.steering import Changeable, KnowsOthers
from kvstore.testing import chain, fill, kv_like
from tests.kvstore.conftest import CAPACITY_BYTES, LAYOUT, MASTER_KEY, NAMESPACE

OTHER = Namespace.of({"model": "tiny", "dtype": "float16"})
THIRD = Namespace.of({"model": "large", "dtype": "float16"})


def fact_file(path, namespace: Namespace):
    return path / "v1" / "namespaces" / f"{namespace.digest.hex()}.json"


def prompt_in(namespace: Namespace, tokens: list[bytes]) -> list[BlockRef]:
    """The blocks of a prompt as a namespace calls them."""
    refs, parent = [], namespace.root_key
    for block in tokens:
        refs.append(BlockRef(chain_key(parent, block), parent, block))
        parent = refs[-1].key
    return refs


# ---- whose blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"master_key": MASTER_KEY}], ids=["plain", "encrypted"])
def test_the_facts_of_other_namespaces_are_known(open_lmdb, changed):
    for namespace, num_blocks in ((OTHER, 3), (THIRD, 5)):
        with open_lmdb(namespace=namespace, **changed) as store:
            fill(store, num_blocks)
    store = open_lmdb(**changed)
    own, *others = store.namespaces()
    assert (own.own, own.digest, own.blocks, own.stored_bytes) == (True, NAMESPACE.digest.hex(), 0, 0)
    assert own.facts == {"model": "tiny", "dtype": "bfloat16"}
    assert [(other.own, other.facts, other.blocks) for other in others] == [
        (False, {"model": "large", "dtype": "float16"}, 5),
        (False, {"model": "tiny", "dtype": "float16"}, 3),
    ]
    assert sum(other.stored_bytes for other in others) == store.stats().other_namespaces_bytes


def test_only_the_owner_may_look(open_lmdb, tmp_path):
    open_lmdb()
    file = fact_file(tmp_path, NAMESPACE)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(file.read_text()) == dict(NAMESPACE.fields)


def test_a_file_is_written_once(open_lmdb, tmp_path):
    with open_lmdb() as store:
        fill(store, 1)
    before = fact_file(tmp_path, NAMESPACE).stat()
    open_lmdb()
    after = fact_file(tmp_path, NAMESPACE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"model": 1}',
        b'{"model": "another", "dtype": "float16"}',
        b"[" * 60_000,
        b" " * namespaces.MAX_BYTES + b'{"model": "tiny", "dtype": "float16"}',
        None,
        "a directory",
    ],
    ids=lambda content: repr(content)[:20],
)
def test_what_is_damaged_is_not_known(open_lmdb, tmp_path, content):
    """And costs nothing else: the blocks are counted, and the namespace's own next opening mends it."""
    with open_lmdb(namespace=OTHER) as store:
        fill(store, 3)
    file = fact_file(tmp_path, OTHER)
    file.unlink()
    if content == "a directory":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with open_lmdb() as store:
        [_, other] = store.namespaces()
        assert (other.digest, other.facts, other.blocks) == (OTHER.digest.hex(), None, 3)
    if content == "a directory":
        shutil.rmtree(file)
    open_lmdb(namespace=OTHER).close()
    with open_lmdb() as store:
        assert store.namespaces()[1].facts == dict(OTHER.fields)


def test_facts_that_cannot_be_written_cost_nothing_else(open_lmdb, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(namespaces, "write_new", full)
        with open_lmdb(namespace=OTHER) as store:
            fill(store, 2)
            assert store.namespaces()[0].facts == dict(OTHER.fields), "of its own it knows them"
    assert not fact_file(tmp_path, OTHER).exists()
    assert [info.facts for info in open_lmdb().namespaces()] == [dict(NAMESPACE.fields), None]


def test_facts_that_no_file_would_hold_are_not_written(open_lmdb, tmp_path):
    large = Namespace.of({"model": "x" * namespaces.MAX_BYTES})
    open_lmdb(namespace=large)
    assert not fact_file(tmp_path, large).exists()


# ---- and until when ------------------------------------------------------------------------------------


def test_facts_go_with_the_last_block(open_lmdb, tmp_path):
    with open_lmdb(namespace=OTHER) as store:
        refs, _ = fill(store, 2)
    with open_lmdb() as store:
        fill(store, 1)
    with open_lmdb(namespace=OTHER) as store:
        store.delete_many([ref.key for ref in refs])
    assert not fact_file(tmp_path, OTHER).exists()
    assert fact_file(tmp_path, NAMESPACE).exists()


def test_a_crash_leaves_them_to_the_next_opening(open_lmdb, crash, tmp_path):
    crash(open_lmdb(namespace=OTHER))
    leftover = fact_file(tmp_path, OTHER).with_suffix(".json.new")
    leftover.write_text("half of")
    assert fact_file(tmp_path, OTHER).exists()
    open_lmdb().sync()
    assert list(leftover.parent.iterdir()) == [fact_file(tmp_path, NAMESPACE)]


@pytest.mark.parametrize("how", ["erased", "expired", "emptied"])
def test_facts_of_others_go_when_their_blocks_do(open_lmdb, tmp_path, how):
    owner = bytes([7]) * 16
    with open_lmdb(namespace=OTHER, now_ns=lambda: 1) as store:
        refs = [replace(ref, owner=owner) for ref in chain(store, 2)]
        store.put_many(refs, kv_like(store, 2))
    store = open_lmdb(now_ns=lambda: 10**12, ttl_s=1.0 if how == "expired" else None)
    if how == "erased":
        assert fact_file(tmp_path, OTHER).exists()
        assert store.erase(owner) == 2
    elif how == "emptied":
        fill(store, 1)
        store.change(ttl_s=1.0)
    store.sync()
    assert not fact_file(tmp_path, OTHER).exists()
    assert [info.own for info in store.namespaces()] == [True]


def test_a_cleared_directory_has_none(open_lmdb, tmp_path):
    with open_lmdb() as store:
        fill(store, 1)
    maintenance.clear(tmp_path, old=False)
    assert not (tmp_path / "v1" / "namespaces").exists()


# ---- another namespace has it --------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"master_key": MASTER_KEY}], ids=["plain", "encrypted"])
def test_others_that_have_a_prompt_are_found(open_lmdb, changed):
    """By names, which only who has the key can compute where they are encrypted."""
    with open_lmdb(namespace=OTHER, **changed) as store:
        tokens = [ref.tokens for ref in chain(store, 6)]
        refs = prompt_in(OTHER, tokens)
        store.put_many(refs[:3] + refs[4:], kv_like(store, 5))
        fill(store, 2, seed=1)
    with open_lmdb(namespace=THIRD, **changed) as store:
        store.put_many(prompt_in(THIRD, tokens)[:4], kv_like(store, 4))
    store = open_lmdb(**changed)
    store.put_many(prompt_in(NAMESPACE, tokens), kv_like(store, 6))
    assert store.others_with(tokens) == [
        (THIRD.digest.hex(), dict(THIRD.fields), 4),
        (OTHER.digest.hex(), dict(OTHER.fields), 3),
    ]
    assert store.others_with(tokens[:2]) == [
        (digest.digest.hex(), dict(digest.fields), 2) for digest in (OTHER, THIRD)
    ]
    assert store.others_with(tokens[1:]) == []
    assert store.others_with([]) == []


def test_how_much_is_looked_at_is_bounded(open_lmdb, monkeypatch):
    monkeypatch.setattr(namespaces, "MAX_BLOCKS", 5)
    monkeypatch.setattr(namespaces, "MAX_OTHERS", 1)
    monkeypatch.setattr(namespaces, "_KEYS_PER_READ", 2)
    for namespace, num_blocks in ((OTHER, 7), (THIRD, 8)):
        with open_lmdb(namespace=namespace) as store:
            tokens = [ref.tokens for ref in chain(store, num_blocks)]
            store.put_many(prompt_in(namespace, tokens), kv_like(store, num_blocks))
    [found] = open_lmdb().others_with(tokens)
    assert (found.digest, found.blocks) == (THIRD.digest.hex(), 5)


# ---- other stores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layered", [False, True])
def test_a_store_in_memory_tells_the_same_save_others_facts(layered):
    shelf = {}
    with MemoryStore(OTHER, LAYOUT, CAPACITY_BYTES, shelf=shelf) as other:
        tokens = [ref.tokens for ref in chain(other, 4)]
        other.put_many(prompt_in(OTHER, tokens)[:3], kv_like(other, 3))
        stored_bytes = other.stats().stored_bytes
    store = MemoryStore(NAMESPACE, LAYOUT, CAPACITY_BYTES, shelf=shelf)
    asked = FaultStore(store) if layered else store
    assert isinstance(asked, KnowsOthers)
    own, info = asked.namespaces()
    assert (own.own, own.facts, own.blocks) == (True, dict(NAMESPACE.fields), 0)
    assert (info.own, info.facts, info.blocks, info.stored_bytes) == (False, None, 3, stored_bytes)
    assert asked.others_with(tokens) == [(OTHER.digest.hex(), None, 3)]
    assert asked.others_with(tokens[:2]) == [(OTHER.digest.hex(), None, 2)]


def test_a_layer_passes_on_what_its_store_can(open_lmdb):
    layer = FaultStore(open_lmdb())
    assert isinstance(layer, KnowsOthers) and isinstance(layer, Changeable)
    layer.change(capacity_bytes=0)
    assert layer.stats().capacity_bytes == 0
    unable = FaultStore(FaultStore.__new__(Nothing))
    for call in (unable.namespaces, lambda: unable.others_with([]), unable.change):
        with pytest.raises(Unsupported, match="Nothing"):
            call()


class Nothing:
    """A store that can do nothing besides."""


def test_the_disk_store_can_all_of_it():
    assert all(hasattr(LmdbStore, name) for name in ("namespaces", "others_with", "change", "verify"))


# ---- in words ------------------------------------------------------------------------------------------


def test_what_differs_is_said_in_words():
    digest = "3f" * 32
    there = {"kv_dtype": "float16", "weights": digest, "mode": "fast", "threads": "2"}
    here = {"kv_dtype": "bfloat16", "weights": "9b" * 32, "mode": "fast", "adapter": "none"}
    assert differing_facts(there, here) == (
        "adapter: not set there, none here",
        "kv_dtype: float16 there, bfloat16 here",
        "threads: 2 there, not set here",
        "weights: 3f3f3f3f3f3f there, 9b9b9b9b9b9b here",
    )
    assert differing_facts(here, here) == ()
    assert shortened("llama, 5.17.0") == "llama, 5.17.0"
