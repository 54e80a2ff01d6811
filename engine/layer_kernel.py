"""A decoder layer of Llama's kind around its attention, for code that numba compiles: of engine/decoder_kernel.py.

Each of the two functions is a run of stages, and each stage so many tasks. Threads take tasks by number, and one of a stage begins when
all of the stage before are done: any number of threads can compute together, and come when they like. Numbers that are added up are
added by one thread, in an order that follows from the layer's sizes alone: a row's bits do not depend on what is computed beside it.
"""

from typing import Any, Final

import numpy as np
from numba import njit, types

from kvstore.scratch import on_stack

from .lane_products import FETCH_BYTES, dot_fetch, dot_one, dot_pairs_fetch, dot_pairs_one
from .lane_signals import next_number
from .lane_vectors import (
    REGISTER_BYTES,
    ROW_BYTES,
    add,
    everywhere,
    is_bfloat16,
    load,
    load_any,
    madd,
    silu,
    store,
    store_any,
)
from .lane_words import number, number_at, put, put_at
from .native import ROWS, UNIT, WIDTH
from .waiting import INSIDE, done, wait_for

GROUP: Final = 64
"""Rows of which a task computes the products: while they are computed, another task's weights come near."""

FEW: Final = 16
"""Rows of which a task normalises, or turns, the numbers."""

PROGRESS: Final = 5
"""Numbers of what threads know of each other: the next task, and how many are done of each stage."""


# Rows are addresses where they are many: a view of an array costs as much as some steps of a product.


_sums: Final = on_stack(types.float32, ROWS, UNIT)
_two_sums: Final = on_stack(types.float32, 2 * ROWS, UNIT)
_none: Final = on_stack(types.float32, 0, 0)


@njit(**INSIDE)
def _row(numbers: Any, row: int) -> Any:
    """Where a row of an array begins, of two dimensions."""
    return numbers.ctypes.data + row * numbers.strides[0]


@njit(**INSIDE)
def _share(numbers: Any, at: int, size: int, epsilon: float, sums: Any) -> Any:
    """What `size` numbers, of an array from an address on, are multiplied with to have a mean square of 1."""
    whole = size // WIDTH * WIDTH
    total = everywhere(np.float32(0))
    for step in range(0, whole, WIDTH):
        vector = load_any(numbers, at + step * numbers.itemsize)
        total = madd(vector, vector, total)
    store(sums.ctypes.data, total)
    square = np.float32(0)
    for lane in range(WIDTH):
        square += sums[0, lane]
    for step in range(whole, size):
        one = number_at(numbers, at + step * numbers.itemsize)
        square += one * one
    return np.float32(1) / np.sqrt(square / np.float32(size) + np.float32(epsilon))


@njit(**INSIDE)
def normalise(rows: Any, weights: Any, epsilon: float, begin: int, end: int, out: Any, sums: Any) -> None:
    """RMSNorm of rows. sums: scratch, [1, WIDTH] or more."""
    size, of_weights, zero = rows.shape[1], weights.ctypes.data, everywhere(np.float32(0))
    whole = size // WIDTH * WIDTH
    for row in range(begin, end):
        fro, to = _row(rows, row), _row(out, row)
        by = _share(rows, fro, size, epsilon, sums)
        for at in range(0, whole, WIDTH):
            found = madd(load_any(rows, fro + at * rows.itemsize), everywhere(by), zero)
            found = madd(found, load_any(weights, of_weights + at * weights.itemsize), zero)
            store_any(out, to + at * out.itemsize, found)
        for at in range(whole, size):
            put(out, (row, at), number(rows, (row, at)) * by * number(weights, at))


@njit(**INSIDE)
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


@njit(**INSIDE)
def _ahead(weights: Any, panel: int, num_threads: int, coming: int) -> Any:
    """Where a thread's next panel lies; behind the last one where the weights do that are multiplied with next, `coming`."""
    panel += num_threads
    if panel < weights.shape[0]:
        return weights.ctypes.data + panel * weights.strides[0]
    return coming + (panel - weights.shape[0]) * weights.strides[0]


@njit(**INSIDE)
def _add(sums: Any, i: int, numbers: Any, at: int, num_columns: int) -> None:
    """So many numbers of an array, from an address on, to row i of a panel's sums."""
    to, whole = _row(sums, i), num_columns // WIDTH * WIDTH
    for column in range(0, whole, WIDTH):
        found = load_any(numbers, at + column * numbers.itemsize)
        store(to + column * 4, add(load(to + column * 4), found))
    for column in range(whole, num_columns):
        sums[i, column] += number_at(numbers, at + column * numbers.itemsize)


@njit(**INSIDE)
def _keep(sums: Any, i: int, out: Any, row: int, first: int, end: int) -> None:
    """Row i of a panel's sums as columns of a row of `out`."""
    fro, to, whole = _row(sums, i), _row(out, row) + first * out.itemsize, (end - first) // WIDTH * WIDTH
    for column in range(0, whole, WIDTH):
        store_any(out, to + column * out.itemsize, load(fro + column * 4))
    for column in range(whole, end - first):
        put(out, (row, first + column), sums[i, column])


@njit(**INSIDE)
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
            if bias.size:
                _add(sums, i, bias, bias.ctypes.data + first * 4, UNIT)
            if base.size:
                _add(sums, i, base, _row(base, row + i) + first * base.itemsize, end - first)
            _keep(sums, i, out, row + i, first, end)
        row += num_rows
        near += weights.shape[1] * FETCH_BYTES


