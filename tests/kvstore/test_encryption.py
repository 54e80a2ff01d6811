"""What an encrypted store shows to who has no key, and who may open it at all."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvstore import MissReason, StoreFailed, StoreFull
from kvstore.disk import keyring, maintenance, read_master_key
from kvstore.disk.environment import Unsound
from kvstore.disk.tables import Tables
from kvstore.metas import metas_of
from kvstore.steering import StoredName
from kvstore.store import NO_OWNER
from kvstore.testing import assert_holds, chain, fill, kv_like, noise, reasons
from tests.kvstore.conftest import MASTER_KEY

ALICE, BOB = b"alice".ljust(16, b"."), b"bob".ljust(16, b".")


@pytest.fixture
def open_sealed(open_lmdb):
    return lambda **changed: open_lmdb(**{"master_key": MASTER_KEY, **changed})


def owned(store, num_blocks, owner, seed=0):
    """The blocks of one prompt, put as the owner's."""
    refs = [replace(ref, owner=owner) for ref in chain(store, num_blocks, seed)]
    blocks = kv_like(store, num_blocks, seed)
    store.put_many(refs, blocks)
    return refs, blocks


def everything(path: Path) -> bytes:
    """What somebody sees who has the disk: names and contents of all files."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return b"".join(os.fsencode(file.relative_to(path)) + file.read_bytes() for file in files)


def key_files(path: Path) -> list[Path]:
    return sorted((path / "v1" / "keys").iterdir())


def key_of(store, path: Path, owner: bytes) -> Path:
    [found] = [f for f in key_files(path) if store._form._keyring.is_owners(bytes.fromhex(f.name), owner)]
    return found


# ---- what can be seen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_disk_shows_no_prompt_and_no_block(open_lmdb, tmp_path, encrypted):
    """Tokens, keys, owners and KV: all of it is to be found without encryption, so the search can find it."""
    store = open_lmdb(master_key=MASTER_KEY if encrypted else None)
    refs = [replace(ref, owner=ALICE) for ref in chain(store, 3)]
    blocks = noise(store, 3)  # not compressed, so that its bytes are there as they are
    store.put_many(refs, blocks)
    store.raw().corrupt(refs[2].key)
    assert reasons(store, refs)[2] is MissReason.DAMAGED_CHECKSUM  # in quarantine now
    store.close()
    seen = everything(tmp_path)
    secrets = [ALICE, MASTER_KEY, *(secret for ref in refs for secret in (ref.key, ref.tokens))]
    secrets += [block[64:128].tobytes() for block in blocks]
    found = [secret in seen or secret.hex().encode() in seen for secret in secrets]
    assert not any(found) if encrypted else all(found[:1] + found[2:])


def test_equal_blocks_look_different(open_sealed):
    store = open_sealed()
    refs = chain(store, 2)
    block = kv_like(store, 1)[0]
    store.put_many(refs, [block, block])
    first, second = (store.raw().read(ref.key) for ref in refs)
    store.put_many(refs[:1], [block])
    assert len({first[60:], second[60:], store.raw().read(refs[0].key)[60:]}) == 3


def test_files_are_the_owners_alone(open_sealed, tmp_path):
    owned(open_sealed(), 1, ALICE)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "v1").rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert (tmp_path / "v1" / "keys").stat().st_mode & 0o777 == 0o700


# ---- who may open it -----------------------------------------------------------------------------------


def test_blocks_and_owners_outlive_the_store(open_sealed):
    with open_sealed() as first:
        alices, blocks = owned(first, 4, ALICE)
        everybodys, others = fill(first, 2, seed=1)
        metas, stats = set(metas_of(first)), first.stats()
    second = open_sealed()
    assert set(metas_of(second)) == metas
    assert {meta.owner for meta in metas} == {ALICE, NO_OWNER}
    assert_holds(second, alices + everybodys, blocks + others)
    assert second.stats() == replace(stats, written={})
    second.check()


def test_blocks_outlive_a_crash(open_sealed, crash):
    first = open_sealed()
    refs, blocks = owned(first, 4, ALICE)
    crash(first)
    second = open_sealed()
    assert_holds(second, refs, blocks)
    second.check()


@pytest.mark.parametrize(("key", "complaint"), [(None, "no key"), (bytes(32), "another key")])
def test_nobody_else_opens_it(open_sealed, open_lmdb, key, complaint):
    with open_sealed() as first:
        refs, blocks = owned(first, 2, ALICE)
    with pytest.raises(StoreFailed, match=complaint):
        open_lmdb(master_key=key)
    again = open_sealed()
    assert again.opening.clean and again._directory.was_signed_off, "trying must not look like a crash"
    assert_holds(again, refs, blocks)


def test_what_is_not_encrypted_is_not_mixed_with_what_is(open_lmdb, open_sealed, tmp_path):
    with open_lmdb() as first:
        refs, blocks = fill(first, 2)
    with pytest.raises(StoreFailed, match="kvtide disk clear"):
        open_sealed()
    with open_lmdb() as again:
        assert_holds(again, refs, blocks)
    maintenance.clear(tmp_path, old=False)
    open_sealed()


def test_a_cleared_directory_is_anybodys(open_lmdb, open_sealed, tmp_path):
    with open_sealed() as first:
        owned(first, 2, ALICE)
    maintenance.clear(tmp_path, old=True)
    open_sealed().close()
    assert len(key_files(tmp_path)) == 1
    maintenance.clear(tmp_path, old=False)
    assert {path.name for path in (tmp_path / "v1").iterdir()} == {"lock"}
    with open_lmdb(master_key=bytes(32)) as second:
        refs, blocks = fill(second, 2)
        assert_holds(second, refs, blocks)


def test_a_mark_that_makes_no_sense_opens_to_nobody(open_sealed, tmp_path):
    open_sealed().close()
    for junk in ("junk", "", "ab" * 31):
        (tmp_path / "v1" / "encrypted").write_text(junk)
        with pytest.raises(StoreFailed, match="is damaged"):
            open_sealed()


@pytest.mark.parametrize("key", [None, MASTER_KEY])
def test_without_its_mark_an_encrypted_directory_is_left_alone(open_sealed, open_lmdb, tmp_path, key):
    with open_sealed() as first:
        refs, blocks = owned(first, 2, ALICE)
    mark = tmp_path / "v1" / "encrypted"
    content = mark.read_text()
    mark.unlink()
    with pytest.raises(StoreFailed, match="is gone from it"):
        open_lmdb(master_key=key)
    mark.write_text(content)
    assert_holds(open_sealed(), refs, blocks)


def test_the_same_prompt_has_other_names_in_another_directory(open_sealed, tmp_path):
    """Or a list of what popular prompts are called would do for all directories of one master key."""
    one, other = open_sealed(path=tmp_path / "a"), open_sealed(path=tmp_path / "b")
    for store in (one, other):
        owned(store, 2, ALICE)
    assert not {file.name for file in key_files(tmp_path / "a")} & {
        file.name for file in key_files(tmp_path / "b")
    }


def test_without_the_package_the_error_says_what_to_install(tmp_path):
    """In a process that cannot import it: the package was imported here."""
    program = """
