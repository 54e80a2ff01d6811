"""The device's block pool: one tensor that holds the keys and values of every block."""

from collections.abc import Sequence
from typing import Any

import torch

from kvstore.block import BlockLayout
from kvstore.closing import Closing
from kvstore.pages import Pages

from .dtypes import torch_dtype
from .gather import Gather
from .team import Team
from .workspace import Workspace


class DevicePool(Closing):
    """`num_slots` places for one block each, plus a scratch slot that dummy rows write to.

    Block-major: the tensor is [num_slots + 1, layers, 2, block_tokens, kv_heads, head_dim] (2: keys, then
    values; keys after rotary embedding), so that a block over all layers is one run of `block_bytes`
    bytes. The pool holds bytes and nothing else: who owns which slot is the slot table's business.

    On CUDA all memory is touched at construction; on the CPU its pages are the business of who gives them, and all but
    the scratch slot's are to be taken before a slot is given out, so that no step pays for page faults. Raises
    ValueError for fewer than one slot and whatever torch or the system raises where the memory is not there. Reads and
    writes may come from any thread; ordering them is the callers' business.
    """

    def __init__(
        self,
        layout: BlockLayout,
        num_slots: int,
        device: str | torch.device = "cpu",
        pages: Pages | None = None,
    ) -> None:
        """`pages`: where it lies on the CPU, of at least `num_slots` + 1 blocks; None takes as many, all of them."""
        if num_slots < 1:
            raise ValueError(f"a pool needs at least one slot, got {num_slots}")
        self.layout = layout
        self.num_slots = num_slots
        self.block_bytes = layout.block_bytes
        self._closed = False
        shape = (num_slots + 1, *layout.shape)
        dtype = torch_dtype(layout.dtype)
        if torch.device(device).type == "cpu":
            num_bytes = (num_slots + 1) * self.block_bytes
            if pages is None:
                pages = Pages(num_bytes)
                pages.take(0, num_bytes)
            self._blocks = torch.from_numpy(pages.bytes[:num_bytes]).view(dtype).view(shape)
        else:
            self._blocks = torch.zeros(shape, dtype=dtype, device=device)
        self.device = self._blocks.device  # with its number
        self.gather = Gather(self.device)
        """How the thread that computes reads blocks."""
        self.team = Team()
        """The threads that compute with it, on the CPU."""
        self.workspace = Workspace()
        """And where these keep what is on its way. Not the model's: two engines may compute with one model."""
        flat = self._blocks.view(num_slots + 1, -1).view(torch.uint8)
        # numpy on the CPU: its copies release the GIL and need no torch on the copying side.
        self._bytes: Any = flat.numpy() if self.device.type == "cpu" else flat

    @property
    def scratch(self) -> int:
        """The slot number that dummy rows write to; never given to a sequence."""
        return self.num_slots

    @property
    def blocks(self) -> torch.Tensor:
        """All of it, [num_slots + 1, layers, 2, block_tokens, kv_heads, head_dim]; writing to it writes to the pool."""
        assert not self._closed, "the pool is closed"
        return self._blocks

    @property
    def dtype(self) -> torch.dtype:
        return self._blocks.dtype

    @property
    def address(self) -> int:
        """Where the first slot begins, on the pool's device."""
        assert not self._closed, "the pool is closed"
        return self._blocks.data_ptr()

    @property
    def piece_slots(self) -> int:
        """The pool is one piece."""
        return self.num_slots

    def view(self, slot: int) -> Any:
        """The slot's bytes, a numpy array on the CPU, a tensor on CUDA: see `SlotMemory.view`. Not for the scratch slot."""
        assert not self._closed, "the pool is closed"
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} is outside 0 .. {self.num_slots - 1}")
        return self._bytes[slot]

    def layer_view(self, layer: int) -> torch.Tensor:
        """One layer of every slot, scratch included: [num_slots + 1, 2, block_tokens, kv_heads, head_dim].

        A view with the pool's strides; writing to it writes to the pool.
        """
        assert not self._closed, "the pool is closed"
        return self._blocks[:, layer]

    def copy(self, source: Sequence[int], destination: Sequence[int]) -> None:
        """Copy whole slots within the pool, as part of computing: on CUDA on the current stream. Takes no memory.

        No slot may be in both.
        """
        assert not self._closed, "the pool is closed"
        for fro, to in zip(source, destination, strict=True):
            self._blocks[to].copy_(self._blocks[fro])

    def check(self) -> None:
        """Raise AssertionError unless views and tensor agree in size and place."""
        expected = (self.num_slots + 1, self.block_bytes)
        assert tuple(self._bytes.shape) == expected, f"bytes are {tuple(self._bytes.shape)}, not {expected}"
        assert self._blocks.is_contiguous(), "a block must be one run of bytes"

    def close(self) -> None:
        """Give the memory back. Views handed out before keep it alive. Closing twice is safe."""
        self._closed = True
        self._bytes = None
        self._blocks = torch.empty(0)
        self.gather.close()
        self.team.close()
        self.workspace.clear()
