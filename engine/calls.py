"""Which attention calls a batch needs: tiles of prefills, and replies that are read together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .chunk import Chunk
from .config import TILE_TOKENS
from .lanes import LaneCall, has_lanes
from .pool import DevicePool
from .sharing import Family

QUERY_MULTIPLE = 32
"""Deterministic mode: query rows of an attention call are padded to a multiple of this."""

MASK_MULTIPLE = 8
"""Values that 16 bytes hold, of the smallest dtype: what torch asks the strides of a mask to be a multiple of."""

GATHER_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Most keys and values that several decodes gather for one attention call of one layer. On the CPU more than this is
slower: it leaves the caches. The figure for CUDA is a guess."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Query rows of a chunk that share one attention call: none of them sees a token outside `kv`.

    rows: the tile's rows in the batch.
    kv: the gathered tokens that the call takes; a row's bits depend on how many. It ends with what the last row sees,
        in deterministic mode at the next multiple of TILE_TOKENS, wherever the chunk or the prompt ends. It begins
        with the block that the first row of a tile that begins at such a multiple sees first.
    mask: [padded rows, tokens of kv], 0 where a row sees a token, -inf where not; the rows past the tile's own are
        padding, appended as zero rows, and see something.
    """

    rows: slice
    kv: slice
    mask: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillCall:
    """Attention of one chunk by SDPA: its blocks are gathered once, its tiles attend one after the other.

    blocks: int64 [B], the slots to gather, from the first that a tile's window reaches; what the last tile needs
        beyond the chunk's own is the scratch slot.
    num_tokens: tokens gathered up to the chunk's end. What a tile takes beyond them is zeroed in the gathered copy:
        the slots hold whatever was there before, and not even the mask makes a NaN harmless.

        tokens   0 ........... start .... | ........ | .. end . |
                 |   cached    |  tile 0  |  tile 1  | tile 2   |
        tile 1 attends over [0, its own end): what lies above the diagonal costs at most a tile's triangle. Tile 2
        attends over [0, end), in deterministic mode over [0, where it would end in a longer prompt). With a window
        each tile leaves out the blocks that none of its rows sees.
    """

    rows: slice
    blocks: torch.Tensor
    num_tokens: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCall:
    """Attention of N sequences with one row each, padded to the longest.

    rows: their rows in the batch.
    shared: int64 [S], the slots that all of them see whole and first; gathered once for all. Empty with a window.
    blocks: int64 [N * B], the slots that each sequence's window reaches besides, padded with the scratch slot.
    kv: which of a sequence's B * block_tokens gathered tokens it attends over: all, or exactly those that it sees
        where N is 1.
    mask: [N, 1, 1, B * block_tokens], or None where N is 1.
    stale: int64, indices into [N * B * block_tokens] of tokens in a sequence's last block that are not its own. They
        hold whatever the slot held before; zeroed in the gathered copy, as not even the mask makes a NaN harmless.
    """

    rows: slice
    shared: torch.Tensor
    blocks: torch.Tensor
    kv: slice
    mask: torch.Tensor | None
    stale: torch.Tensor | None


Calls = tuple[LaneCall | PrefillCall | DecodeCall, ...]


