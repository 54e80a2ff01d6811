"""What a disk store keeps because users asked: whole or not at all, under its own key, and through what happens to blocks."""

import shutil
import struct

import lmdb
import pytest

from kvstore.block import BlockLayout, Namespace, chain_key
from kvstore.disk import LmdbStore, maintenance, retained
from kvstore.disk.environment import Unsound
from kvstore.disk.retained import _ENVELOPE, _enveloped
from kvstore.errors import StoreFailed, StoreFull
from kvstore.steering import Retains, StoredName, StoredTerm
from kvstore.store import NO_OWNER, BlockRef

LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=64, block_tokens=16, dtype="float16")
OURS, THEIRS = (Namespace.of({"model": model}) for model in ("ours", "theirs"))
TOKENS = bytes(range(64)) + bytes(range(64, 128))
BLOCK = LAYOUT.token_id_bytes
ALICE = b"a" * 16
MASTER = b"m" * 32


def open_store(path, namespace=OURS, **settings):
    limits = {"capacity_bytes": 1 << 20, "min_free_bytes": 0, "compression": "off"}
    return LmdbStore(path, namespace=namespace, layout=LAYOUT, **{**limits, **settings})


def a_name(number=1, **changed):
    name = StoredName(
        key=bytes([number]) * 32,
        owner=NO_OWNER,
        first_block=0,
        tokens=TOKENS,
        block_bytes=BLOCK,
        since_ns=1,
        ttl_ns=None,
        content=b'{"name": "handbook"}',
    )
    return name._replace(**changed)


def refs(namespace=OURS, tokens=TOKENS):
    found, parent = [], namespace.root_key
    for at in range(0, len(tokens), BLOCK):
        block = tokens[at : at + BLOCK]
        found.append(BlockRef(chain_key(parent, block), parent, block))
        parent = found[-1].key
    return found


def put(store, blocks):
    store.put_many(blocks, [bytes(LAYOUT.block_bytes)] * len(blocks))


@pytest.mark.parametrize("master_key", [None, MASTER], ids=["plain", "encrypted"])
def test_names_and_terms_are_there_again(tmp_path, master_key):
    blocks, disk, killed = refs(), tmp_path / "disk", tmp_path / "killed"
    with open_store(disk, master_key=master_key) as store:
        assert isinstance(store, Retains)
        put(store, blocks)
        store.put_name(a_name(1))
        store.put_name(a_name(2, owner=ALICE, ttl_ns=5))
        store.put_name(a_name(1, since_ns=7))
        store.put_terms({blocks[0].key: StoredTerm(300.0, by_default=True, rank=-1)})
        store.check()
        shutil.copytree(disk, killed)
    for path in (disk, killed):
        with open_store(path, master_key=master_key) as store:
            assert sorted(store.names()) == [a_name(1, since_ns=7), a_name(2, owner=ALICE, ttl_ns=5)]
            assert store.terms([ref.key for ref in blocks]) == {blocks[0].key: (300.0, True, -1)}
            store.erase(ALICE)
            store.delete_name(bytes([9]) * 32)
            assert store.names() == [a_name(1, since_ns=7)]
            store.delete_many([blocks[0].key])
            assert store.terms([ref.key for ref in blocks]) == {}
            store.check()


def test_names_may_take_a_sixty_fourth_beside_the_blocks(tmp_path):
    long = {"tokens": bytes(5 * BLOCK)}
    with open_store(tmp_path, THEIRS, capacity_bytes=64 * 1000) as store:
        store.put_name(a_name(1, **long))
    with open_store(tmp_path, capacity_bytes=64 * 1000) as store:
        store.put_name(a_name(1))
        with pytest.raises(StoreFull, match="may take 1000: a name of 3"):
            store.put_name(a_name(2, **long))
        assert store.names() == [a_name(1)]
        store.put_name(a_name(1, since_ns=7))
        assert store.names() == [a_name(1, since_ns=7)], "in its own place"


@pytest.mark.parametrize("master_key", [None, MASTER], ids=["plain", "encrypted"])
def test_settings_are_their_namespaces_own(tmp_path, master_key):
    with open_store(tmp_path, master_key=master_key) as store:
        store.put_settings(None)
        assert store.settings() is None
        assert not (tmp_path / "v1" / "retained").exists()
        for content in (b"first", b"a secret"):
            store.put_settings(content)
        assert store.erase(ALICE) == 0
        store.check()
        rows = dict(store._retained._rows(b"s"))
    with open_store(tmp_path, THEIRS, master_key=master_key) as store:
        assert store.settings() is None
        [value] = rows.values()
        key = b"s" + THEIRS.digest
        store._retained._write({key: _enveloped(key, value[_ENVELOPE.size :])})
        assert store.settings() is None, "what was written for another"
    with open_store(tmp_path, master_key=master_key) as store:
        assert store.settings() == b"a secret"
        store.put_settings(None)
        assert store.settings() is None
    found = any(b"a secret" in file.read_bytes() for file in tmp_path.rglob("data.mdb"))
    assert not (found and master_key)


