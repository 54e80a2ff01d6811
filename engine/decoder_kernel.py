"""A decoder of Llama's kind from its first layer's input to logits, compiled for this processor: the kernel of engine/decoder.py.

It is one call for all layers, or for parts of them: of layer n part 3 n is what comes before attention, part 3 n + 1 attention over the
pool's blocks, and part 3 n + 2 what comes after it; the part behind the last layer's is the logits.
"""

from typing import Any, Final

from numba import njit

from .head_kernel import finish
from .lane_kernel import attend, num_takes
from .lane_signals import next_number, ticks
from .layer_kernel import after, before, copy
from .waiting import INSIDE, done, wait_for

ROW, END_ROW, SLOT, END_SLOT, FIRST, START, WINDOW, TOGETHER, WIDE = range(9)
"""Of an attention call: its rows in the batch, its slots in the list of all, and what engine/lane_kernel.py's `attend` has of it."""

BEFORE, ATTENTION, AFTER = range(3)
"""Parts of a layer, in this order."""

HEAD: Final = 3
"""What is behind the layers, in `ticks` beside their parts."""


@njit(**INSIDE)
def _attend(query: Any, layer: Any, slots: Any, calls: Any, scale: float, out: Any, progress: Any) -> None:
    """A layer's calls."""
    group = query.shape[1] // layer.shape[3]
    for number in range(calls.shape[0]):
        call = calls[number]
        first, end = call[ROW], call[END_ROW]
        attend(
            query[first:end],
            layer,
            slots[call[SLOT] : call[END_SLOT]],
            (call[FIRST], call[START] + end - first),
            call[START],
            call[WINDOW],
            scale,
            call[TOGETHER],
            call[WIDE],
            out[first:end],
            progress[2 * number : 2 * number + 2],
        )
    for number in range(calls.shape[0]):
        call = calls[number]
        num_rows = call[END_ROW] - call[ROW]
        takes = num_takes(num_rows, group, layer.shape[3], call[TOGETHER], call[WIDE])
        wait_for(progress[2 * number : 2 * number + 2], 0, takes)


@njit(**INSIDE)
def _take_rows(rows: Any, x: Any, kept: Any) -> None:
    """These rows of one array, to another."""
    size = x.shape[1]
    for number in range(rows.shape[0]):
        fro = x.ctypes.data + rows[number] * x.strides[0]
        copy(x, fro, size, kept, kept.ctypes.data + number * kept.strides[0])


def _compute(
    parts: Any,
    num_threads: int,
    x: Any,
    weights: Any,
    epsilon: float,
    turns: Any,
    scratch: Any,
    paged: Any,
    calls: Any,
    wanted: Any,
    logits: Any,
    spent: Any,
    progress: Any,
) -> None:
    """Parts of a forward; any number of threads may compute them together, each by a call with the same arguments.

    Numbers are float32, or bfloat16 as uint16 words, unless another type is said.

    parts: the first and the end of these.   num_threads: that are expected.   x: [rows, hidden], the input of a layer, becomes its output.
    weights: `Weights.arrays` of engine/layers.py.   turns: cosines and sines, [rows, dim].   scratch: what is on its way, of engine/decoder.py's `_scratch`.
    paged: whether keys and values are to be written to the pool, which attention's parts need; the pool,
    [slots, layers, 2, block_tokens, kv_heads, dim] of float32 or words; and int64 each row's slot and token there.
    calls: int64 [kinds, calls, 9] as above, int64 all their slots, int64 [layers] of which kind each layer's are, and the scale of scores.
    wanted: int64, the rows whose logits are: of the last layer only their attention, and what comes after, is computed.
    logits: float32 [wanted rows, vocabulary].   spent: int64 [4], ticks of the clock by part, which the first thread adds to.
    progress: int64 [parts and two more, PROGRESS or twice the calls], 0 before the first call.
    """
    (
        norms,
        to_qkv,
        of_qkv,
        of_heads,
        to_hidden,
        of_hidden,
        to_gates,
        of_gates,
        to_down,
        of_down,
        last_norm,
        head,
    ) = weights
    normal, qkv, query, kv, attended, by_head, between, gates, last, last_attended = scratch
    writes, pool, slots, offsets = paged
    table, all_slots, kinds, scale = calls
    num_layers = norms.shape[0]
    is_first = next_number(progress[-1].ctypes.data) == 0
    for part in range(parts[0], parts[1]):
        began, steps = ticks(), progress[part]
        number, kind = divmod(part, 3)
        if number == num_layers:
            kind = HEAD
            finish(last, last_norm, epsilon, head, normal, logits, steps)
        elif kind == BEFORE:
            places = (writes, pool[:, number], slots, offsets)
            before(
                x,
                norms[number, 0],
                to_qkv[number],
                of_qkv[number],
                of_heads[number],
                epsilon,
                turns,
                (normal, qkv),
                query,
                kv,
                places,
                (num_threads, to_hidden[number].ctypes.data),
                steps,
            )
        elif kind == ATTENTION:
            _attend(query, pool[:, number], all_slots, table[kinds[number]], scale, by_head, steps)
        else:
            rows, of_rows, coming = x, attended, head.ctypes.data
            if number == num_layers - 1:
                if next_number(progress[-2].ctypes.data) == 0:
                    _take_rows(wanted, x, last)
                    _take_rows(wanted, attended, last_attended)
                    done(progress[-2], 0)
                wait_for(progress[-2], 0, 1)
                rows, of_rows = last, last_attended
            else:
                coming = to_qkv[number + 1].ctypes.data
            after(
                rows,
                of_rows,
                to_hidden[number],
                of_hidden[number],
                norms[number, 1],
                epsilon,
                to_gates[number],
                of_gates[number],
                to_down[number],
                of_down[number],
                (between, normal, gates),
                num_threads,
                coming,
                steps,
            )
        if is_first:
            spent[kind] += ticks() - began
