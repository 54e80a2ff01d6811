"""What importing the package costs."""

import platform
import subprocess
import sys

import kvstore
from kvstore.kernels import kernels


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import kvstore") & {"numpy", "lmdb", "zstandard", "xxhash", "torch", "numba"}


def test_stores_need_no_torch():
    statement = "import kvstore; [getattr(kvstore, name) for name in kvstore.__all__]; import kvstore.testing"
    assert not loaded_after(statement) & {"torch", "tiering", "engine", "hypothesis", "numba"}


def test_no_command_waits_for_a_compiler():
    """What loads compiled code comes with the first block that is encoded or decoded, or in the background of a disk store."""
    packages = loaded_after("import tiering.cli, kvstore.codec, kvstore.record, kvstore.disk")
    assert not packages & {"numba", "llvmlite"}


def test_what_is_kept_restores_blocks_without_a_compiler(tmp_path):
    """Both ways: one by one, and many at once."""
    program = f"""
from kvstore.testing import assert_holds, fill
from tests.kvstore.conftest import lmdb_store
from tests.kvstore.test_wanted import LAYOUT
with lmdb_store({str(tmp_path)!r}, layout=LAYOUT, capacity_bytes=1 << 24) as store:
    assert_holds(store, *fill(store, 4))
    assert set(store.stats().written) == {{"huffman"}}, store.stats()
"""
    kernels(2)  # or that process would have them compiled, by another that has numba
    packages = loaded_after(f"exec({program!r})")
    assert not packages & ({"numba", "llvmlite"} if platform.machine() == "x86_64" else {"numba"})


def test_every_public_name_is_there():
    assert [name for name in kvstore.__all__ if not hasattr(kvstore, name)] == []
    assert kvstore.__all__ == sorted(kvstore.__all__, key=lambda name: (not name.isupper(), name))
