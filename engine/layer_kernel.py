"""A decoder layer of Llama's kind around its attention, for code that numba compiles: of engine/decoder_kernel.py.

Each of the two functions is a run of stages, and each stage so many tasks. Threads take tasks by number, and one of a stage begins when
all of the stage before are done: any number of threads can compute together, and come when they like. Numbers that are added up are
added by one thread, in an order that follows from the layer's sizes alone: a row's bits do not depend on what is computed beside it.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from .lane_products import FETCH_BYTES, dot_fetch, dot_one, dot_pairs_fetch, dot_pairs_one
from .lane_vectors import (
    REGISTER_BYTES,
    ROW_BYTES,
    ROWS,
    UNIT,
    WIDTH,
    everywhere,
    is_bfloat16,
    load,
    load_any,
    madd,
    next_number,
    silu,
    store,
)
from .lane_words import number, put
from .waiting import COMPILED, done, wait_for

GROUP: Final = 64
"""Rows of which a task computes the products: while they are computed, another task's weights come near."""

FEW: Final = 16
"""Rows of which a task normalises, or turns, the numbers."""

PROGRESS: Final = 5
"""Numbers of what threads know of each other: the next task, and how many are done of each stage."""


@njit(**COMPILED)
def _share(numbers: Any, epsilon: float, sums: Any) -> Any:
    """What a row is multiplied with to have a mean square of 1."""
    size, whole = numbers.size, numbers.size // WIDTH * WIDTH
    total = everywhere(np.float32(0))
    for at in range(0, whole, WIDTH):
        vector = load_any(numbers, numbers.ctypes.data + at * numbers.itemsize)
        total = madd(vector, vector, total)
    store(sums.ctypes.data, total)
    square = np.float32(0)
    for at in range(WIDTH):
        square += sums[0, at]
    for at in range(whole, size):
        square += number(numbers, at) * number(numbers, at)
    return np.float32(1) / np.sqrt(square / np.float32(size) + np.float32(epsilon))


@njit(**COMPILED)
def normalise(rows: Any, weights: Any, epsilon: float, begin: int, end: int, out: Any, sums: Any) -> None:
    """RMSNorm of rows. sums: scratch, [1, WIDTH] or more."""
    for row in range(begin, end):
        numbers, to = rows[row], out[row]
        by = _share(numbers, epsilon, sums)
        for at in range(numbers.size):
            put(to, at, number(numbers, at) * by * number(weights, at))


@njit(**COMPILED)
def _multiply(left: Any, row: int, num_rows: int, panel: int, num_steps: int, ahead: int, sums: Any) -> None:
    """So many rows of `left`, ROWS or one, by a panel of weights. ahead: weights that will be read next."""
    at = left.ctypes.data + row * left.strides[0]
    if is_bfloat16(left):
        if num_rows == ROWS:
            dot_pairs_fetch(at, left.strides[0], 4, panel, sums.ctypes.data, ahead, num_steps)
        else:
            dot_pairs_one(at, 0, 4, panel, sums.ctypes.data, 0, num_steps)
    elif num_rows == ROWS:
        dot_fetch(at, left.strides[0], 4, panel, sums.ctypes.data, ahead, num_steps)
    else:
        dot_one(at, 0, 4, panel, sums.ctypes.data, 0, num_steps)


@njit(**COMPILED)
def _ahead(weights: Any, panel: int, num_threads: int, coming: int) -> Any:
    """Where a thread's next panel lies; behind the last one where the weights do that are multiplied with next, `coming`."""
    panel += num_threads
    if panel < weights.shape[0]:
        return weights.ctypes.data + panel * weights.strides[0]
    return coming + (panel - weights.shape[0]) * weights.strides[0]


