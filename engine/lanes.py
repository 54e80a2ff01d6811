"""Attention of prompt rows on the CPU where engine/lane_kernel.py has it: straight from the pool's blocks, without a mask."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from .native import CHUNK, UNIT, attending, registers, watching
from .team import Team

_VERSION = 3
"""Of the order in which the kernel adds up, on which the last bits of its results depend."""

CACHE_BYTES: Final = 512 << 10
"""What a thread keeps at hand: half of it keys and values, half of it queries and sums. In a core's second cache."""

_ALL_TOKENS = 1 << 40


def has_lanes(device: torch.device, stored: torch.dtype, computed: torch.dtype, head_dim: int) -> bool:
    """Whether prompts are attended over by the kernel, where KV is kept in one dtype and computing is in another."""
    if device.type != "cpu" or stored not in (torch.float32, torch.bfloat16):
        return False
    if computed not in (torch.float32, torch.bfloat16) or (computed == torch.bfloat16 and stored != computed):
        return False
    width, has_pairs = registers()
    if computed == torch.bfloat16:
        return has_pairs and head_dim % (2 * width) == 0
    return width > 0 and head_dim % width == 0


def prepare(device: torch.device, stored: torch.dtype, computed: torch.dtype, head_dim: int) -> None:
    """Compile the kernel, or load what was compiled, where it will be called: half a second, or some."""
    if has_lanes(device, stored, computed, head_dim):
        attending(words(torch.empty(0, dtype=computed)).dtype, words(torch.empty(0, dtype=stored)).dtype)
        watching()  # of the team that calls it


def version(device: torch.device) -> str:
    """Says which bits attention has on a device, as far as that is this module's: of the kernel, and of which calls are its own."""
    return "none" if device.type != "cpu" else "{}.{}.{}".format(_VERSION, *map(int, registers()))


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneCall:
    """Attention of one chunk's rows in one pass over what they see.

    rows: the chunk's rows in the batch.   slots: int64, of the blocks from the first that a row sees on.   first: that block's first
    token.   start: the first row's position.   window: tokens that a row sees, itself among them, or None.   A row's bits depend
    on where it is and on what it sees, and not on where the chunk begins or ends, nor on the number of threads.
    """

    rows: slice
    slots: NDArray[np.int64]
    first: int
    start: int
    window: int | None
    team: Team

    @property
    def seen_tokens(self) -> int:
        """That a row sees at most."""
        return _ALL_TOKENS if self.window is None else self.window

    def attend(self, query: torch.Tensor, layer: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """The call's rows of engine/attention.py's `attend`, [1, rows, heads, head_dim], of all rows' queries."""
        query = query[0, :, self.rows].transpose(0, 1)
        num_rows, num_heads, head_dim = query.shape
        queries, blocks = words(query), words(layer)
        out = torch.empty(num_rows, num_heads, head_dim, dtype=query.dtype)
        self.team.run(
            attending(queries.dtype, blocks.dtype),
            queries,
            blocks,
            self.slots,
            (self.first, self.start + num_rows),
            self.start,
            self.seen_tokens,
            scale(scaling, head_dim),
            *shares(num_rows * num_heads // layer.shape[3], layer.shape[3], head_dim),
            words(out),
            np.zeros(2, np.int64),
        )
        return out[None]


def scale(scaling: float | None, head_dim: int) -> float:
    """Of scores, as the kernel takes it, which computes powers of two."""
    return (head_dim**-0.5 if scaling is None else scaling) * math.log2(math.e)


def shares(num_lanes: int, kv_heads: int, head_dim: int) -> tuple[int, int]:
    """Of how many KV heads, and how many units of lanes of each, a thread takes at a time, where each head has so many lanes.

    As many as stay in a core's cache, which is how often the blocks are read; but no thread is to be left over.
    """
    units, threads = -(-num_lanes // UNIT), torch.get_num_threads()
    head_bytes, unit_bytes = 2 * 4 * CHUNK * head_dim, 2 * 4 * UNIT * head_dim
    most = max(1, min(kv_heads, CACHE_BYTES // 2 // head_bytes))
    for together in range(most, 0, -1):
        wide = max(
            1,
            min(
                CACHE_BYTES // 2 // unit_bytes // together, units * -(-kv_heads // together) // threads, units
            ),
        )
        if -(-units // wide) * -(-kv_heads // together) >= threads:
            return together, wide
    return 1, 1


def words(tensor: torch.Tensor) -> NDArray[Any]:
    """A view for numpy, which has no bfloat16: unsigned words instead."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    found: NDArray[Any] = tensor.numpy()
    return found