def _tile_end(position: int) -> int:
    """End of the tile that holds the token before `position`."""
    return -(-position // TILE_TOKENS) * TILE_TOKENS


def _tile_begin(position: int) -> int:
    """Begin of the tile that holds the token at `position`."""
    return position // TILE_TOKENS * TILE_TOKENS


def _additive(unseen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
    return mask.masked_fill_(unseen, float("-inf"))


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """A copy of a mask, [rows, tokens], in which every row begins at a multiple of 16 bytes.

    torch's memory-efficient kernel for CUDA reads so many at once. Where the strides do not allow that torch pads the mask
    itself; where only the first byte is off it looks at nothing, and the kernel dies of a misaligned address.
    """
    rows, width = mask.shape
    padded = -(-width // MASK_MULTIPLE) * MASK_MULTIPLE
    return torch.empty(rows, padded, dtype=mask.dtype, device=mask.device)[:, :width].copy_(mask)


def _staircase(width: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One mask of which every tile's mask is a view, [TILE_TOKENS + QUERY_MULTIPLE, width].

    What a row sees depends only on the distance to its tile's end, so all tiles share the lower right corner:

        0 0 0 0 0 - - -      a call whose tokens end with the tile's takes as many columns from the right,
        - 0 0 0 0 0 - -      the token n before its end the row TILE_TOKENS - n (here with a window of 5),
        - - 0 0 0 0 0 -      and padding the rows that follow, which see what the tile's last row does: a row that
        - - - 0 0 0 0 0      sees nothing would be NaN.
        - - - 0 0 0 0 0
    """
    rows = torch.arange(TILE_TOKENS + QUERY_MULTIPLE, device=device)[:, None].clamp(max=TILE_TOKENS - 1)
    columns = torch.arange(width, device=device)[None] - (width - TILE_TOKENS)
    unseen = columns > rows
    if window is not None:
        unseen |= columns <= rows - window
    return _additive(unseen, dtype)


def calls_by_window(
    chunks: Sequence[Chunk],
    prefills: Sequence[int],
    decodes: Sequence[Family],
    windows: Sequence[int | None],
    *,
    pool: DevicePool,
    dtype: torch.dtype,
    deterministic: bool,
) -> dict[int | None, Calls]:
    """The attention calls of these chunks, prefills first, for each window. Windows that hide nothing share theirs."""
    longest = max(chunk.end for chunk in chunks)
    hiding = {window: window if window is not None and window < longest else None for window in windows}
    calls = {
        window: _CallPlan(
            chunks=chunks, pool=pool, dtype=dtype, deterministic=deterministic, window=window
        ).all(prefills, decodes)
        for window in set(hiding.values())
    }
    return {window: calls[hides] for window, hides in hiding.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class _CallPlan:
    """Decides which attention calls a layer makes for a batch, and builds their masks.

    window: the layer's, None if it hides nothing in this batch.
    """

    chunks: Sequence[Chunk]
    pool: DevicePool
    dtype: torch.dtype
    deterministic: bool
    window: int | None

    def all(self, prefills: Sequence[int], decodes: Sequence[Family]) -> Calls:
        pool = self.pool
        calls: list[LaneCall | PrefillCall | DecodeCall] = []
        row = 0
        has = has_lanes(pool.device, pool.dtype, self.dtype, pool.layout.head_dim)
        staircase = None if has or not prefills else self._staircase(prefills)
        for i in prefills:
            chunk = self.chunks[i]
            calls.append(
                self._lanes(chunk, row) if staircase is None else self._prefill(chunk, row, staircase)
            )
            row += len(chunk.tokens)
        for family in decodes:
            calls += self._decodes(family, row)
            row += len(family.members)
        return tuple(calls)

    def _first_seen(self, position: int) -> int:
        """The first token that the token at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def _first_block(self, position: int) -> int:
        """The block in which that is."""
        return self._first_seen(position) // self.pool.layout.block_tokens

    def _kv_begin(self, tile_begin: int) -> int:
        """The first token of such a tile's call: of a block."""
        return self._first_block(tile_begin) * self.pool.layout.block_tokens

    def _lanes(self, chunk: Chunk, first_row: int) -> LaneCall:
        first_block = self._first_block(chunk.start)
        return LaneCall(
            rows=slice(first_row, first_row + len(chunk.tokens)),
            slots=self._blocks(chunk, first_block, chunk.end),
            first=first_block * self.pool.layout.block_tokens,
            start=chunk.start,
            window=self.window,
            team=self.pool.team,
        )

    def _staircase(self, prefills: Sequence[int]) -> torch.Tensor:
        """As wide as the widest tile's call."""
        widths = (
            first + TILE_TOKENS - self._kv_begin(first)
            for i in prefills
            for first in range(_tile_begin(self.chunks[i].start), self.chunks[i].end, TILE_TOKENS)
        )
        return _staircase(max(widths), self.window, self.dtype, self.pool.device)

    def _prefill(self, chunk: Chunk, first_row: int, staircase: torch.Tensor) -> PrefillCall:
        # Cut at absolute positions: then a row's call has the same KV length wherever its chunk started.
        edges = [chunk.start, *range(_tile_end(chunk.start + 1), chunk.end, TILE_TOKENS)]
        first_block = self._first_block(_tile_begin(chunk.start))
        gathered = first_block * self.pool.layout.block_tokens
        tiles = []
        kv_end = 0
        for begin, end in zip(edges, [*edges[1:], chunk.end], strict=True):
            # And wherever it ends: a later prompt that goes on from here must find what it would have computed.
            kv_end = _tile_end(end) if self.deterministic else end
            tile_begin = _tile_begin(begin)
            kv_begin = self._kv_begin(tile_begin)
            first = TILE_TOKENS - (kv_end - begin)
            mask = staircase[first : first + self._padded(end - begin), kv_begin - kv_end :]
            tile = Tile(
                rows=slice(first_row + begin - chunk.start, first_row + end - chunk.start),
                kv=slice(kv_begin - gathered, kv_end - gathered),
                mask=mask if self.pool.device.type == "cpu" else _aligned(mask),
            )
            tiles.append(tile)
        return PrefillCall(
            rows=slice(first_row, first_row + len(chunk.tokens)),
            blocks=self._tensor(self._blocks(chunk, first_block, kv_end)),
            num_tokens=chunk.end - gathered,
            tiles=tuple(tiles),
        )

    def _padded(self, num_rows: int) -> int:
        return -(-num_rows // QUERY_MULTIPLE) * QUERY_MULTIPLE if self.deterministic else num_rows

    def _decodes(self, family: Family, first_row: int) -> list[DecodeCall]:
        """Cut a family, which comes longest first, into calls that waste less than half of what they gather."""
        chunks = [self.chunks[i] for i in family.members]
        seen = [self._num_blocks(chunk) for chunk in chunks]
        shared = family.shared if self.window is None and 2 * family.shared >= seen[0] else 0
        own = [num_blocks - shared for num_blocks in seen]
        calls: list[DecodeCall] = []
        first = 0
        while first < len(chunks):
            most = max(1, self._most_gathered // own[first])
            end = first + 1
            while end < len(chunks) and end - first < most and 2 * own[end] + shared > own[first]:
                end += 1
            alone = end - first == 1
            calls.append(
                self._lone_decode(chunks[first], first_row + first)
                if alone
                else self._decode_group(chunks[first:end], shared, first_row + first)
            )
            first = end
        return calls

    def _num_blocks(self, chunk: Chunk) -> int:
        """How many blocks a decode's token sees."""
        return -(-chunk.end // self.pool.layout.block_tokens) - self._first_block(chunk.start)

    @property
    def _most_gathered(self) -> int:
        """Blocks that the decodes of one call may gather."""
        layout = self.pool.layout
        block_bytes = 2 * layout.block_tokens * layout.num_kv_heads * layout.head_dim * self.dtype.itemsize
        return GATHER_BYTES[self.pool.device.type] // block_bytes

    def _lone_decode(self, chunk: Chunk, row: int) -> DecodeCall:
        first_block = self._first_block(chunk.start)
        gathered = first_block * self.pool.layout.block_tokens
        return DecodeCall(
            rows=slice(row, row + 1),
            shared=self._tensor(np.empty(0, dtype=np.int64)),
            blocks=self._tensor(self._blocks(chunk, first_block, chunk.end)),
            kv=slice(self._first_seen(chunk.start) - gathered, chunk.end - gathered),
            mask=None,
            stale=None,
        )

    def _decode_group(self, chunks: Sequence[Chunk], shared: int, first_row: int) -> DecodeCall:
        block_tokens = self.pool.layout.block_tokens
        begins = [shared or self._first_block(chunk.start) for chunk in chunks]
        tables = [self._blocks(chunk, begin, chunk.end) for chunk, begin in zip(chunks, begins, strict=True)]
        num_blocks = max(map(len, tables))
        table = np.full((len(chunks), num_blocks), self.pool.scratch, dtype=np.int64)
        for row, slots in enumerate(tables):
            table[row, : len(slots)] = slots
        # positions of the gathered tokens, [N, B * block_tokens]
        positions = np.array(begins)[:, None] * block_tokens + np.arange(num_blocks * block_tokens)
        beyond = positions >= np.array([[chunk.end] for chunk in chunks])
        unseen = beyond | (positions < np.array([[self._first_seen(chunk.start)] for chunk in chunks]))
        in_own_block = np.repeat(table != self.pool.scratch, block_tokens, axis=1)
        return DecodeCall(
            rows=slice(first_row, first_row + len(chunks)),
            shared=self._tensor(chunks[0].slots[:shared].astype(np.int64)),
            blocks=self._tensor(table.reshape(-1)),
            kv=slice(0, num_blocks * block_tokens),
            mask=_additive(self._tensor(unseen), self.dtype)[:, None, None],
            stale=self._tensor(np.flatnonzero(beyond & in_own_block)),
        )

    def _blocks(self, chunk: Chunk, first: int, kv_end: int) -> NDArray[np.int64]:
        """The slots of the blocks from number `first` up to token `kv_end`.

        Those beyond the chunk's end are the scratch slot: the sequence may own slots there already, but a copy into
        them may be under way.
        """
        block_tokens = self.pool.layout.block_tokens
        used = -(-chunk.end // block_tokens)
        blocks = np.full(-(-kv_end // block_tokens) - first, self.pool.scratch, dtype=np.int64)
        blocks[: used - first] = chunk.slots[first:used]
        return blocks

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.pool.device)
