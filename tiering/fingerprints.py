"""What stands for a block and all before it, to remember what went: never to find what is served."""

import numpy as np
import xxhash
from numpy.typing import NDArray


def fingerprints(tokens: bytes, block_bytes: int, before: int) -> NDArray[np.uint64]:
    """The fingerprint of each block of these tokens, which follow the block with the fingerprint `before`.

    xxh3 chained over the prefix, from a seed that only this process knows: good enough to remember by, and to explain;
    what is served is never found by it.
    """
    chain: list[int] = []
    add_fingerprints(tokens, block_bytes, 0, len(tokens) // block_bytes, before, chain)
    return np.array(chain, dtype=np.uint64)


def add_fingerprints(
    tokens: bytes, block_bytes: int, start: int, length: int, before: int, chain: list[int]
) -> None:
    """Add those of the blocks [start, start + length) of these tokens to the chain."""
    digest = xxhash.xxh3_64_intdigest
    for at in range(start * block_bytes, (start + length) * block_bytes, block_bytes):
        before = digest(tokens[at : at + block_bytes], before)
        chain.append(before)
