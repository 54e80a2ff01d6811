"""A disk store on an overlay, as containers have it: what lies in the layer below comes up when it is opened."""

import sys

from kvstore.testing import fill
from tests.kvstore.mounts import run_mounted

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


MOUNT = 'mount -t overlay overlay -o "lowerdir=$0/lower,upperdir=$0/upper,workdir=$0/work" "$0/merged"'


def test_a_store_on_an_overlay_is_like_any_other(open_lmdb, tmp_path):
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    with open_lmdb(path=tmp_path / "lower") as store:
        fill(store, 6)
    before = (tmp_path / "lower" / "v1" / "payload" / "data.mdb").read_bytes()
    said = run_mounted(MOUNT, tmp_path, [sys.executable, "-c", PROGRAM, str(tmp_path / "merged")])
    assert "as it should be" in said
    assert (tmp_path / "lower" / "v1" / "payload" / "data.mdb").read_bytes() == before
