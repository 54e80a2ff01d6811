"""Paged attention by FlashInfer, whose kernels read the pool's blocks where they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kvstore.closing import Closing

from .chunk import Chunk
from .pool import DevicePool

HEAD_DIMS = (64, 128, 256)
"""Those that its kernels for bfloat16 and float16 are made for on every GPU it knows."""

DTYPES = (torch.bfloat16, torch.float16)

_LEAST_WORKSPACE_BYTES = 128 << 20  # what its documentation recommends
_MOST_TILE_ROWS = 128

Load = Callable[[], Any]
"""Gives FlashInfer's BatchPrefillWithPagedKVCacheWrapper, or raises whatever keeps it from being imported."""


def load_wrapper() -> Any:
    """FlashInfer's class for batches of prefills; a decode is a prefill of one token to it."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    return BatchPrefillWithPagedKVCacheWrapper


def workspace_bytes(num_heads: int, num_kv_heads: int, head_dim: int, num_processors: int) -> int:
    """Memory for partial results where it splits a sequence's keys.

    It splits until it has two pieces of work for each of the GPU's processors, a piece being one KV head and a tile of
    rows, and keeps a float32 vector and a sum for each row, by a bound in which each row counts once for each head.
    """
    pieces = max(1, 2 * num_processors // num_kv_heads)
    partial_bytes = num_heads * pieces * _MOST_TILE_ROWS * (head_dim + 1) * 4
    return max(_LEAST_WORKSPACE_BYTES, partial_bytes + (1 << 20))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pages:
    """A batch's sequences as FlashInfer takes them; int32.

    rows: [N + 1], where each sequence's rows begin, and where the last's end.   blocks: [N + 1], the same for `slots`.
    slots: [B], on the pool's device: the blocks of each sequence up to its chunk's end.   last_tokens: [N], how many
    tokens of the last of these are the sequence's.
    """

    rows: torch.Tensor
    blocks: torch.Tensor
    slots: torch.Tensor
    last_tokens: torch.Tensor


class _Window:
    """FlashInfer's wrapper for the layers of one sliding window, and what it is planned for."""

    def __init__(self, wrapper: Any, facts: dict[str, Any], device: torch.device) -> None:
        self.wrapper = wrapper
        self._facts = facts
        self._device = device
        self._planned: tuple[Pages, float | None] | None = None
        self._copied: torch.cuda.Event | None = None

    def plan(self, pages: Pages, scaling: float | None) -> None:
        """Plan for a batch, unless that is what it is planned for: all layers of a window share a plan."""
        if self._planned is not None and self._planned[0] is pages and self._planned[1] == scaling:
            return
        if self._copied is not None:
            # A plan is written to page-locked memory and copied from there behind whatever is still computing: without
            # this wait the next plan would overwrite one that has not left yet.
            self._copied.synchronize()
        self.wrapper.plan(
            pages.rows,
            pages.blocks,
            pages.slots,
            pages.last_tokens,
            causal=True,
            sm_scale=scaling,
            **self._facts,
        )
        self._planned = (pages, scaling)
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()


@dataclass(frozen=True, slots=True)
class FlashInferCall:
    """Attention of all rows of a batch in the layers of one window, prefills and decodes alike."""

    pages: Pages
    window: _Window

    def attend(self, query: torch.Tensor, layer: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """As engine/attention.py's `attend`."""
        self.window.plan(self.pages, scaling)
        # rows of all heads side by side, as its kernels for Hopper load them
        out: torch.Tensor = self.window.wrapper.run(query[0].transpose(0, 1).contiguous(), layer)
        return out[None]


class FlashInfer(Closing):
    """FlashInfer's kernels for one model's attention over one pool.

    Called by one thread, on CUDA on the current stream. Needs no mask, and no care for what a slot held before: tokens
    behind a sequence's end are not loaded, and count as zero. Raises whatever FlashInfer does, for what it does not know
    and where it cannot compile its kernels.
    """

    def __init__(
        self,
        wrapper: Any,
        pool: DevicePool,
        *,
        num_heads: int,
        dtype: torch.dtype,
        windows: Sequence[int | None],
    ) -> None:
        """wrapper: the class that `load_wrapper` gives. dtype: of the queries; the pool's must be the same. windows: all
        that the model's layers have.
        """
        layout = pool.layout
        processors = (
            torch.cuda.get_device_properties(pool.device).multi_processor_count
            if pool.device.type == "cuda"
            else 0
        )
        size = workspace_bytes(num_heads, layout.num_kv_heads, layout.head_dim, processors)
        # One for all windows: their layers run one after the other.
        workspace = torch.empty(size, dtype=torch.uint8, device=pool.device)
        facts = {
            "num_qo_heads": num_heads,
            "num_kv_heads": layout.num_kv_heads,
            "head_dim_qk": layout.head_dim,
            "page_size": layout.block_tokens,
            "q_data_type": dtype,
            "kv_data_type": pool.dtype,
        }
        self._pool = pool
        self._windows = {
            # It counts the tokens before a row's own, and -1 is all of them.
            window: _Window(
                wrapper(workspace, "NHD"),
                facts | {"window_left": -1 if window is None else window - 1},
                pool.device,
            )
            for window in windows
        }

    def calls(self, packed: Sequence[Chunk]) -> dict[int | None, FlashInferCall]:
        """For each window the call that computes a batch, whose rows are these chunks' tokens in this order."""
        pages = self._pages(packed)
        return {window: FlashInferCall(pages, planned) for window, planned in self._windows.items()}

    def close(self) -> None:
        """Give its workspaces back. Closing twice is safe."""
        self._windows = {}

    def _pages(self, packed: Sequence[Chunk]) -> Pages:
        block_tokens = self._pool.layout.block_tokens
        used = np.array([-(-chunk.end // block_tokens) for chunk in packed])
        slots = np.concatenate([chunk.slots[:count] for chunk, count in zip(packed, used, strict=True)])
        ends = np.array([chunk.end for chunk in packed])
        return Pages(
            rows=_starts([len(chunk.tokens) for chunk in packed]),
            blocks=_starts(used),
            slots=torch.from_numpy(slots.astype(np.int32)).to(self._pool.device),
            last_tokens=torch.from_numpy((ends - (used - 1) * block_tokens).astype(np.int32)),
        )


def _starts(counts: Sequence[int] | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
