"""Blocks of one layer, side by side and in the dtype of the computing, as attention reads them."""

from collections.abc import Sequence

import torch

_SPARE = 1.25
"""How much of what is needed is asked for: a reply that grows with each step must not need other memory each time."""


class Gather:
    """Copies a layer's blocks out of the pool, on the CPU into memory that it keeps from layer to layer and step to step.

    What malloc returned to the system after each layer would be taken anew for the next one, page by page. torch's allocator
    for CUDA keeps what is freed, so there each read has memory of its own. For the thread that computes alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def read(self, part: str, layer: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Keys and values of these blocks, [2, kv_heads, tokens, head_dim], of a layer_view of the pool.

        They may be changed, and last until the next read of the same part: one call reads as many parts as it needs at once.
        """
        as_stored = self._memory("as stored", (len(blocks), *layer.shape[1:]), layer.dtype)
        by_head = torch.index_select(layer, 0, blocks, out=as_stored).permute(1, 3, 0, 2, 4)
        return self._memory(part, by_head.shape, dtype).copy_(by_head).flatten(2, 3)

    def _memory(self, part: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = torch.Size(shape)
        if self._device.type != "cpu":
            return torch.empty(size, dtype=dtype, device=self._device)
        kept = self._kept.get((part, dtype))
        if kept is None or len(kept) < size.numel():
            kept = self._kept[part, dtype] = torch.empty(int(size.numel() * _SPARE), dtype=dtype)
        return kept[: size.numel()].view(size)

    @property
    def kept_bytes(self) -> int:
        """What it holds between reads."""
        return sum(memory.nbytes for memory in self._kept.values())