import sys
sys.modules["cryptography"] = None
from tests.kvstore.conftest import lmdb_store
from kvstore import StoreFailed
try:
    lmdb_store(sys.argv[1], master_key=bytes(32))
except StoreFailed as error:
    print(error)
lmdb_store(sys.argv[1]).close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'kvtide[encryption]'" in done.stdout


# ---- erasing -------------------------------------------------------------------------------------------


def test_an_erased_owner_has_no_key_and_no_blocks(open_sealed, tmp_path):
    store = open_sealed()
    alices, _ = owned(store, 3, ALICE)
    bobs, blocks = owned(store, 3, BOB, seed=1)
    assert len(key_files(tmp_path)) == 2
    assert store.erase(ALICE) == 3
    assert len(key_files(tmp_path)) == 1
    assert reasons(store, alices) == [MissReason.ABSENT] * 3
    assert_holds(store, bobs, blocks)
    assert set(metas_of(store)) and {meta.owner for meta in metas_of(store)} == {BOB}
    store.check()


@pytest.mark.parametrize("encrypted", [True, False])
def test_evidence_that_can_be_read_is_erased_too(open_lmdb, tmp_path, encrypted):
    """It does not say whose it is, so all of it goes; what is encrypted need not."""
    store = open_lmdb(master_key=MASTER_KEY if encrypted else None)
    refs, _ = owned(store, 3, ALICE)
    store.raw().corrupt(refs[2].key)
    reasons(store, refs)
    store._writer.run(lambda: None)
    (tmp_path / "v1" / "damaged-00000000000000000001").mkdir()
    assert store.erase(ALICE) == 2
    left = (len(store.quarantined()), (tmp_path / "v1" / "damaged-00000000000000000001").exists())
    assert left == ((1, True) if encrypted else (0, False))


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_key_goes_at_the_next_opening_if_nothing_of_its_owner_is_left(
    open_sealed, crash, tmp_path, ends_well
):
    store = open_sealed()
    nobodys, nobodys_blocks = owned(store, 1, NO_OWNER, seed=2)
    bobs, blocks = owned(store, 3, BOB, seed=1)
    alices, _ = owned(store, 3, ALICE)
    before = key_of(store, tmp_path, ALICE)
    second_name = tmp_path / "second_name"
    second_name.hardlink_to(before)
    content = before.read_bytes()
    store.delete_many([ref.key for ref in alices])
    assert len(key_files(tmp_path)) == 3, "others may be on their way to the disk"
    store.close() if ends_well else crash(store)
    again = open_sealed()
    assert before not in key_files(tmp_path) and len(key_files(tmp_path)) == 2
    assert second_name.read_bytes() != content
    assert_holds(again, bobs, blocks)
    assert_holds(again, nobodys, nobodys_blocks)
    assert_holds(again, *owned(again, 3, ALICE))
    assert key_of(again, tmp_path, ALICE) != before
    again.close()
    assert open_sealed().stats().blocks == 7


