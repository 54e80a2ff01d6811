"""What blocks have in common is learned, kept in files, and found again; without it a record is a miss that says so."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from kvstore import BlockLayout, FormatError, MissReason, Namespace
from kvstore.baseline import Baseline, Baselines
from kvstore.disk import maintenance
from kvstore.metas import metas_of
from kvstore.testing import assert_holds, chain, fill, kv_like, reasons

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=16, dtype="bfloat16", block_tokens=16)
MASTER_KEY = bytes(range(32))
OWNER = b"o" * 16


def learning(learn_tokens=(32,), **changed) -> dict:
    """A store of LAYOUT that learns from the first blocks."""
    return {"layout": LAYOUT, "learn_tokens": learn_tokens, "capacity_bytes": 1 << 20, **changed}


def settled(store) -> None:
    """What was posted to the writer has run."""
    store._writer.run(lambda: None)


def filled(store, num_blocks: int, seed: int = 0):
    """Blocks put one after the other, so that each is encoded with what was learned from those before."""
    refs, blocks = chain(store, num_blocks, seed=seed), kv_like(store, num_blocks, seed=seed)
    for ref, block in zip(refs, blocks, strict=True):
        store.put_many([ref], [block])
        settled(store)
    return refs, blocks


def files(path):
    return sorted((path / "v1" / "baselines").iterdir())


# ---- in memory -------------------------------------------------------------------------------------------------------


def test_a_baseline_is_the_mean_of_the_bits_without_the_sign():
    layout = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=2, dtype="bfloat16", block_tokens=2)
    baselines = Baselines(layout, (2,))
    block = np.array([[[0x3F80, 0x0001], [0xBF84, 0x8003]], [[0, 0xFFFF], [1, 0x7FFF]]], dtype="<u2")
    baselines.learn(block.reshape(-1).view(np.uint8))
    learned = baselines.learned()
    assert learned.words.tolist() == [[[0x3F82, 0x0002]], [[0, 0x7FFF]]]
    assert (learned.num_tokens, learned.num_channels) == (2, 4)
    assert Baseline.parse(learned.content).digest == learned.digest


def test_that_of_float16_turns_the_sign_of_channels_that_are_mostly_negative():
    layout = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=2, dtype="float16", block_tokens=3)
    baselines = Baselines(layout, (3,))
    block = np.array([[[0x3C00, 0x8001], [0x3C02, 0x8003], [0xBC04, 0x0005]]] * 2, dtype="<u2")
    baselines.learn(block.reshape(-1).view(np.uint8))
    learned = baselines.learned()
    assert learned.words.tolist() == [[[0x3C02, 0x8003]]] * 2
    assert learned.fits(layout)
    assert not learned.fits(replace(layout, dtype="bfloat16"))


def test_it_has_no_effect_before_it_is_added_and_more_tokens_win():
    baselines, block = Baselines(LAYOUT, (16, 48)), np.zeros(LAYOUT.block_bytes, np.uint8)
    assert not baselines.is_due
    baselines.learn(block)
    assert baselines.is_due
    assert baselines.current is None
    baselines.learn(block)  # waits until the first is kept
    first = baselines.learned()
    assert first.num_tokens == 16
    baselines.add(first)
    assert not baselines.is_due
    for _ in range(5):
        baselines.learn(block)
    second = baselines.learned()
    assert second.num_tokens == 48
    baselines.add(second)
    baselines.add(first)
    assert baselines.current is second
    assert baselines.known == {first.digest: first, second.digest: second}
    assert not baselines.is_learning
    baselines.check()


def test_one_of_another_layout_is_refused():
    other = Baselines(replace(LAYOUT, head_dim=8), (16,))
    other.learn(np.zeros(other._layout.block_bytes, np.uint8))
    with pytest.raises(ValueError, match="baseline"):
        Baselines(LAYOUT).add(other.learned())


@pytest.mark.parametrize("learn_tokens", [(0,), (5, 5), (6, 5)])
def test_times_to_learn_must_ascend(learn_tokens):
    with pytest.raises(ValueError, match="ascend"):
        Baselines(LAYOUT, learn_tokens)


def test_what_is_no_baseline_is_refused():
    baselines = Baselines(LAYOUT, (16,))
    baselines.learn(np.ones(LAYOUT.block_bytes, np.uint8))
    content = baselines.learned().content
    for wrong in (
        b"",
        b"junk",
        content[:-1],
        content[:-2],
        content[:11] + b"\x09" + content[12:],
        content + b"ab",
        b"x" + content[1:],
        content[:20],
        content[:27],
    ):
        with pytest.raises(FormatError, match="no baseline"):
            Baseline.parse(wrong)


# ---- in a directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master_key", [None, MASTER_KEY], ids=["plain", "encrypted"])
def test_what_was_learned_is_used_and_found_again(open_lmdb, tmp_path, master_key):
    """The first blocks have none, later ones have it, and after the second they have that; all are read."""
    with open_lmdb(**learning((32, 64), master_key=master_key)) as store:
        refs, blocks = filled(store, 7)
        assert store.stats().written == {"planes": 2, "baseline": 5}
        assert_holds(store, refs, blocks)
        assert len(files(tmp_path)) == 2
    with open_lmdb(**learning((32, 64), master_key=master_key)) as store:
        assert_holds(store, refs, blocks)
        filled(store, 1, seed=1)
        assert store.stats().written == {"baseline": 1}
        store.check()
    verdict = maintenance.verify(tmp_path, lambda *_: None)
    assert verdict.sound
    assert verdict.records == 8
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files(tmp_path))


def test_what_was_begun_is_learned_anew_after_a_restart(open_lmdb, tmp_path):
    for seed in range(2):
        with open_lmdb(**learning((32, 64))) as store:
            filled(store, 3, seed=seed)
    assert len(files(tmp_path)) == 1
    with open_lmdb(**learning((32, 64))) as store:
        filled(store, 4, seed=2)
    assert len(files(tmp_path)) == 2


def remove(file):
    file.unlink()


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, flip, empty])
@pytest.mark.parametrize("master_key", [None, MASTER_KEY], ids=["plain", "encrypted"])
def test_without_it_records_are_misses_that_say_so(open_lmdb, tmp_path, damage, master_key):
    """And nothing else is: blocks from before are served, the lost ones are written anew, with a baseline that is new."""
    with open_lmdb(**learning(master_key=master_key)) as store:
        refs, blocks = filled(store, 5)
    [file] = files(tmp_path)
    damage(file)
    verdict = maintenance.verify(tmp_path, lambda *_: None)
    assert verdict.baselines == (damage is not remove)
    assert verdict.damaged == ({} if master_key else {"missing_baseline": 3})
    assert verdict.sound == (
        damage is remove and master_key is not None
    )  # without the key nothing else can be told
    with open_lmdb(**learning(master_key=master_key)) as store:
        assert reasons(store, refs) == [None] * 2 + [MissReason.MISSING_BASELINE] * 3
        settled(store)
        assert [one.reason for one in store.quarantined()] == [MissReason.MISSING_BASELINE] * 3
        assert reasons(store, refs) == [None] * 2 + [MissReason.ABSENT] * 3
        refs, blocks = filled(store, 5)
        assert_holds(store, refs, blocks)
        assert len(files(tmp_path)) == 1
        store.check()
    with open_lmdb(**learning(master_key=master_key)) as store:
        assert_holds(store, refs, blocks)
    assert maintenance.verify(tmp_path, lambda *_: None).sound


def test_another_namespaces_file_is_of_no_use(open_lmdb, tmp_path):
    """Though its content is sound, and there under a name of this one's: only its own digest is found in records."""
    other = Namespace.of({"model": "other"})
    with open_lmdb(**learning(), namespace=other) as store:
        filled(store, 3, seed=5)
        theirs = files(tmp_path)
    with open_lmdb(**learning()) as store:
        refs, _ = filled(store, 4)
    [ours] = set(files(tmp_path)) - set(theirs)
    ours.write_bytes(theirs[0].read_bytes())
    with open_lmdb(**learning()) as store:
        assert reasons(store, refs) == [None] * 2 + [MissReason.MISSING_BASELINE] * 2