@njit(**COMPILED)
def _product(
    left: Any, rows: int, weights: Any, bias: Any, task: int, ahead: Any, base: Any, out: Any, sums: Any
) -> None:
    """Rows of a group by a panel of weights, to its columns of `out`: with the bias, if there is one, and with `base`, if there is one.

    weights: [panels, steps, UNIT] of float32, or [panels, steps, 2 * UNIT] of bfloat16 by twos.   ahead: of `_ahead`, how many
    threads there are and what comes.
    """
    num_groups = -(-rows // GROUP)
    column, group = divmod(task, num_groups)
    panel = weights.ctypes.data + column * weights.strides[0]
    near = _ahead(weights, column, ahead[0], ahead[1])
    first, end = column * UNIT, min(column * UNIT + UNIT, out.shape[1])
    row, last = group * GROUP, min(group * GROUP + GROUP, rows)
    while row < last:
        num_rows = ROWS if last - row >= ROWS else 1
        _multiply(left, row, num_rows, panel, weights.shape[1], near, sums)
        for i in range(num_rows):
            to, found = out[row + i], sums[i]
            if bias.size:
                for at in range(end - first):
                    found[at] += bias[first + at]
            if base.size:
                of_base = base[row + i]
                for at in range(end - first):
                    put(to, first + at, found[at] + number(of_base, first + at))
            else:
                for at in range(end - first):
                    put(to, first + at, found[at])
        row += num_rows
        near += weights.shape[1] * FETCH_BYTES


@njit(**COMPILED)
def _gated(left: Any, rows: int, weights: Any, bias: Any, task: int, ahead: Any, out: Any, sums: Any) -> None:
    """silu(gate) * up of a group's rows, for UNIT columns of `out`. weights: a panel of gates, one of ups, and so on; bias too."""
    num_groups = -(-rows // GROUP)
    column, group = divmod(task, num_groups)
    step = weights.strides[0]
    zero = everywhere(np.float32(0))
    gate = weights.ctypes.data + 2 * column * step
    near = _ahead(weights, 2 * column, 2 * ahead[0], ahead[1])
    first, end = column * UNIT, min(column * UNIT + UNIT, out.shape[1])
    row, last = group * GROUP, min(group * GROUP + GROUP, rows)
    while row < last:
        num_rows = ROWS if last - row >= ROWS else 1
        _multiply(left, row, num_rows, gate, weights.shape[1], near, sums)
        _multiply(left, row, num_rows, gate + step, weights.shape[1], near + step, sums[ROWS:])
        for i in range(num_rows):
            to, gates, ups = out[row + i], sums[i], sums[ROWS + i]
            if bias.size:
                for at in range(end - first):
                    gates[at] += bias[2 * first + at]
                    ups[at] += bias[2 * first + UNIT + at]
            for at in range(0, ROW_BYTES, REGISTER_BYTES):
                up = load(ups.ctypes.data + at)
                store(gates.ctypes.data + at, madd(silu(load(gates.ctypes.data + at)), up, zero))
            for at in range(end - first):
                put(to, first + at, gates[at])
        row += num_rows
        near += weights.shape[1] * FETCH_BYTES


@njit(**COMPILED)
def _turn(numbers: Any, by: Any, weights: Any, cos: Any, sin: Any, out: Any) -> None:
    """Rotary embedding of a head's numbers, which are first multiplied by `by` and these weights, if there are any."""
    half = numbers.size // 2
    for at in range(half):
        first, second = numbers[at], numbers[half + at]
        if weights.size:
            first = first * by * number(weights, at)
            second = second * by * number(weights, half + at)
        put(out, at, first * number(cos, at) - second * number(sin, at))
        put(out, half + at, second * number(cos, half + at) + first * number(sin, half + at))


@njit(**COMPILED)
def _turn_rows(
    begin: int,
    qkv: Any,
    of_query: Any,
    of_key: Any,
    epsilon: float,
    cos: Any,
    sin: Any,
    query: Any,
    kv: Any,
    sums: Any,
) -> None:
    """Queries and keys of FEW rows from `begin` on, turned, and their values, to where they belong."""
    num_heads, dim = query.shape[1], query.shape[2]
    kv_heads = kv.shape[2]
    for row in range(begin, min(begin + FEW, qkv.shape[0])):
        for head in range(num_heads + kv_heads):
            numbers = qkv[row, head * dim : head * dim + dim]
            weights = of_query if head < num_heads else of_key
            by = _share(numbers, epsilon, sums) if weights.size else np.float32(1)
            to = query[row, head] if head < num_heads else kv[0, row, head - num_heads]
            _turn(numbers, by, weights, cos[row], sin[row], to)
        values = qkv[row, (num_heads + kv_heads) * dim :]
        for head in range(kv_heads):
            to = kv[1, row, head]
            for at in range(dim):
                put(to, at, values[head * dim + at])


@njit(**COMPILED)
def _write(row: int, kv: Any, layer: Any, slot: int, offset: int) -> None:
    """A row's keys and values to their place in a layer of the pool, in the dtype in which it keeps them."""
    for half in range(2):
        numbers, to = kv[half, row].ravel(), layer[slot, half, offset]
        for head in range(to.shape[0]):
            of_head = to[head]
            for at in range(to.shape[1]):
                put(of_head, at, number(numbers, head * to.shape[1] + at))


@njit(**COMPILED)
def before(
    x: Any,
    norm: Any,
    weights: Any,
    bias: Any,
    of_heads: Any,
    epsilon: float,
    turns: Any,
    scratch: Any,
    query: Any,
    kv: Any,
    places: Any,
    ahead: Any,
    progress: Any,
) -> None:
    """What comes before attention; any number of threads may compute it together, each by a call with the same arguments.

    Numbers are float32, or bfloat16 as uint16 words, unless another type is said.   x: [rows, hidden].   norm: weights of the norm,
    [hidden].   weights, bias: of queries, keys and values, as `_product` has them; bias float32.   of_heads: weights of the norms of
    queries and of keys, [2, dim], or none.   turns: cosines and sines of the turns, [rows, dim].   scratch: like x, and float32
    [rows, all heads * dim].   query: [rows, heads, dim], and kv: [2, rows, kv_heads, dim], are what is made.   places: where keys
    and values are to be written as well: whether they are, a layer of the pool, and each row's slot and token there.
    ahead: of `_product`.   progress: int64 [PROGRESS], 0 before the first call.
    """
    sums = np.empty((ROWS, UNIT), np.float32)
    none = np.empty((0, 0), np.float32)
    normal, qkv = scratch
    writes, layer, slots, offsets = places
    rows = x.shape[0]
    few, products = -(-rows // FEW), weights.shape[0] * -(-rows // GROUP)
    while True:
        task = next_number(progress.ctypes.data)
        if task < few:
            normalise(x, norm, epsilon, task * FEW, min(task * FEW + FEW, rows), normal, sums)
            done(progress, 0)
        elif task < few + products:
            wait_for(progress, 0, few)
            _product(normal, rows, weights, bias, task - few, ahead, none, qkv, sums)
            done(progress, 1)
        elif task < 2 * few + products:
            wait_for(progress, 1, products)
            begin = (task - few - products) * FEW
            _turn_rows(begin, qkv, of_heads[0], of_heads[1], epsilon, turns[0], turns[1], query, kv, sums)
            if writes:
                for row in range(begin, min(begin + FEW, rows)):
                    _write(row, kv, layer, slots[row], offsets[row])
            done(progress, 2)
        else:
            break
    wait_for(progress, 2, few)


@njit(**COMPILED)
def after(
    x: Any,
    attended: Any,
    to_hidden: Any,
    of_hidden: Any,
    norm: Any,
    epsilon: float,
    to_gates: Any,
    of_gates: Any,
    to_down: Any,
    of_down: Any,
    scratch: Any,
    num_threads: int,
    coming: int,
    progress: Any,
) -> None:
    """What comes after attention, together likewise: the sum with x, and the feed-forward, to x.

    x: [rows, hidden].   attended: [rows, heads * dim].   to_...: weights as `_product` and `_gated` have them, and of_...: float32, their
    bias or none.   scratch: float32 like x, like x, and [rows, intermediate] of what x has; or more rows.   coming: the weights that
    are multiplied with next.
    """
    sums = np.empty((2 * ROWS, UNIT), np.float32)
    between, normal, gates = scratch
    rows = x.shape[0]
    groups, few = -(-rows // GROUP), -(-rows // FEW)
    hidden, wide = to_hidden.shape[0] * groups, to_gates.shape[0] // 2 * groups
    gates_ahead = (num_threads, to_gates.ctypes.data)
    down_ahead = (num_threads, to_down.ctypes.data)
    next_ahead = (num_threads, coming)
    while True:
        task = next_number(progress.ctypes.data)
        if task < hidden:
            _product(attended, rows, to_hidden, of_hidden, task, gates_ahead, x, between, sums)
            done(progress, 0)
        elif task < hidden + few:
            wait_for(progress, 0, hidden)
            begin = (task - hidden) * FEW
            normalise(between, norm, epsilon, begin, min(begin + FEW, rows), normal, sums)
            done(progress, 1)
        elif task < hidden + few + wide:
            wait_for(progress, 1, few)
            _gated(normal, rows, to_gates, of_gates, task - hidden - few, down_ahead, gates, sums)
            done(progress, 2)
        elif task < 2 * hidden + few + wide:
            wait_for(progress, 2, wide)
            task -= hidden + few + wide
            _product(gates, rows, to_down, of_down, task, next_ahead, between, x, sums)
            done(progress, 3)
        else:
            break
    wait_for(progress, 3, hidden)