def test_a_term_from_before_there_were_ranks_has_none(tmp_path):
    [block, _] = refs()
    with open_store(tmp_path) as store:
        put(store, [block])
        key = b"t" + OURS.digest + block.key
        store._retained._write({key: _enveloped(key, struct.pack("<d?", 300.0, True))})
    with open_store(tmp_path) as store:
        assert store.terms([block.key]) == {block.key: (300.0, True, 0)}


def test_an_encrypted_name_tells_nothing(tmp_path):
    with open_store(tmp_path, master_key=MASTER) as store:
        store.put_name(a_name(content=b"a secret name"))
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(secret in data for data in files for secret in (b"a secret name", TOKENS, a_name().key))


def test_a_directory_without_names_has_no_table(tmp_path):
    with open_store(tmp_path) as store:
        put(store, refs())
        store.delete_name(bytes(32))
        assert store.names() == []
        assert store.terms([ref.key for ref in refs()]) == {}
    assert not (tmp_path / "v1" / "retained").exists()


def test_a_damaged_row_is_none(tmp_path):
    with open_store(tmp_path) as store:
        store.put_name(a_name(1))
        store.put_name(a_name(2))
    with lmdb.open(str(tmp_path / "v1" / "retained")) as environment, environment.begin(write=True) as txn:
        key, value = next(iter(txn.cursor()))
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    with open_store(tmp_path) as store:
        assert store.names() == [a_name(2)]
        with pytest.raises(AssertionError, match="damaged"):
            store.check()