def test_files_go_with_the_last_block_of_their_namespace(open_lmdb, tmp_path):
    """Its own stay: blocks that are being encoded may name them."""
    other = Namespace.of({"model": "other"})
    with open_lmdb(**learning(), namespace=other) as store:
        filled(store, 3)
    with open_lmdb(**learning()) as store:
        refs, _ = filled(store, 3, seed=1)
        assert len(files(tmp_path)) == 2
        store.delete_many([ref.key for ref in refs])
    with open_lmdb(**learning(), namespace=other) as store:
        [file] = files(tmp_path)
        assert file.name.startswith(other.digest.hex())
        store.delete_many([meta.key for meta in metas_of(store)])
        assert files(tmp_path) == [file]
    assert files(tmp_path) == []


@pytest.mark.parametrize("how", ["expired", "changed", "erased", "emptied"])
def test_a_file_outlives_its_blocks_until_it_is_on_the_disk_that_they_are_gone(open_lmdb, tmp_path, how):
    """When power is lost before, they are there again, and need it."""
    with open_lmdb(**learning(), namespace=Namespace.of({"model": "other"}), now_ns=lambda: 1) as store:
        refs, _ = filled(store, 3)
        store.put_many([replace(refs[-1], owner=OWNER)], kv_like(store, 1))
        store.delete_many([ref.key for ref in refs[:-1]])
    [file] = files(tmp_path)
    store = open_lmdb(**learning(), now_ns=lambda: 10**12, ttl_s=1.0 if how == "expired" else None)
    if how == "changed":
        fill(store, 1)
        store.change(ttl_s=1.0)
    elif how == "emptied":
        store.change(ttl_s=1.0)
    elif how == "erased":
        assert store.erase(OWNER) == 1
    assert [info.own for info in store.namespaces()] == [True]
    synced, there = store._tables.sync, []

    def then_looked():
        synced()
        there.extend(files(tmp_path))

    store._tables.sync = then_looked
    store.sync()
    assert there == [file]
    assert files(tmp_path) == []


