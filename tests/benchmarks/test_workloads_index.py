import numpy as np
import pytest

from benchmarks.workloads_index import (
    BLOCK_TOKENS,
    NUM_SHARED,
    OWN_TOKENS,
    SHARED_TOKENS,
    chat,
    digest,
    extension,
    in_any_order,
    prefixes,
    run,
    turns,
)
from tiering.radix import RadixIndex
from tiering.residency import Residency


def indexed(prompts):
    residency = Residency()
    radix = RadixIndex(BLOCK_TOKENS, residency)
    for prompt in prompts:
        radix.insert(prompt)
    radix.check()
    return radix, residency


def test_a_seed_makes_the_same_prompts_in_every_version_of_numpy():
    prompts = [*prefixes(3, 5), run(64, 5), chat(64, 5), extension(run(16, 5), 5, 1)]
    assert digest(prompts) == "da99c58909cb95f26702f2f3c9e47656ae7f1dfd73db5e9703ea064e69ee0934"
    assert digest(prefixes(3, 6)) != digest(prefixes(3, 5))


def test_a_tree_shares_its_system_prompts_and_nothing_else():
    radix, residency = indexed(prefixes(2 * NUM_SHARED, 0))
    assert len(radix) == (NUM_SHARED * SHARED_TOKENS + 2 * NUM_SHARED * OWN_TOKENS) // BLOCK_TOKENS
    leaves = np.count_nonzero(residency.live & (residency.num_children == 0))
    assert leaves == 2 * NUM_SHARED


def test_a_larger_tree_goes_on_where_the_smaller_one_ends():
    assert digest(prefixes(5, 1)) == digest([*prefixes(2, 1), *prefixes(3, 1, first=2)])


@pytest.mark.parametrize("node_tokens", [512, 64])
def test_the_nodes_of_a_chat_have_a_sibling_each(node_tokens):
    num_tokens = 4096
    radix, residency = indexed(turns(num_tokens, 0, node_tokens=node_tokens))
    path = radix.match(chat(num_tokens, 0))
    assert len(path) == num_tokens // BLOCK_TOKENS
    ends = np.flatnonzero(np.diff(residency.node[path])) + 1
    assert ends.tolist() == list(
        range(node_tokens // BLOCK_TOKENS, num_tokens // BLOCK_TOKENS, node_tokens // BLOCK_TOKENS)
    )
    assert residency.num_children[path[ends - 1]].tolist() == [2] * len(ends)
    assert np.count_nonzero(residency.parent[residency.live] == -1) == 2


def test_an_extension_is_new_each_time_behind_the_same_path():
    path = run(1024, 0)
    one, other = extension(path, 0, 1), extension(path, 0, 2)
    radix, _ = indexed([path, one])
    assert len(radix.match(other)) == len(path) // BLOCK_TOKENS
    assert len(radix.match(one)) == len(one) // BLOCK_TOKENS


def test_any_order_is_all_numbers_once():
    assert sorted(in_any_order(100, 0)) == list(range(100)) != in_any_order(100, 0)