def test_a_key_stays_that_a_named_cache_or_evidence_may_need(open_sealed, tmp_path):
    store = open_sealed()
    name = StoredName(bytes(32), ALICE, 0, b"", store.layout.token_id_bytes, 1, None, b"{}")
    store.put_name(name)
    bobs, _ = owned(store, 1, BOB)
    store.raw().corrupt(bobs[0].key)
    assert reasons(store, bobs) == [MissReason.DAMAGED_CHECKSUM]
    store.close()
    again = open_sealed()
    assert [again.names(), len(again.quarantined()), len(key_files(tmp_path))] == [[name], 1, 2]
    again._quarantine.clear()
    again.close()
    again = open_sealed()
    assert [again.names(), len(key_files(tmp_path))] == [[name], 1]


def test_what_was_copied_before_stays_shut(open_sealed, tmp_path):
    """A copy of a record from before, put back after: nobody has the key that it is for."""
    store = open_sealed()
    refs, _ = owned(store, 1, ALICE)
    copy = store.raw().read(refs[0].key)
    store.erase(ALICE)
    refs, blocks = owned(store, 1, ALICE)
    assert_holds(store, refs, blocks)
    store.raw().write(refs[0].key, copy)
    assert reasons(store, refs) == [MissReason.ABSENT]


def test_a_key_is_overwritten_before_it_is_deleted(open_sealed, tmp_path, monkeypatch):
    """A name that is gone leaves its bytes on the disk."""
    store = open_sealed()
    owned(store, 1, ALICE)
    [file] = key_files(tmp_path)
    before, second_name = file.read_bytes(), tmp_path / "second_name"
    second_name.hardlink_to(file)
    store.erase(ALICE)
    assert second_name.stat().st_nlink == 1
    assert len(second_name.read_bytes()) == len(before) and second_name.read_bytes() != before


def test_a_crash_between_key_and_blocks_leaves_none_of_them(open_sealed, crash, tmp_path):
    """What nobody can read must not take space for ever."""
    first = open_sealed()
    owned(first, 3, ALICE)
    bobs, blocks = owned(first, 2, BOB, seed=1)
    alices_key = key_of(first, tmp_path, ALICE)
    crash(first)
    alices_key.unlink()
    second = open_sealed()
    assert second.stats().blocks == 2
    assert_holds(second, bobs, blocks)
    second.check()


