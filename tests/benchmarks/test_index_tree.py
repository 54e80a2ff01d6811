"""What `make bench-index` measures are the core's own parts, in order before and after."""

import gc

from benchmarks.index import gates, memory, row, timed
from benchmarks.index_collector import Pauses, collector
from benchmarks.index_tree import Tree
from benchmarks.workloads_index import extension, prefixes
from tiering.residency import Tier


def test_a_tree_is_a_core_that_requests_can_use():
    tree = Tree(400, 400, 400)
    prompts = list(prefixes(3, seed=0))
    tree.enter(prompts[0], Tier.DEVICE)
    tree.enter(prompts[1], Tier.HOST)
    tree.enter(prompts[2], Tier.DEVICE, Tier.DISK)
    tree.index.check()
    lease = tree.admit(prompts[0])
    assert lease.num_cached_blocks == 95
    tree.index.release(lease)
    path = tree.radix.insert(extension(prompts[0], 0, 1))
    assert len(path) == 128
    tree.take_out(path[:95:-1])
    tree.index.make_room(400)
    tree.index.check()


def test_evictions_are_of_what_was_entered_and_collections_are_noticed():
    tree = Tree(300)
    tree.enter_all(prefixes(2, seed=0), Tier.DEVICE)
    with Pauses() as pauses:
        gc.collect()
    assert pauses.wall_ms[0][0] == 2
    assert len(pauses.cpu_ms) == 1
    figures = collector(tree, 0.05, seed=0)
    assert figures["prefixes_entered"] > 0
    assert figures["turn_longest_ms"] >= figures["turn_p50_ms"] > 0
    assert figures["longest_ms"] >= figures["everything_median_ms"] > 0
    tree.index.check()


def test_a_gate_says_whether_it_holds():
    names = ["match 128k, one run", "match 128k, 256 nodes", "insert 512 below 128k, one run"]
    names += ["insert 512 below 128k, 256 nodes", "lease and release 128k, one run", "evict one"]
    names += ["lease and release 128k, 256 nodes", "evict 1,000, a block"]
    rows = [row(name, [7.0, 9.0, 8.5]) for name in names]
    figures = {
        "growth": [{"name": "match 128k, one run", "ratio": 1.2}, {"name": "match 1,536", "ratio": 1.16}],
        "collector": {"longest_ms": 0.1},
        "memory": [{"blocks": 1000, "bytes_a_block": 129.9}],
    }
    assert [gate["name"] for gate in gates(rows, figures) if not gate["holds"]] == [
        "evict one leaf",
        "evict 1,000, a block",
        "growth, match 128k, one run",
        "growth, match 1,536",
    ]
    assert len(timed(lambda: None, 5)) == 5


def test_the_memory_of_a_block_counts_the_columns():
    """What an index takes before it has a block, for its slots above all, is in the figure as well."""
    figures = memory(1 << 16, 0)
    assert figures["blocks"] == 1 << 16
    assert 0 < figures["of_it_before_the_first"] < figures["bytes_a_block"]
