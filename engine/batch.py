"""What one forward computes: chunks of sequences packed along one row axis, and the attention calls they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .calls import Calls, calls_by_window
from .chunk import Chunk
from .flashinfer import FlashInfer, FlashInferCall
from .gather import Gather
from .pool import DevicePool
from .sharing import Family, families

MIN_ROWS, MIN_ROWS_PER_THREAD = 16, 4
"""Deterministic mode: the bits of a matrix product's row depend on the number of rows below this many. On the CPU the
rows are dealt out to the threads, so it takes more of them for more threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """All that a forward needs besides weights and pool; built once, used by every layer.

    R rows: prefills first, then decodes, then dummy rows that write to the scratch slot.
    input_ids, positions: int64 [1, R].   slots, offsets: int64 [R], where each row's KV goes.
    calls: for each sliding window that layers of the model have, None for no window, the attention calls of such a
        layer: SDPA's, or the one that FlashInfer makes of all rows.
    gather: reads blocks of the pool that the batch was built for.
    logit_rows: int64, the rows whose logits are wanted, in the order of the chunks; may be padded:
    only the first num_logits count.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    offsets: torch.Tensor
    calls: Mapping[int | None, Calls | FlashInferCall]
    gather: Gather
    logit_rows: torch.Tensor
    num_logits: int
    num_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows computed, dummy rows included."""
        return int(self.input_ids.shape[1])

    def check(self, pool: DevicePool) -> None:
        """Raise AssertionError unless every real row has a place of its own and exactly one attention call."""
        places = list(zip(self.slots.tolist(), self.offsets.tolist(), strict=True))[: self.num_tokens]
        assert len(set(places)) == self.num_tokens, "two rows write to the same place"
        assert all(slot < pool.scratch for slot, _ in places), "a real row writes to the scratch slot"
        assert all(slot == pool.scratch for slot in self.slots[self.num_tokens :].tolist()), (
            "a dummy row does not"
        )
        for calls in self.calls.values():
            if isinstance(calls, FlashInferCall):
                rows = calls.pages.rows.tolist()
                assert (rows[0], rows[-1]) == (0, self.num_tokens), "attention does not cover each row once"
                continue
            covered = [row for call in calls for row in range(call.rows.start, call.rows.stop)]
            assert covered == list(range(self.num_tokens)), "attention calls do not cover each row once"


def build_batch(
    chunks: Sequence[Chunk],
    pool: DevicePool,
    *,
    dtype: torch.dtype = torch.float32,
    deterministic: bool = False,
    windows: Sequence[int | None] = (None,),
    kernels: FlashInfer | None = None,
) -> Batch:
    """Pack chunks of different sequences into one batch for `pool`.

    dtype: of the computing. deterministic: pad as measured, so that a row's bits do not depend on what else is in
    the batch, nor on where its chunk starts and ends. windows: all that the model's layers have, in tokens; a token
    sees itself and the window - 1 before it. kernels: FlashInfer's for this pool and these windows, where attention is to
    be computed by them and not by SDPA; not in deterministic mode. Blocks until the small index tensors are on the pool's
    device. Raises AssertionError for a chunk that its slots do not cover, or no chunk at all.
    """
    assert chunks, "a batch needs at least one chunk"
    assert not (deterministic and kernels), "FlashInfer's bits depend on the batch"
    for chunk in chunks:
        _check_chunk(chunk, pool)
    prefills = [i for i, chunk in enumerate(chunks) if not chunk.decode]
    decodes = _decode_families(chunks, pool.layout.block_tokens, deterministic=deterministic)
    order = [*prefills, *(i for family in decodes for i in family.members)]
    packed = [chunks[i] for i in order]
    ends = np.cumsum([len(chunk.tokens) for chunk in packed])
    last_row = dict(zip(order, ends - 1, strict=True))
    wanted = [int(last_row[i]) for i, chunk in enumerate(chunks) if chunk.wants_logits]
    num_tokens = int(ends[-1])
    min_rows = _min_rows(pool.device) if deterministic else 0
    num_rows = max(num_tokens, min_rows)
    padding = max(0, min_rows - len(wanted)) if wanted else 0
    rows = _row_arrays(packed, pool, num_rows)
    device = pool.device
    return Batch(
        input_ids=torch.from_numpy(rows[0]).to(device)[None],
        positions=torch.from_numpy(rows[1]).to(device)[None],
        slots=torch.from_numpy(rows[2]).to(device),
        offsets=torch.from_numpy(rows[3]).to(device),
        calls=kernels.calls(packed)
        if kernels is not None
        else calls_by_window(
            chunks, prefills, decodes, windows, pool=pool, dtype=dtype, deterministic=deterministic
        ),
        gather=pool.gather,
        logit_rows=torch.tensor(wanted + wanted[:1] * padding, dtype=torch.int64, device=device),
        num_logits=len(wanted),
        num_tokens=num_tokens,
    )


def _min_rows(device: torch.device) -> int:
    return max(MIN_ROWS, MIN_ROWS_PER_THREAD * torch.get_num_threads()) if device.type == "cpu" else MIN_ROWS


def _check_chunk(chunk: Chunk, pool: DevicePool) -> None:
    needed = -(-chunk.end // pool.layout.block_tokens)
    assert len(chunk.tokens) >= 1, "a chunk needs at least one token"
    assert chunk.start >= 0, f"a chunk cannot start at {chunk.start}"
    assert len(chunk.slots) >= needed, (
        f"{chunk.end} tokens need {needed} slots, the chunk has {len(chunk.slots)}"
    )
    assert not chunk.decode or len(chunk.tokens) == 1, f"a decode is one token, not {len(chunk.tokens)}"


def _decode_families(chunks: Sequence[Chunk], block_tokens: int, *, deterministic: bool) -> list[Family]:
    """The decodes by the blocks that they share. In deterministic mode each is alone."""
    decodes = [i for i, chunk in enumerate(chunks) if chunk.decode]
    if deterministic:
        return [Family((i,), 0) for i in decodes]
    found = families([chunks[i].slots[: chunks[i].start // block_tokens] for i in decodes])
    return [Family(tuple(decodes[i] for i in family.members), family.shared) for family in found]


def _row_arrays(packed: Sequence[Chunk], pool: DevicePool, num_rows: int) -> NDArray[np.int64]:
    """Token, position, slot and offset of each row, [4, num_rows]; what no chunk fills is a dummy row."""
    block_tokens = pool.layout.block_tokens
    rows = np.zeros((4, num_rows), dtype=np.int64)
    rows[2] = pool.scratch
    rows[3] = np.arange(num_rows) % block_tokens
    first = 0
    for chunk in packed:
        end = first + len(chunk.tokens)
        positions = np.arange(chunk.start, chunk.end)
        rows[0, first:end] = chunk.tokens
        rows[1, first:end] = positions
        rows[2, first:end] = chunk.slots[positions // block_tokens]
        rows[3, first:end] = positions % block_tokens
        first = end
    return rows
