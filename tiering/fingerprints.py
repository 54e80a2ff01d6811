"""What stands for a block and all before it, to remember what went: never to find what is served."""

import numpy as np
from numpy.typing import NDArray

from tiering.kernels import kernels


def fingerprints(tokens: NDArray[np.int32], block_tokens: int, before: int) -> NDArray[np.uint64]:
    """The fingerprint of each whole block of these tokens, which follow the block with the fingerprint `before`.

    xxh3 chained over the prefix, from a seed that only this process knows: good enough to remember by, and to explain;
    what is served is never found by it.
    """
    chain = np.empty(1 + len(tokens) // block_tokens, dtype=np.uint64)
    chain[0] = before
    kernels().chain(np.ascontiguousarray(tokens), block_tokens, chain)
    return chain[1:]