@pytest.mark.parametrize("error", [StoreFull("full"), Unsound("broken")], ids=["full", "broken"])
def test_what_has_no_key_and_cannot_be_deleted_keeps_nobody_from_opening(
    open_sealed, tmp_path, monkeypatch, error, caplog
):
    with open_sealed() as first:
        alices, _ = owned(first, 3, ALICE)
    key_files(tmp_path)[0].unlink()
    assert "3 blocks are deleted, as their keys are gone" not in caplog.text

    def fail(tables, keys):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "delete", fail)
        with open_sealed() as second:
            assert reasons(second, alices) == [MissReason.ABSENT] * 3
            assert list(metas_of(second)) == []
            refs, blocks = owned(second, 2, BOB, seed=1)
            assert_holds(second, refs, blocks)
    assert "3 blocks are deleted, as their keys are gone" in caplog.text
    third = open_sealed()
    assert_holds(third, refs, blocks)
    assert third.stats().blocks == 2
    third.check()


def test_what_an_old_key_sealed_does_not_stay_because_there_is_a_new_one(open_sealed, monkeypatch):
    """The blocks could not be deleted with their key, and their owner came back."""

    def fail(tables, keys):
        raise StoreFull("full")

    with open_sealed() as first:
        owned(first, 5, ALICE)
        with monkeypatch.context() as patch:
            patch.setattr(Tables, "delete", fail)
            with pytest.raises(StoreFull):
                first.erase(ALICE)
        refs, blocks = owned(first, 2, ALICE, seed=1)
    second = open_sealed()
    assert second.stats().blocks == 2 == len(list(metas_of(second)))
    assert_holds(second, refs, blocks)
    assert second.erase(ALICE) == 2


def test_a_key_that_cannot_be_read_costs_its_owners_hits_and_nothing_more(open_sealed, tmp_path, monkeypatch):
    """While it cannot be; and whoever opens the store meanwhile, and again, finds everything."""
    with open_sealed() as first:
        alices, blocks = owned(first, 2, ALICE)
        bobs, others = owned(first, 2, BOB, seed=1)
        unreadable = key_of(first, tmp_path, ALICE)
    read_bytes = Path.read_bytes

    def fail(path):
        if path == unreadable:
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with open_sealed() as second:
            assert reasons(second, alices) == [MissReason.READ_FAILED] * 2
            assert_holds(second, bobs, others)
            assert second.stats().damaged_blocks == 0
    third = open_sealed()
    assert_holds(third, alices + bobs, blocks + others)


def test_a_key_that_cannot_be_destroyed_is_told(open_sealed, tmp_path, monkeypatch):
    """And may be tried again."""
    store = open_sealed()
    refs, blocks = owned(store, 1, ALICE)

    def fail(path):
        raise OSError(5, f"Input/output error: {path}")

    with monkeypatch.context() as broken:
        broken.setattr(keyring, "_overwrite", fail)
        with pytest.raises(StoreFailed, match="destroy"):
            store.erase(ALICE)
    assert_holds(store, refs, blocks)
    assert store.erase(ALICE) == 1


def test_nothing_is_sealed_with_a_key_that_could_not_be_destroyed_in_order(open_sealed, monkeypatch):
    store = open_sealed()
    owned(store, 1, ALICE)

    def fail(path):
        raise OSError(5, f"Input/output error: {path}")

    with monkeypatch.context() as broken:
        broken.setattr(keyring, "sync_path", fail)
        with pytest.raises(StoreFailed, match="destroy"):
            store.erase(ALICE)
    refs, blocks = owned(store, 2, ALICE)
    store.close()
    assert_holds(open_sealed(), refs, blocks)


# ---- keys that fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"junk", bytes(60)], ids=["empty", "short", "other"])
def test_a_damaged_key_costs_its_owners_blocks(open_sealed, tmp_path, content):
    with open_sealed() as first:
        owned(first, 2, ALICE)
        bobs, blocks = owned(first, 2, BOB, seed=1)
    key_of(first, tmp_path, ALICE).write_bytes(content)
    second = open_sealed()
    assert {meta.owner for meta in metas_of(second)} == {BOB}
    assert_holds(second, bobs, blocks)
    again, others = owned(second, 2, ALICE)
    assert_holds(second, again, others)
    second.check()