@contextmanager
def unreadable(path, tmp_path):
    """Who opens it gets an OSError, whoever that is."""
    aside = path.rename(tmp_path / "aside")
    path.symlink_to(path)
    yield
    path.unlink()
    aside.rename(path)


@pytest.mark.parametrize("what", ["baselines", "baselines/*", "keys/*"])
def test_what_cannot_be_read_for_a_while_costs_no_record(open_lmdb, tmp_path, what):
    """Blocks that need it are misses of the disk's, none is taken for damaged, and all are served when it can be read."""
    options = learning((32, 64), master_key=MASTER_KEY if what == "keys/*" else None)
    with open_lmdb(**options) as store:
        refs, blocks = filled(store, 7)
    with unreadable(next((tmp_path / "v1").glob(what)), tmp_path):
        if what != "keys/*":  # without the key there is nothing that a verification lacks
            verdict = maintenance.verify(tmp_path, lambda *_: None)
            assert (verdict.unread_baselines, verdict.baselines, verdict.damaged) == (1, 0, {})
            assert not verdict.sound
        store = open_lmdb(**options)
        for _ in range(2):
            found = reasons(store, refs)
            assert set(found[2:]) <= {None, MissReason.READ_FAILED}
            assert MissReason.READ_FAILED in found
        settled(store)
        assert store.stats().damaged_blocks == 0
        assert store.quarantined() == []
    assert_holds(store, refs, blocks)
    store.check()
    filled(store, 1, seed=1)
    assert store.stats().written == {"baseline": 1}
    store.close()
    assert maintenance.verify(tmp_path, lambda *_: None).sound


def test_a_baseline_that_comes_while_a_block_is_decoded_makes_no_damage_of_it(
    open_lmdb, tmp_path, monkeypatch
):
    """Another thread loads it after this one has found none: what was not known then does not count as lost."""
    with open_lmdb(**learning()) as store:
        refs, blocks = (some[2:] for some in filled(store, 4))
    with unreadable(files(tmp_path)[0], tmp_path):
        store = open_lmdb(**learning())
    unpack = store._format.unpack

    def then_loaded(record, ref, out):
        reason = unpack(record, ref, out)
        store._encoding.load()
        return reason

    monkeypatch.setattr(store._format, "unpack", then_loaded)
    assert_holds(store, refs, blocks)
    assert store.stats().damaged_blocks == 0


