"""What stands for a block and all before it: as another implementation of the same algorithm says."""

import numpy as np
import pytest
import xxhash

from tiering.fingerprints import fingerprints
from tiering.loops.fingerprints import PIECE
from tiering.radix import RadixIndex
from tiering.residency import NO_BLOCK, Residency

SEEDS = (0, 1, 2**32, 2**64 - 1, 0x8000000000000000, 0x0123456789ABCDEF)


def plainly(tokens, block_tokens, before):
    found = []
    for start in range(0, len(tokens), block_tokens):
        block = tokens[start : start + block_tokens]
        for at in range(0, block_tokens, PIECE):
            before = xxhash.xxh3_64_intdigest(block[at : at + PIECE].tobytes(), before)
        found.append(before)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_they_are_xxh3_chained(seed):
    rng = np.random.default_rng(1)
    for block_tokens in (*range(1, 66), 119, 120, 121, 256):
        for low in (-(2**31), 0):
            tokens = rng.integers(low, 2**31, 5 * block_tokens).astype("<i4")
            expected = plainly(tokens, block_tokens, seed)
            assert fingerprints(tokens, block_tokens, seed).tolist() == expected
            assert fingerprints(np.repeat(tokens, 2)[::2], block_tokens, seed).tolist() == expected
            part = fingerprints(tokens[2 * block_tokens :], block_tokens, expected[1])
            assert part.tolist() == expected[2:], "it goes on from any block"


def test_what_is_left_of_a_block_has_none():
    tokens = np.arange(11, dtype="<i4")
    assert len(fingerprints(tokens, 4, 3)) == 2
    assert len(fingerprints(tokens[:3], 4, 3)) == 0


@pytest.mark.parametrize("block_tokens", [1, 3, 16, 61])
def test_the_index_has_the_same_for_its_blocks(block_tokens):
    rng, residency = np.random.default_rng(2), Residency(4)
    index = RadixIndex(block_tokens, residency, max_node_blocks=4, seed=2**64 - 5)
    for shared in (0, 3, 6, 9):
        prompt = np.arange(10 * block_tokens, dtype="<i4")
        prompt[shared * block_tokens :] = rng.integers(100, 2**31, (10 - shared) * block_tokens)
        ids = index.insert(prompt)
        assert residency.fingerprint[ids].tolist() == plainly(prompt, block_tokens, index.seed)
        more = rng.integers(0, 9, 2 * block_tokens).astype("<i4")
        below = index.extend(ids.item(-1), more.tobytes())
        whole = np.concatenate([prompt, more])
        assert residency.fingerprint[below].tolist() == plainly(whole, block_tokens, index.seed)[10:]
    assert index.match_below(NO_BLOCK, prompt).tolist() == ids.tolist()
    index.check()
