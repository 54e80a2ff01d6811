"""`make churn`: how much larger than its records a disk store's files become when it is filled many times over.

Blocks whose records vary in size go into a store of a fixed capacity until twenty times as much has been written. When the
store is full, blocks that are there are deleted in batches: the oldest written, the least recently used where a part of them
is used over and over, or any. A batch is what an engine writes to a disk of this size at once. Watched all the while: the
bytes that the files take of the disk, by the bytes of the records, from the first time that the store was full.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.block import BlockLayout, Namespace
from kvstore.disk import LmdbStore
from kvstore.disk.directory import tree_bytes
from kvstore.errors import StoreFull
from kvstore.testing import Block, chain
from tiering.index_config import IndexConfig

# the demo model's blocks, of 16 tokens: records of some 0.1 to 0.4 MB, by how well they compress
_LAYOUT = BlockLayout(num_layers=30, num_kv_heads=3, head_dim=64, block_tokens=16, dtype="bfloat16")


def _batch_blocks(store: LmdbStore) -> int:
    """How many blocks an engine writes at once."""
    config = IndexConfig(
        block_tokens=16,
        device_slots=1,
        host_slots=1 << 20,
        disk_bytes=store.capacity_bytes,
        record_bytes=store.max_stored_bytes,
    )
    return config.blocks_per_write


def _blocks(store: LmdbStore, num_blocks: int, rng: np.random.Generator) -> list[Block]:
    """Blocks of which a random share is zero, and the rest does not compress."""
    num_bytes = store.layout.block_bytes
    shares = rng.uniform(0, 0.75, num_blocks)
    blocks = [rng.integers(0, 256, num_bytes, dtype=np.uint8) for _ in shares]
    for block, share in zip(blocks, shares, strict=True):
        block[: int(num_bytes * share)] = 0
    return blocks


class Victims:
    """The blocks that are there, and in which order they go."""

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._rng = kind, random.Random(seed)
        self._keys: list[bytes] = []

    def add(self, keys: list[bytes]) -> None:
        """These are written. As many as these are used again, recent ones more often than old ones."""
        if self._kind == "least recently used":
            for _ in keys:
                used = int(len(self._keys) * (1 - self._rng.random() ** 2))
                if used < len(self._keys):
                    self._keys.append(self._keys.pop(used))
        self._keys += keys

    def take(self, num_keys: int) -> list[bytes]:
        """The next to go."""
        if self._kind == "any":
            self._rng.shuffle(self._keys)
        taken, self._keys = self._keys[:num_keys], self._keys[num_keys:]
        return taken


KINDS = ("oldest", "least recently used", "any")


def churn(
    directory: Path, *, capacity_bytes: int, times: int, victims: str, seed: int, batch_blocks: int | None
) -> dict[str, Any]:
    """A row of the report."""
    rng, held = np.random.default_rng(seed), Victims(victims, seed)
    written, turn, worst, ratios = 0, 0, 0.0, []
    start_s = time.monotonic()
    with LmdbStore(
        directory,
        namespace=Namespace.of({"model": "churn"}),
        layout=_LAYOUT,
        capacity_bytes=capacity_bytes,
        min_free_bytes=0,
    ) as store:
        batch = batch_blocks or _batch_blocks(store)
        while written < times * capacity_bytes:
            turn += 1
            refs, blocks = chain(store, batch, seed=turn), _blocks(store, batch, rng)
            while True:
                try:
                    written += sum(store.put_many(refs, blocks))
                    break
                except StoreFull:
                    store.delete_many(held.take(batch))
            held.add([ref.key for ref in refs])
            if written > capacity_bytes:
                ratio = tree_bytes(directory) / store.stats().stored_bytes
                ratios.append(ratio)
                worst = max(worst, tree_bytes(directory) / capacity_bytes)
        store.check()
    return {
        "victims": victims,
        "capacity_bytes": capacity_bytes,
        "batch_blocks": batch,
        "written_bytes": written,
        "files_by_live_median": round(float(np.median(ratios)), 3),
        "files_by_live_worst": round(max(ratios), 3),
        "files_by_capacity_worst": round(worst, 3),
        "seconds": round(time.monotonic() - start_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capacity-mib", type=int, default=256)
    parser.add_argument("--times", type=int, default=20, help="how often the capacity is written")
    parser.add_argument(
        "--batch-blocks", type=int, help="instead of as many as an engine would write at once"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the report goes")
    arguments = parser.parse_args()
    rows = []
    for victims in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                churn(
                    Path(folder),
                    capacity_bytes=arguments.capacity_mib << 20,
                    times=arguments.times,
                    victims=victims,
                    seed=arguments.seed,
                    batch_blocks=arguments.batch_blocks,
                )
            )
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
