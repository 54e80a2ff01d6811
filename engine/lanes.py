"""Attention of prompt rows on the CPU where engine/lane_kernel.py has it: straight from the pool's blocks, without a mask."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvstore.closing import Closing

_VERSION = 1
"""Of the order in which the kernel adds up, on which the last bits of its results depend."""

MOST_UNITS = 4
"""Most units of lanes for which a thread reads the blocks once. More would not stay in a core's cache."""

_ALL_TOKENS = 1 << 40


class Team(Closing):
    """The threads that compute with the one that calls, as many in all as torch has. For one caller at a time."""

    def __init__(self) -> None:
        self._others: ThreadPoolExecutor | None = None
        self._num_threads = 1

    def run(self, work: Callable[..., None], *given: Any) -> None:
        """Have every thread do `work(*given)`, which must release the GIL to be of use; until all have.

        It must be all done where fewer do it: where no thread may be begun, and when the interpreter ends.
        """
        self._meet(torch.get_num_threads())
        helping: list[Future[None]] = []
        if self._others is not None:
            with suppress(RuntimeError):
                helping += (self._others.submit(work, *given) for _ in range(self._num_threads - 1))
        work(*given)
        for one in helping:
            one.result()

    def close(self) -> None:
        """End the threads. The next run would begin others."""
        if self._others is not None:
            self._others.shutdown()
        self._others, self._num_threads = None, 1

    def _meet(self, num_threads: int) -> None:
        if num_threads != self._num_threads:
            self.close()
            self._num_threads = num_threads
            if num_threads > 1:
                self._others = ThreadPoolExecutor(num_threads - 1, thread_name_prefix="kvtide-lanes")


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


def version(device: torch.device) -> str:
    """Says which bits attention has on a device, as far as that is this module's: of the kernel, and of which calls are its own."""
    return "none" if device.type != "cpu" else "{}.{}.{}".format(_VERSION, *map(int, registers()))


@cache
def registers() -> tuple[int, bool]:
    """Of this processor, as the kernel says. Imported when it is first asked for: numba takes half a second."""
    from .lane_vectors import HAS_PAIRS, WIDTH

    return WIDTH, HAS_PAIRS


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

    def attend(self, query: torch.Tensor, layer: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """The call's rows of engine/attention.py's `attend`, [1, rows, heads, head_dim], of all rows' queries."""
        from .lane_kernel import attending

        query = query[0, :, self.rows]
        num_heads, num_rows, head_dim = query.shape
        queries, blocks = words(query), words(layer)
        out = torch.empty(num_rows, num_heads, head_dim, dtype=torch.float32)
        self.team.run(
            attending(queries.dtype, blocks.dtype),
            queries,
            blocks,
            self.slots,
            (self.first, self.start + num_rows),
            self.start,
            _ALL_TOKENS if self.window is None else self.window,
            (head_dim**-0.5 if scaling is None else scaling) * math.log2(math.e),
            self._wide(num_rows * num_heads, layer.shape[3]),
            out.numpy(),
            np.zeros(1, np.int64),
        )
        return out.to(query.dtype)[None]

    def _wide(self, num_lanes: int, kv_heads: int) -> int:
        """Units to be taken at a time: few enough that no thread is left over, or waits long for the last."""
        from .lane_vectors import UNIT

        units = -(-num_lanes // kv_heads // UNIT) * kv_heads
        return max(1, min(MOST_UNITS, units // (3 * torch.get_num_threads())))


def words(tensor: torch.Tensor) -> NDArray[Any]:
    """A view for numpy, which has no bfloat16: unsigned words instead."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    found: NDArray[Any] = tensor.numpy()
    return found
