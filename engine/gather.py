"""Blocks of one layer, side by side and in the dtype of the computing, as attention reads them."""

from collections.abc import Sequence

import torch

KEPT_BYTES = 32 << 20
"""Most memory that is kept for one of three things: blocks as they are stored, a call's own, and those that replies share. No
setting counts it, so it may not be much. Enough for 21,000 tokens of the demo's model, and for 4,096 of one with 8 KV heads of
128 numbers, in float32."""

_SPARE = 1.25
"""How much of what is needed is asked for: a reply that grows with each step must not need other memory each time."""


class Gather:
    """Copies a layer's blocks out of the pool, on the CPU into memory that it keeps from layer to layer and step to step.

    What malloc returned to the system after each layer would be taken anew for the next one, page by page. A read that needs
    more than KEPT_BYTES has memory of its own nevertheless, and so has every read on CUDA, where torch's allocator keeps what
    is freed. For the thread that computes alone.
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

    def close(self) -> None:
        """Give back what is kept. The next read would take it anew."""
        self._kept.clear()

    def _memory(self, part: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = torch.Size(shape)
        most = KEPT_BYTES // dtype.itemsize
        if self._device.type != "cpu" or size.numel() > most:
            return torch.empty(size, dtype=dtype, device=self._device)
        key = (part, dtype)
        if key not in self._kept or len(self._kept[key]) < size.numel():
            self._kept.pop(key, None)  # first, so that the old and the new are not there together
            self._kept[key] = torch.empty(min(int(size.numel() * _SPARE), most), dtype=dtype)
        return self._kept[key][: size.numel()].view(size)
