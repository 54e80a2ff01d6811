"""What every system is asked to do, and the blocks that it is given."""

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.faults import Place

NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, BLOCK_TOKENS = 4, 2, 32, 256
SHAPE = (2, NUM_LAYERS, BLOCK_TOKENS, NUM_KV_HEADS * HEAD_DIM)
BLOCK_BYTES = 2 * int(np.prod(SHAPE))
"""Of bfloat16: 256 KiB."""

NUM_BLOCKS = 8
"""In each try, every one of them read back."""

JUNK = 0xA5
"""What every buffer holds before it is read into, so that bytes that were never read show."""

Block = NDArray[np.uint8]


class Read(NamedTuple):
    """The answer to one read: served, not there, or there but refused because the read failed."""

    answer: Literal["hit", "missed", "refused"]
    data: Block | None = None


class Backend(Protocol):
    """A system's disk store over a directory. What it raises is counted."""

    def put(self, number: int, block: Block) -> None:
        """Store a block. Returns when its bytes are in the file, as the system says."""
        ...

    def get(self, number: int) -> Read:
        """Read a block back, from the file."""
        ...

    def place(self, number: int) -> Place:
        """Where the payload of a block that was put lies."""
        ...

    def close(self) -> None:
        """End in order."""
        ...


def blocks(seed: int) -> list[Block]:
    """Normally distributed bfloat16, as KV is."""
    normal = np.random.default_rng(seed).standard_normal((NUM_BLOCKS, BLOCK_BYTES // 2))
    words = (normal.astype("<f4").view("<u4") >> 16).astype("<u2")
    return list(words.view(np.uint8))


def whole(path: Path) -> Place:
    """A file that is nothing but payload."""
    size = path.stat().st_size
    assert size == BLOCK_BYTES, f"{path} has {size} bytes, not the block's {BLOCK_BYTES}"
    return Place(path, 0, size)
