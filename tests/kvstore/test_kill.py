"""A writer is killed in the middle of its work: what it was told is stored is there, and nothing is wrong."""

import subprocess
import sys

import pytest

from kvstore.testing import assert_holds, chain, kv_like, reasons

# Puts batches of 4 and deletes every third batch, and says so once the call has returned.
WRITER = """
import sys
from kvstore import BlockLayout, LmdbStore, Namespace
from kvstore.testing import chain, kv_like
layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=16, dtype="bfloat16", block_tokens=16)
store = LmdbStore(sys.argv[1], namespace=Namespace.of({"model": "tiny", "dtype": "bfloat16"}), layout=layout,
                  capacity_bytes=1 << 26, min_free_bytes=0, sync_interval_s=0.01)
for turn in range(10_000):
    refs, blocks = chain(store, 4, seed=turn), kv_like(store, 4, seed=turn)
    store.put_many(refs, blocks)
    print("put", turn, flush=True)
    if turn % 3 == 2:
        store.delete_many([ref.key for ref in refs])
        print("deleted", turn, flush=True)
"""


def run_until_killed(path, num_lines: int) -> list[tuple[str, int]]:
    """What the writer acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        lines = [writer.stdout.readline() for _ in range(num_lines)]
        writer.kill()
        lines += writer.stdout.readlines()
    return [(verb, int(turn)) for verb, turn in (line.split() for line in lines if line.endswith("\n"))]


@pytest.mark.parametrize("num_lines", [3, 20, 61])
def test_what_was_acknowledged_survives_a_kill(open_lmdb, tmp_path, num_lines):
    acknowledged = run_until_killed(tmp_path, num_lines)
    with open_lmdb(capacity_bytes=1 << 26) as store:
        assert store.opening.dropped is None
        store.check()
        deleted = {turn for verb, turn in acknowledged if verb == "deleted"}
        put = {turn for verb, turn in acknowledged if verb == "put"}
        last = max(put)
        for turn in put - deleted:
            refs, blocks = chain(store, 4, seed=turn), kv_like(store, 4, seed=turn)
            if turn == last and turn % 3 == 2:
                continue  # its deletion may or may not have happened
            assert_holds(store, refs, blocks)
        for turn in deleted:
            assert None not in reasons(store, chain(store, 4, seed=turn))
        assert store.stats().damaged_blocks == 0
    assert run_until_killed(tmp_path, 2)[0] == ("put", 0)
    open_lmdb(capacity_bytes=1 << 26).check()
