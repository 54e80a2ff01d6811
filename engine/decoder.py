"""A model of Llama's kind on the CPU, computed by engine/decoder_kernel.py: from a batch to logits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .attention import PagedKV, attend_over
from .batch import Batch
from .lanes import LaneCall, scale, shares, words
from .layers import Seal, Weights
from .native import computing
from .pool import DevicePool

_NUM_PARTS = 3


class Decoder:
    """Computes with the weights of one model. Rows have the same bits in any batch, computed by any number of threads.

    ticks: int64 [4], of the processor's clock, by what they were spent on: what comes before attention, attention where the kernel
    computes it, what comes after it, and logits.   run_s: seconds in which they went by.
    """

    def __init__(self, hf: Any, weights: Weights) -> None:
        self._hf, self._turns, self._weights = hf, hf.model.rotary_emb, weights
        self._seal: Seal | None = None
        self.ticks = np.zeros(4, np.int64)
        self.run_s = 0.0

    def prepare(self, stored: torch.dtype) -> None:
        """Load the kernel for a pool of this dtype, or have it compiled, so that no request waits for that."""
        self._kernel(stored)

    def seal(self) -> None:
        """All layers are taken over: what is done to the model from now on has `forward` raise ValueError."""
        self._seal = Seal(self._hf)

    def _kernel(self, stored: torch.dtype) -> Callable[..., object]:
        return _computing(stored, words(self._weights.embedding[:0]).dtype, self._weights.embedding.dtype)

    def forward(
        self, batch: Batch, pool: DevicePool, before_layer: Callable[[int], None] | None
    ) -> torch.Tensor:
        """As `Model.forward`, and raises ValueError as `seal` says. Where attention is the kernel's in all of a batch it is one call, unless layers wait for something;
        elsewhere one call from each layer's attention to the next one's.
        """
        if self._seal is not None:
            self._seal.check()
        step = _Step(self, self._weights, self._turns, batch, pool)
        end, last = step.end, _NUM_PARTS * self._weights.num_layers
        kernel = self._kernel(pool.dtype)
        if not step.attends:
            waits = before_layer or (lambda _: None)
            for number in range(self._weights.num_layers):
                step.run(kernel, max(0, _NUM_PARTS * number - 1), _NUM_PARTS * number + 1)
                step.attend(number, waits)
            if end > last:
                step.run(kernel, last - 1, end)
        elif before_layer is None:
            step.run(kernel, 0, end)
        else:
            for number in range(self._weights.num_layers):
                before_layer(number)
                step.run(kernel, _NUM_PARTS * number, min(end, _NUM_PARTS * number + _NUM_PARTS))
            if end > last:
                step.run(kernel, last, end)
        return step.logits


def prepare(stored: torch.dtype, computed: torch.dtype) -> None:
    """Load the kernel, or have it compiled."""
    _computing(stored, words(torch.empty(0, dtype=computed)).dtype, computed)


def _computing(stored: torch.dtype, numbers: Any, computed: torch.dtype) -> Callable[..., object]:
    return computing(numbers, words(torch.empty(0, dtype=_kept(stored, computed))).dtype)


def _kept(stored: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """The dtype of the pool for the kernel, which does not touch a pool of another one."""
    return stored if stored in (torch.float32, torch.bfloat16) and computed != torch.bfloat16 else computed


class _Step:
    """One batch on its way.

    attends: whether the kernel computes its attention.   end: of the parts that there are to compute.   logits: float32 [wanted rows,
    vocabulary].
    """

    def __init__(
        self, decoder: Decoder, weights: Weights, turns: Any, batch: Batch, pool: DevicePool
    ) -> None:
        self._decoder, self._weights, self._batch, self._pool = decoder, weights, batch, pool
        rows, table = batch.num_tokens, weights.embedding
        _check_pool(pool, batch, weights)
        x = pool.workspace.take("x", rows, table.shape[1], dtype=table.dtype)
        torch.index_select(table, 0, batch.input_ids[0, :rows], out=x)
        cos, sin = self._checked(turns(x[None], batch.positions[:, :rows]))
        wanted = batch.logit_rows[: batch.num_logits].numpy()
        self.logits = torch.empty(len(wanted), len(table))
        scratch = self._scratch(x, len(wanted))
        calls = _lane_calls(batch, weights.windows)
        self.attends = calls is not None
        num_parts = _NUM_PARTS * weights.num_layers + 1
        # without logits all that the last layer is for is its keys and values
        self.end = num_parts if len(wanted) else num_parts - _NUM_PARTS
        most_calls = 0
        table_of_calls = _no_calls(weights.num_layers)
        if calls is not None:
            table_of_calls = _table(calls, wanted, weights)
            most_calls = table_of_calls[0].shape[1]
        self._progress_shape = (num_parts + 2, max(5, 2 * most_calls))
        self._given = (
            torch.get_num_threads(),
            words(x),
            weights.arrays,
            weights.epsilon,
            (cos, sin),
            scratch,
            (
                self.attends,
                _blocks(pool, table.dtype, weights.num_layers),
                batch.slots.numpy(),
                batch.offsets.numpy(),
            ),
            (*table_of_calls, scale(weights.scaling, weights.dim)),
            wanted,
            self.logits.numpy(),
            decoder.ticks,
        )

    def _checked(self, turns: tuple[torch.Tensor, torch.Tensor]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cosines and sines, of which the kernel would read what is not there if they were of another shape."""
        shape, dtype = (1, self._batch.num_tokens, self._weights.dim), self._weights.embedding.dtype
        for one in turns:
            if one.shape != shape or one.dtype != dtype:
                raise ValueError(
                    f"heads of {shape[2]} numbers cannot be turned by {one.dtype} {list(one.shape)}"
                )
        cos, sin = turns
        return words(cos[0]), words(sin[0])

    def _scratch(self, x: torch.Tensor, num_wanted: int) -> tuple[NDArray[Any], ...]:
        """What is on its way, as the kernel has it."""
        weights, (rows, hidden) = self._weights, x.shape
        num_heads = weights.heads + 2 * weights.kv_heads

        def take(name: str, *shape: int, dtype: torch.dtype = x.dtype) -> torch.Tensor:
            return self._pool.workspace.take(name, *shape, dtype=dtype)

        self._query = take("query", rows, weights.heads, weights.dim)
        self._kv = take("kv", 2, rows, weights.kv_heads, weights.dim)
        self._attended = take("attended", rows, weights.heads * weights.dim)
        return (
            words(take("normal", rows, hidden)),
            words(take("sums", rows, num_heads * weights.dim, dtype=torch.float32)),
            words(self._query),
            words(self._kv),
            words(self._attended),
            words(self._attended.view(self._query.shape)),
            words(take("between", rows, hidden, dtype=torch.float32)),
            words(take("gates", rows, weights.width)),
            words(take("last", num_wanted, hidden)),
            words(take("last attended", num_wanted, weights.heads * weights.dim)),
        )

    def run(self, kernel: Callable[..., object], first: int, end: int) -> None:
        """Some of the parts."""
        began_s = time.perf_counter()
        self._pool.team.run(kernel, (first, end), *self._given, np.zeros(self._progress_shape, np.int64))
        self._decoder.run_s += time.perf_counter() - began_s

    def attend(self, number: int, before_layer: Callable[[int], None]) -> None:
        """A layer's attention, where it is not the kernel's alone."""
        query, key, value = (rows.transpose(0, 1)[None] for rows in (self._query, *self._kv))
        weights, paged = self._weights, PagedKV(self._batch, self._pool, before_layer)
        found = attend_over(number, query, key, value, paged, weights.windows[number], weights.scaling)
        self._attended.copy_(found.reshape(self._attended.shape))