def test_a_table_that_is_garbage_is_set_aside_and_blocks_stay(tmp_path, caplog):
    with open_store(tmp_path) as store:
        put(store, refs())
        store.put_name(a_name())
    data = tmp_path / "v1" / "retained" / "data.mdb"
    data.write_bytes(b"garbage!" * (data.stat().st_size // 8))
    with open_store(tmp_path) as store:
        assert store.names() == []
        assert store.stats().blocks == 2
        store.put_name(a_name(2))
        assert store.names() == [a_name(2)]
    assert "is damaged and starts empty" in caplog.text
    aside = tmp_path / "v1" / "damaged-retained"
    assert aside.exists()
    with open_store(tmp_path) as store:
        store.erase(ALICE)
    assert not aside.exists(), "what is in it does not say whose it is"


def test_names_outlive_blocks_that_start_empty(tmp_path):
    with open_store(tmp_path) as store:
        put(store, refs())
        store.put_name(a_name())
    shutil.rmtree(tmp_path / "v1" / "payload")
    with open_store(tmp_path) as store:
        assert store.names() == [a_name()]


def test_a_full_disk_takes_no_name_and_changes_none(tmp_path):
    free = [1 << 30]
    with open_store(tmp_path, free_bytes=lambda: free[0], min_free_bytes=1 << 20) as store:
        store.put_name(a_name(since_ns=1))
        free[0] = 1 << 20
        with pytest.raises(StoreFull):
            store.put_name(a_name(since_ns=2))
        store.delete_name(bytes(32))
        assert store.names() == [a_name(since_ns=1)]


@pytest.mark.parametrize(("ttl_ns", "is_kept"), [(None, True), (2_000, True), (100, False)])
def test_what_another_model_has_named_is_not_trimmed_while_its_time_is_not_over(tmp_path, ttl_ns, is_kept):
    """Half of the capacity is the most that others may have: here both of their blocks are too much."""
    now_ns = [1_000]
    with open_store(tmp_path, THEIRS, now_ns=lambda: now_ns[0]) as store:
        put(store, refs(THEIRS))
        store.put_name(a_name(since_ns=1_000, ttl_ns=ttl_ns))
        taken = store.stats().stored_bytes
    now_ns[0] = 2_000
    with open_store(tmp_path, capacity_bytes=taken, now_ns=lambda: now_ns[0], ttl_s=1e-9) as store:
        assert store.stats().other_namespaces_bytes == (taken if is_kept else 0)
        assert store.names() == []


def test_a_name_moved_to_another_key_is_none(tmp_path):
    """Who can write to the disk has no key, but can compute what stands before a row."""
    with open_store(tmp_path, master_key=MASTER) as store:
        store.put_name(a_name(1))
        store.put_name(a_name(2, owner=ALICE))
    with lmdb.open(str(tmp_path / "v1" / "retained")) as environment, environment.begin(write=True) as txn:
        [(first, _), (_, second)] = list(txn.cursor())
        txn.put(first, _enveloped(first, second[_ENVELOPE.size :]))
    with open_store(tmp_path, master_key=MASTER) as store:
        assert len(store.names()) == 1


def test_erasing_keeps_names_of_another_whose_key_cannot_be_read_now(tmp_path):
    keys = tmp_path / "v1" / "keys"
    with open_store(tmp_path, master_key=MASTER) as store:
        store.put_name(a_name(1, owner=b"b" * 16))
        [key] = keys.iterdir()
        store.put_name(a_name(2, owner=ALICE))
    content = key.read_bytes()
    key.unlink()
    key.mkdir()
    with open_store(tmp_path, master_key=MASTER) as store:
        store.erase(ALICE)
    key.rmdir()
    key.write_bytes(content)
    with open_store(tmp_path, master_key=MASTER) as store:
        assert store.names() == [a_name(1, owner=b"b" * 16)]


def test_a_table_that_fails_takes_no_blocks_with_it(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise Unsound("the tree is torn")

    with open_store(tmp_path) as store:
        put(store, refs())
        store.put_name(a_name())
        with monkeypatch.context() as failing:
            failing.setattr(retained, "items", fail)
            for ask in (store.names, lambda: store.erase(ALICE)):
                with pytest.raises(StoreFailed, match="the tree is torn"):
                    ask()
        assert store.stats().blocks == 2
        assert store.names() == [a_name()]
        store.check()


def test_a_new_table_is_in_its_directory_before_a_name_is_said_to_be_kept(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(retained, "sync_path", lambda path: synced.append((path.name, any(path.iterdir()))))
    with open_store(tmp_path) as store:
        assert synced == []
        store.put_name(a_name())
        assert synced == [("retained", True), ("v1", True)]


def test_terms_go_with_blocks_that_another_model_deletes(tmp_path):
    [block, _] = refs(THEIRS)
    with open_store(tmp_path, THEIRS, now_ns=lambda: 1) as store:
        put(store, [block])
        store.put_terms({block.key: StoredTerm(300.0, by_default=True)})
    with open_store(tmp_path, now_ns=lambda: 10**12, ttl_s=1) as store:
        assert store.opening.expired_blocks == 1
    with open_store(tmp_path, THEIRS) as store:
        put(store, [block])
        assert store.terms([block.key]) == {}


def test_where_terms_cannot_be_deleted_blocks_are_and_the_next_opening_sees_to_the_terms(
    tmp_path, monkeypatch
):
    def fail(*_: object) -> None:
        raise StoreFull("not a byte is left")

    [block, other] = refs()
    with open_store(tmp_path) as store:
        put(store, [block, other])
        store.put_terms({ref.key: StoredTerm(300.0, by_default=True) for ref in (block, other)})
        with monkeypatch.context() as full:
            full.setattr(store._retained, "_write", fail)
            store.delete_many([block.key])
        assert store.stats().blocks == 1
    with open_store(tmp_path) as store:
        put(store, [block])
        assert list(store.terms([block.key, other.key])) == [other.key]


def test_tools_know_of_names(tmp_path):
    def done(*_: object) -> None:
        pass

    with open_store(tmp_path, capacity_bytes=1 << 22) as store:
        for number in range(1, 200):
            store.put_name(a_name(number))
        for number in range(2, 200):
            store.delete_name(a_name(number).key)
    table = tmp_path / "v1" / "retained"
    before, after = maintenance.compact(tmp_path, done)
    assert after < before
    assert maintenance.inspect(tmp_path).names == 1
    assert maintenance.verify(tmp_path, done).sound
    with lmdb.open(str(table)) as environment, environment.begin(write=True) as txn:
        [(key, value)] = list(txn.cursor())
        txn.put(key, value[:-1])
    assert maintenance.verify(tmp_path, done).retained == 1
    assert not maintenance.verify(tmp_path, done).sound
    data = table / "data.mdb"
    data.write_bytes(b"garbage!" * (data.stat().st_size // 8))
    assert maintenance.verify(tmp_path, done).trees
    maintenance.clear(tmp_path, old=False)
    assert not table.exists()