def test_keys_of_two_owners_cannot_be_exchanged(open_sealed, tmp_path):
    """A key is wrapped under its name: in the other's place it opens nothing, for neither."""
    with open_sealed() as first:
        owned(first, 2, ALICE)
        owned(first, 2, BOB, seed=1)
    one, other = key_files(tmp_path)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    second = open_sealed()
    assert second.stats().blocks == 0
    second.check()


def test_keys_of_many_owners_are_not_all_in_memory(open_sealed, monkeypatch):
    monkeypatch.setattr(keyring, "_MOST_OPEN", 3)
    store = open_sealed()
    owners = [bytes([number]) * 16 for number in range(1, 8)]
    rows = [owned(store, 2, owner, seed) for seed, owner in enumerate(owners)]
    opened = store._form._keyring._keys
    for refs, blocks in [*rows, *rows[::-1]]:
        assert_holds(store, refs, blocks)
        assert len(opened) <= 3
    store.erase(owners[0])
    assert reasons(store, rows[0][0]) == [MissReason.ABSENT] * 2
    assert_holds(store, *rows[-1])


def test_a_key_that_cannot_be_written_is_no_block_lost(open_sealed, tmp_path, monkeypatch):
    store = open_sealed()

    def fail(path, content):
        raise OSError(28, f"No space left on device: {path}, {len(content)} bytes")

    with monkeypatch.context() as full:
        full.setattr(keyring, "write_new", fail)
        with pytest.raises(StoreFailed, match="write a key"):
            owned(store, 2, ALICE)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda number: fail(number, b""))
        with pytest.raises(StoreFailed, match="write a key"):
            owned(store, 2, ALICE)
    assert key_files(tmp_path) == []
    refs, blocks = owned(store, 2, ALICE)
    assert_holds(store, refs, blocks)
    store.check()


def test_a_tool_without_a_key_sees_damage(open_sealed, tmp_path):
    with open_sealed() as store:
        refs, _ = owned(store, 6, ALICE)
        raw = store.raw()
        raw.corrupt(refs[1].key)
        raw.corrupt(refs[2].key, byte=12)
        raw.truncate(refs[3].key)
    found = maintenance.verify(tmp_path, lambda done, total: None)
    assert found.records == 6
    assert found.damaged == {"damaged_checksum": 1, "damaged_header": 1, "damaged_length": 1}
    assert maintenance.inspect(tmp_path).encrypted


# ---- the master key ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [MASTER_KEY, MASTER_KEY.hex().encode(), MASTER_KEY.hex().upper().encode() + b"\n"],
    ids=["bytes", "digits", "a line"],
)
def test_a_key_file_is_bytes_or_digits(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    assert read_master_key(tmp_path / "key") == MASTER_KEY


@pytest.mark.parametrize(
    "content", [b"", b"secret\n", bytes(31), bytes(33), b"0" * 62, b"0" * 66, b"x" * 64, b"\xff" * 64]
)
def test_anything_else_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(StoreFailed, match="openssl rand -hex 32"):
        read_master_key(tmp_path / "key")


def test_a_key_file_that_is_not_there(tmp_path):
    with pytest.raises(StoreFailed, match="cannot read the key file"):
        read_master_key(tmp_path / "none")


def test_a_key_of_another_length_is_a_mistake_of_the_callers(open_lmdb):
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        open_lmdb(master_key=bytes(31))


def test_records_are_what_docs_say(open_sealed, tmp_path):
    """Opened with nothing but the master key, the files, and docs/block-format.md."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    store = open_sealed()
    refs, _ = owned(store, 1, ALICE)
    rests = store.raw().read(refs[0].key)
    salt = bytes.fromhex((tmp_path / "v1" / "encrypted").read_text())[:32]
    wrapping = AESGCM(HKDF(SHA256(), 32, salt, b"kvtide wrapping").derive(MASTER_KEY))
    name = rests[10:26]
    wrapped = (tmp_path / "v1" / "keys" / name.hex()).read_bytes()
    key = AESGCM(wrapping.decrypt(wrapped[:12], wrapped[12:], name))
    record = key.decrypt(rests[26:38], rests[62:], b"kvtide record")
    assert record[:10] == b"kvtide\r\n\x01\x00"
    assert record[72:104] == refs[0].key
    assert record[152 : 152 + len(refs[0].tokens)] == refs[0].tokens
