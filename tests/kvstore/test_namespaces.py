"""Processes and file systems of other kinds, made with unshare(1): needs a kernel that lets this user do so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNSHARE = shutil.which("unshare")
OPEN = """
import os, sys
from kvstore import BlockLayout, LmdbStore, Namespace, StoreError
from kvstore.testing import fill, reasons
layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=16, dtype="bfloat16", block_tokens=16)
try:
    store = LmdbStore(sys.argv[1], namespace=Namespace.of({"model": "tiny"}), layout=layout,
                      capacity_bytes=1 << 26, min_free_bytes=0)
    print("open", os.getpid(), flush=True)
    if sys.argv[2] == "hold":
        sys.stdin.read()
    if sys.argv[2] == "fill":
        for seed in range(1000):
            fill(store, 8, seed)
    store.close()
except StoreError as error:
    print(type(error).__name__, error, flush=True)
"""


def unshared(flags: str, *command: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [UNSHARE, "-r", flags, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def needs(flags: str) -> None:
    if UNSHARE is None:
        pytest.skip("no unshare(1) here")
    done = subprocess.run([UNSHARE, "-r", flags, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"unshare {flags} is not allowed here")


def test_two_processes_that_are_both_number_one_are_told_apart(tmp_path):
    needs("-pf")
    python = (sys.executable, "-c", OPEN, str(tmp_path))
    with unshared("-pf", *python, "hold") as holder:
        assert holder.stdout.readline() == "open 1\n"
        with unshared("-pf", *python, "once") as second:
            said, _ = second.communicate(timeout=60)
        assert said.startswith("StoreLocked")
        assert "process 1, counted in another container" in said
        holder.communicate(timeout=60)
    with unshared("-pf", *python, "once") as third:
        assert third.communicate(timeout=60)[0] == "open 1\n"


def on_mount(mount: str, mode: str, path: Path) -> str:
    script = f'{mount} && exec "$0" -c "$1" "$2" "$3"'
    with unshared("-m", "sh", "-c", script, sys.executable, OPEN, str(path), mode) as process:
        said, complaint = process.communicate(timeout=100)
    if process.returncode and "mount" in complaint:
        pytest.skip(f"mounting is not allowed here: {complaint.strip()}")
    return said


def test_a_directory_that_cannot_be_written_gets_a_sentence(tmp_path):
    needs("-m")
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    said = on_mount(mount, "once", tmp_path)
    assert said.startswith("StoreFailed")
    assert "Read-only file system" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("size", "mode"), [("8k", "once"), ("1m", "fill")])
def test_a_full_file_system_gets_a_sentence(tmp_path, size, mode):
    """Too small to begin with, and full while it is written."""
    needs("-m")
    said = on_mount(f"mount -t tmpfs -o size={size} none {tmp_path}", mode, tmp_path)
    last = said.splitlines()[-1]
    assert last.startswith("StoreFull")
    assert "No space left on device" in last or "must remain" in last
    assert said.startswith("open ") == (mode == "fill")
