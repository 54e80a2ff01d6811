"""What stands for a block and all before it, to remember what went: never to find what is served."""

import numpy as np
import xxhash
from numpy.typing import NDArray


def fingerprints(tokens: bytes, block_bytes: int, before: int) -> NDArray[np.uint64]:
    """The fingerprint of each block of these tokens, which follow the block with the fingerprint `before`.

    xxh3 chained over the prefix, from a seed that only this process knows: good enough to remember by, and to explain;
    what is served is never found by it.
    """
    chain = []
    for at in range(0, len(tokens), block_bytes):
        before = xxhash.xxh3_64_intdigest(tokens[at : at + block_bytes], before)
        chain.append(before)
    return np.array(chain, dtype=np.uint64)
