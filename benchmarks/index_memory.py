"""What a block of a large index takes of memory, everything counted: run in a process of its own."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_tree import Tree
from benchmarks.workloads_index import NUM_SHARED, OWN_TOKENS, SHARED_TOKENS
from tiering.kernels import kernels
from tiering.residency import NO_BLOCK, Tier

_OWN_BLOCKS = OWN_TOKENS // 16


def resident_bytes() -> int:
    """What the process has of memory now."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024


def measure(num_blocks: int, seed: int) -> dict[str, Any]:
    """Prefixes as in the other trees, each found by a request, held and released: on the device, with room to churn."""
    kernels()  # of which no block has a part
    before = resident_bytes()
    tree = Tree(num_blocks + _OWN_BLOCKS)
    empty = resident_bytes()
    rng = np.random.default_rng(seed)
    shared = [
        tree.enter(rng.integers(0, 128_000, SHARED_TOKENS, dtype=np.int32), Tier.DEVICE)
        for _ in range(NUM_SHARED)
    ]
    for number in range((num_blocks - NUM_SHARED * len(shared[0])) // _OWN_BLOCKS):
        above = shared[number % NUM_SHARED]
        edge = rng.integers(0, 128_000, OWN_TOKENS, dtype=np.int32)
        own = tree.radix.extend(above.item(-1), edge.tobytes())
        tree.fill(own, Tier.DEVICE)
        path = np.concatenate([above, own])
        tree.holdings.lease(path)
        tree.residency.hits[path] += 1
        tree.holdings.release(path)
    assert tree.radix.path(NO_BLOCK).size == 0, "nothing is above the first blocks"
    return {
        "blocks": len(tree.radix),
        "bytes_a_block": round((resident_bytes() - before) / len(tree.radix), 1),
        "of_it_before_the_first": round((empty - before) / len(tree.radix), 1),
        "of_it_tokens_and_ids": 68,
        "key_bytes_more_on_disk": 32,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.blocks, arguments.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
