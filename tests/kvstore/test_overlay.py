"""A disk store on an overlay, as containers have it: what lies in the layer below comes up when it is opened."""

import shutil
import subprocess
import sys

import pytest

from kvstore.testing import fill

UNSHARE = shutil.which("unshare")
PROGRAM = """
import sys
from pathlib import Path
from kvstore import StoreLocked
from kvstore.testing import assert_holds, chain, fill, kv_like
from tests.kvstore.conftest import lmdb_store

path = Path(sys.argv[1])
with lmdb_store(path) as store:
    assert store.opening.clean and store._directory.was_signed_off
    below = chain(store, 6), kv_like(store, 6)
    assert_holds(store, *below)
    more = fill(store, 6, seed=1)
    store.delete_many([below[0][0].key])
    try:
        lmdb_store(path)
    except StoreLocked:
        pass
    else:
        raise AssertionError("two stores have one directory")
with lmdb_store(path) as store:
    assert store.opening.clean
    assert_holds(store, below[0][1:], below[1][1:])
    assert_holds(store, *more)
    store.check()
print("as it should be")
"""


def on_overlay(tmp_path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command where `merged` shows `lower`, and takes what is written in its place."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir(exist_ok=True)
    mount = 'mount -t overlay overlay -o "lowerdir=$0/lower,upperdir=$0/upper,workdir=$0/work" "$0/merged"'
    script = f'{mount} || exit 77; exec "$@"'
    return subprocess.run(
        [UNSHARE, "--map-root-user", "--mount", "sh", "-c", script, str(tmp_path), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_store_on_an_overlay_is_like_any_other(open_lmdb, tmp_path):
    if UNSHARE is None or on_overlay(tmp_path, ["true"]).returncode:
        pytest.skip("no overlay can be mounted here")
    with open_lmdb(path=tmp_path / "lower") as store:
        fill(store, 6)
    before = (tmp_path / "lower" / "v1" / "payload" / "data.mdb").read_bytes()
    done = on_overlay(tmp_path, [sys.executable, "-c", PROGRAM, str(tmp_path / "merged")])
    assert done.returncode == 0, done.stderr
    assert "as it should be" in done.stdout
    assert (tmp_path / "lower" / "v1" / "payload" / "data.mdb").read_bytes() == before