def _check_pool(pool: DevicePool, batch: Batch, weights: Weights) -> None:
    """Raise ValueError for a pool in which the kernel would write what it has no room for."""
    _, layers, _, _, *heads = pool.blocks.shape
    if (layers, *heads) != (weights.num_layers, weights.kv_heads, weights.dim):
        raise ValueError(
            f"a pool of {layers} layers with heads {heads} is not one for {weights.num_layers} layers with heads "
            f"{[weights.kv_heads, weights.dim]}"
        )
    if (last := int(batch.slots.numpy().max())) > pool.scratch:
        raise ValueError(f"a row is to go to slot {last} of a pool of {pool.num_slots}")


def _blocks(pool: DevicePool, computed: torch.dtype, num_layers: int) -> NDArray[Any]:
    if _kept(pool.dtype, computed) != pool.dtype:
        return words(torch.empty(0, num_layers, 2, 1, 1, 1, dtype=computed))
    return words(pool.blocks)


def _lane_calls(batch: Batch, windows: Sequence[int | None]) -> dict[int | None, list[LaneCall]] | None:
    """A batch's attention by window, if all of it is the kernel's."""
    found: dict[int | None, list[LaneCall]] = {}
    for window in dict.fromkeys(windows):
        calls = batch.calls[window]
        if not isinstance(calls, tuple) or not all(isinstance(call, LaneCall) for call in calls):
            return None
        found[window] = [call for call in calls if isinstance(call, LaneCall)]
    return found


def _rows_of(call: LaneCall, wanted: NDArray[np.int64]) -> LaneCall | None:
    """The call for the rows from its first wanted row to its last one, of which there may be none."""
    inside = wanted[(wanted >= call.rows.start) & (wanted < call.rows.stop)]
    if not len(inside):
        return None
    rows = slice(int(inside.min()), int(inside.max()) + 1)
    return replace(call, rows=rows, start=call.start + rows.start - call.rows.start)


_Table = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _no_calls(num_layers: int) -> _Table:
    return np.zeros((1, 0, 9), np.int64), np.zeros(0, np.int64), np.zeros(num_layers, np.int64)


def _table(
    by_window: dict[int | None, list[LaneCall]], wanted: NDArray[np.int64], weights: Weights
) -> _Table:
    """Calls, slots and kinds as the kernel has them. Of the last layer only the wanted rows attend."""
    kinds = {window: number for number, window in enumerate(by_window)}
    of_layers = np.array([kinds[window] for window in weights.windows])
    of_layers[-1] = len(kinds)
    last = [seen for call in by_window[weights.windows[-1]] if (seen := _rows_of(call, wanted)) is not None]
    lists = [*by_window.values(), last]
    table = np.zeros((len(lists), max(map(len, lists)), 9), np.int64)
    table[:, :, -2:] = 1  # of those that there are not
    slots: list[NDArray[np.int64]] = []
    num_slots = 0
    for kind, calls in enumerate(lists):
        for number, call in enumerate(calls):
            num_lanes = (call.rows.stop - call.rows.start) * weights.heads // weights.kv_heads
            table[kind, number] = (
                call.rows.start,
                call.rows.stop,
                num_slots,
                num_slots + len(call.slots),
                call.first,
                call.start,
                call.seen_tokens,
                *shares(num_lanes, weights.kv_heads, weights.dim),
            )
            slots.append(call.slots)
            num_slots += len(call.slots)
    return table, np.concatenate(slots), of_layers
