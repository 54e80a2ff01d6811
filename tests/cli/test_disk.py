"""`kvtide disk` as a user runs it, and what it does to a directory."""

import json
import os
import subprocess
import sys

import pytest

from kvstore import BlockLayout, LmdbStore, Namespace
from kvstore.testing import assert_holds, fill, read

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=16, dtype="bfloat16", block_tokens=16)


def kvtide_disk(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiering", "disk", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


def opened(path, **changed) -> LmdbStore:
    return LmdbStore(
        path,
        namespace=Namespace.of({"model": "tiny"}),
        layout=LAYOUT,
        capacity_bytes=1 << 26,
        min_free_bytes=0,
        sync_interval_s=3600.0,
        **changed,
    )


def test_inspect_tells_what_is_there(tmp_path):
    with opened(tmp_path) as store:
        refs, _ = fill(store, 5)
        store.raw().corrupt(refs[2].key)
        read(store, refs)
        stored_bytes = store.stats().stored_bytes
    (tmp_path / "v1" / "damaged-00000000000000000001").mkdir()
    done = kvtide_disk("inspect", "--json", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["clean"]
    used = {"blocks": 4, "stored_bytes": stored_bytes, "facts": {"model": "tiny"}}
    assert found["namespaces"] == {store.namespace.digest.hex(): used}
    [one] = found["quarantined"]
    assert (one["key"], one["reason"]) == (refs[2].key.hex(), "damaged_checksum")
    assert len(found["set_aside"]) == 1
    plain = kvtide_disk("inspect", tmp_path)
    assert "4 blocks" in plain.stdout and "damaged_checksum" in plain.stdout
    assert "    model tiny\n" in plain.stdout
    for path in (tmp_path / "v1" / "namespaces").iterdir():
        path.write_text("{}")
    assert "which model that is is not known" in kvtide_disk("inspect", tmp_path).stdout


def test_verify_finds_damaged_records_and_exits_with_1(tmp_path):
    with opened(tmp_path) as store:
        refs, _ = fill(store, 5)
        store.raw().corrupt(refs[1].key)
        store.raw().corrupt(refs[3].key, byte=20)
        store.raw().write(refs[4].key, store.raw().read(refs[0].key))
    done = kvtide_disk("verify", "--json", tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["damaged"] == {"damaged_checksum": 1, "damaged_header": 1, "wrong_identity": 1}
    assert (found["records"], found["unpaired"], found["sound"]) == (5, 0, False)


def test_verify_of_what_is_sound_changes_nothing(tmp_path):
    with opened(tmp_path) as store:
        refs, blocks = fill(store, 5)
    assert kvtide_disk("verify", tmp_path).returncode == 0
    with opened(tmp_path) as again:
        assert again.opening.clean
        assert again._directory.was_signed_off
        assert_holds(again, refs, blocks)


@pytest.mark.parametrize("verb", ["inspect", "verify", "compact"])
def test_damaged_trees_exit_with_1(tmp_path, verb):
    with opened(tmp_path) as store:
        fill(store, 5)
    data = tmp_path / "v1" / "payload" / "data.mdb"
    os.truncate(data, data.stat().st_size - 3 * 4096)
    done = kvtide_disk(verb, tmp_path)
    assert done.returncode == 1
    assert "payload" in done.stdout + done.stderr


def test_compact_returns_space_and_keeps_what_is_there(tmp_path):
    with opened(tmp_path) as store:
        refs, blocks = fill(store, 200)
        store.delete_many([ref.key for ref in refs[5:]])
    size = (tmp_path / "v1" / "payload" / "data.mdb").stat().st_size
    done = kvtide_disk("compact", tmp_path)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "v1" / "payload" / "data.mdb"
    assert data.stat().st_size < size / 10
    assert data.stat().st_mode & 0o777 == 0o600
    left = sorted(path.name for path in (tmp_path / "v1").iterdir())
    assert left == ["baselines", "clean", "lock", "meta", "namespaces", "payload"]
    with opened(tmp_path) as again:
        assert_holds(again, refs[:5], blocks[:5])
        fill(again, 20, seed=1)
        again.check()


def test_clear_deletes_all_and_clear_old_only_what_is_of_no_use(tmp_path):
    with opened(tmp_path) as store:
        refs, blocks = fill(store, 3)
    (tmp_path / "v1" / "damaged-00000000000000000001").mkdir()
    for name in ("v0", "v2", "vault"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("x")
    (tmp_path / "v0" / "lock").touch()
    assert kvtide_disk("clear", "--old", tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "v1",
        "v2",
        "vault",
    ]  # v2 has no lock: whose is it?
    assert not list((tmp_path / "v1").glob("damaged-*"))
    with opened(tmp_path) as again:
        assert_holds(again, refs, blocks)
    assert kvtide_disk("clear", tmp_path).returncode == 0
    assert not (tmp_path / "v1" / "payload").exists()
    with opened(tmp_path) as empty:
        assert empty.stats().blocks == 0


@pytest.mark.parametrize("verb", ["inspect", "verify", "compact", "clear"])
def test_what_is_not_ours_is_refused_and_left_alone(tmp_path, verb):
    (tmp_path / "letters.txt").write_text("mine")
    (tmp_path / "v1").mkdir()
    done = kvtide_disk(verb, tmp_path)
    assert done.returncode == 2
    assert "no disk tier" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["letters.txt", "v1"]


def test_what_somebody_has_open_is_refused(tmp_path):
    with opened(tmp_path) as store:
        refs, blocks = fill(store, 3)
        for verb in ("inspect", "verify", "compact", "clear"):
            done = kvtide_disk(verb, tmp_path)
            assert done.returncode == 2
            assert f"process {os.getpid()}" in done.stderr
        assert_holds(store, refs, blocks)


def test_encrypted_directories_are_looked_after_without_a_key(tmp_path):
    with opened(tmp_path, master_key=bytes(32)) as store:
        fill(store, 5)
    assert "encrypted, in order" in kvtide_disk("inspect", tmp_path).stdout
    assert "5 records, 0 left over; sound" in kvtide_disk("verify", tmp_path).stdout
    assert kvtide_disk("compact", tmp_path).returncode == 0
    with opened(tmp_path, master_key=bytes(32)) as store:
        assert store.stats().blocks == 5
    assert kvtide_disk("clear", tmp_path).returncode == 0
    opened(tmp_path).close()  # whose it is was cleared as well