def test_clear_deletes_them(open_lmdb, tmp_path):
    with open_lmdb(**learning()) as store:
        filled(store, 3)
    maintenance.clear(tmp_path, old=True)
    assert len(files(tmp_path)) == 1
    maintenance.clear(tmp_path, old=False)
    assert not (tmp_path / "v1" / "baselines").exists()


def test_a_crash_between_a_baseline_and_its_first_record(open_lmdb, tmp_path, crash):
    """The file is there and is used; what is left of one that was being written goes."""
    store = open_lmdb(**learning())
    refs, blocks = filled(store, 2)
    crash(store)
    [file] = files(tmp_path)
    (file.parent / (file.name + ".new")).write_bytes(b"half of")
    with open_lmdb(**learning()) as store:
        store.sync()
        assert files(tmp_path) == [file]
        more, new = filled(store, 1, seed=1)
        assert store.stats().written == {"baseline": 1}
        assert_holds(store, refs + more, blocks + new)


def test_a_file_is_synced_before_a_record_names_it(open_lmdb, monkeypatch):
    """Else a loss of power could leave the record alone."""
    order = []
    monkeypatch.setattr("kvstore.disk.directory.os.fsync", lambda _: order.append("sync"))
    store = open_lmdb(**learning())
    add = store._format.baselines.add
    monkeypatch.setattr(store._format.baselines, "add", lambda baseline: (order.append("add"), add(baseline)))
    order.clear()
    filled(store, 2)
    written = order[order.index("sync") : order.index("add")]
    assert len(written) >= 3  # the file, its folder, and the folder's own name
    assert store.stats().written == {"planes": 2}


def test_a_full_disk_has_none_and_learns_it_later(open_lmdb, tmp_path):
    """Room for a record's page, as it happens, and then not even for a baseline."""
    free = [1 << 40]
    store = open_lmdb(**learning(), free_bytes=lambda: free[0], min_free_bytes=1)
    put = store._changes.put

    def then_full(batch):
        put(batch)
        free[0] = 100

    store._changes.put = then_full
    refs, blocks = chain(store, 4), kv_like(store, 4)
    for ref, block in zip(refs, blocks, strict=True):
        free[0] = 1 << 40
        store.put_many([ref], [block])
        settled(store)
    assert not (tmp_path / "v1" / "baselines").exists()
    store._changes.put = put
    free[0] = 1 << 40
    more, new = filled(store, 2, seed=1)
    assert store.stats().written == {"planes": 5, "baseline": 1}
    assert_holds(store, refs + more, blocks + new)


def test_a_folder_that_cannot_be_written_costs_nothing_else(open_lmdb, tmp_path):
    store = open_lmdb(**learning())
    (tmp_path / "v1" / "baselines").write_text("a file")
    refs, blocks = filled(store, 4)
    assert store.stats().written == {"planes": 4}
    assert_holds(store, refs, blocks)


def test_nothing_is_learned_from_what_is_an_owners(open_lmdb, tmp_path):
    """So that erasing it leaves nothing of it."""
    store = open_lmdb(**learning())
    refs = [replace(ref, owner=OWNER) for ref in chain(store, 4)]
    store.put_many(refs, kv_like(store, 4))
    settled(store)
    assert not store._format.baselines._num_tokens
    assert not (tmp_path / "v1" / "baselines").exists()


def test_a_sealed_one_says_nothing(open_lmdb, tmp_path):
    store = open_lmdb(**learning(master_key=MASTER_KEY))
    filled(store, 3)
    [file] = files(tmp_path)
    current = store._format.baselines.current
    assert current.content[:8] not in file.read_bytes()
    assert current.digest.hex() not in file.name


def test_blocks_that_are_not_encoded_teach_nothing(open_lmdb, tmp_path):
    store = open_lmdb(**learning(compression="off"))
    refs, blocks = fill(store, 4)
    settled(store)
    assert store.stats().written == {"raw": 4}
    assert not (tmp_path / "v1" / "baselines").exists()
    assert_holds(store, refs, blocks)