@njit(**INSIDE)
def _gated(left: Any, rows: int, weights: Any, bias: Any, task: int, ahead: Any, out: Any, sums: Any) -> None:
    """silu(gate) * up of a group's rows, for UNIT columns of `out`. weights: a panel of gates, one of ups, and so on; bias too."""
    num_groups = -(-rows // GROUP)
    column, group = divmod(task, num_groups)
    step = weights.strides[0]
    zero = everywhere(np.float32(0))
    gate = weights.ctypes.data + 2 * column * step
    near = _ahead(weights, 2 * column, 2 * ahead[0], ahead[1])
    first, end = column * UNIT, min(column * UNIT + UNIT, out.shape[1])
    row, last, ups_of = group * GROUP, min(group * GROUP + GROUP, rows), sums[ROWS:]
    while row < last:
        num_rows = ROWS if last - row >= ROWS else 1
        _multiply(left, row, num_rows, gate, weights.shape[1], near, sums)
        _multiply(left, row, num_rows, gate + step, weights.shape[1], near + step, ups_of)
        for i in range(num_rows):
            if bias.size:
                of_gates = bias.ctypes.data + 2 * first * 4
                _add(sums, i, bias, of_gates, UNIT)
                _add(sums, ROWS + i, bias, of_gates + ROW_BYTES, UNIT)
            gates, ups = _row(sums, i), _row(sums, ROWS + i)
            for at in range(0, ROW_BYTES, REGISTER_BYTES):
                store(gates + at, madd(silu(load(gates + at)), load(ups + at), zero))
            _keep(sums, i, out, row + i, first, end)
        row += num_rows
        near += weights.shape[1] * FETCH_BYTES


@njit(**INSIDE)
def _turn(qkv: Any, at: int, by: Any, weights: Any, turns: Any, row: int, out: Any, to: int) -> None:
    """Rotary embedding of a head's numbers, from one address to another, which are first multiplied by `by` and these weights, if there are any."""
    cos, sin = turns
    dim, size, of = cos.shape[1], out.itemsize, weights.ctypes.data
    half, zero, less = dim // 2, everywhere(np.float32(0)), everywhere(np.float32(-1))
    of_cos, of_sin = _row(cos, row), _row(sin, row)
    whole = half // WIDTH * WIDTH
    for one in range(0, whole, WIDTH):
        other = half + one
        first, second = load(at + one * 4), load(at + other * 4)
        if weights.size:
            first = madd(madd(first, everywhere(by), zero), load_any(weights, of + one * size), zero)
            second = madd(madd(second, everywhere(by), zero), load_any(weights, of + other * size), zero)
        found = madd(madd(second, load_any(sin, of_sin + one * size), zero), less, zero)
        store_any(out, to + one * size, madd(first, load_any(cos, of_cos + one * size), found))
        found = madd(first, load_any(sin, of_sin + other * size), zero)
        store_any(out, to + other * size, madd(second, load_any(cos, of_cos + other * size), found))
    for one in range(whole, half):
        other = half + one
        before_it, behind_it = number_at(qkv, at + one * 4), number_at(qkv, at + other * 4)
        if weights.size:
            before_it = before_it * by * number(weights, one)
            behind_it = behind_it * by * number(weights, other)
        found = before_it * number(cos, (row, one)) - behind_it * number(sin, (row, one))
        put_at(out, to + one * size, found)
        found = behind_it * number(cos, (row, other)) + before_it * number(sin, (row, other))
        put_at(out, to + other * size, found)


@njit(**INSIDE)
def copy(numbers: Any, at: int, size: int, out: Any, to: int) -> None:
    """So many numbers from one address to another, in the dtype of another array."""
    whole = size // WIDTH * WIDTH
    for one in range(0, whole, WIDTH):
        store_any(out, to + one * out.itemsize, load_any(numbers, at + one * numbers.itemsize))
    for one in range(whole, size):
        put_at(out, to + one * out.itemsize, number_at(numbers, at + one * numbers.itemsize))


@njit(**INSIDE)
def _turn_row(
    row: int, qkv: Any, of_heads: Any, epsilon: float, turns: Any, query: Any, kv: Any, sums: Any
) -> None:
    """A row's queries and keys, turned, and its values, to where they belong."""
    of_query, of_key = of_heads
    num_heads, dim, kv_heads = query.shape[1], query.shape[2], kv.shape[2]
    at, size = _row(qkv, row), dim * query.itemsize
    to_query = query.ctypes.data + row * query.strides[0]
    to_key = kv.ctypes.data + row * kv.strides[1]
    for head in range(num_heads + kv_heads):
        weights = of_query if head < num_heads else of_key
        by = _share(qkv, at, dim, epsilon, sums) if weights.size else np.float32(1)
        to = to_query + head * size if head < num_heads else to_key + (head - num_heads) * size
        _turn(qkv, at, by, weights, turns, row, query, to)
        at += dim * 4
    copy(qkv, at, kv_heads * dim, kv, to_key + kv.strides[0])


@njit(**INSIDE)
def _write(row: int, kv: Any, layer: Any, slot: int, offset: int) -> None:
    """A row's keys and values to their place in a layer of the pool, in the dtype in which it keeps them."""
    fro = kv.ctypes.data + row * kv.strides[1]
    to = layer.ctypes.data + slot * layer.strides[0] + offset * layer.strides[2]
    for _ in range(2):
        copy(kv, fro, kv.shape[2] * kv.shape[3], layer, to)
        fro, to = fro + kv.strides[0], to + layer.strides[1]


@njit(**INSIDE)
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
    sums, none = _sums(), _none()
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
            for row in range(begin, min(begin + FEW, rows)):
                _turn_row(row, qkv, (of_heads[0], of_heads[1]), epsilon, turns, query, kv, sums)
                if writes:
                    _write(row, kv, layer, slots[row], offsets[row])
            done(progress, 2)
        else:
            break
    wait_for(progress, 2, few)


@njit(**INSIDE)
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
    sums = _two_sums()
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
