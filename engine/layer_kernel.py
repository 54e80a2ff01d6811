"""A decoder layer of Llama's kind around its attention, compiled for this processor: the kernel of engine/layers.py.

Each of the two functions is a run of stages, and each stage so many tasks. Threads take tasks by number, and one of a stage begins when
all of the stage before are done: any number of threads can compute together, and come when they like. Numbers that are added up are
added by one thread, in an order that follows from the layer's sizes alone: a row's bits do not depend on what is computed beside it.
"""

from typing import Any, Final

import numpy as np
from numba import njit, types

from kvstore.scratch import on_stack

from .lane_products import FETCH_BYTES, dot_fetch, dot_one, dot_pairs_fetch, dot_pairs_one
from .lane_vectors import (
    REGISTER_BYTES,
    ROW_BYTES,
    count,
    everywhere,
    is_bfloat16,
    load,
    load_any,
    madd,
    next_number,
    rest,
    seen,
    silu,
    sleep,
    store,
    ticks,
)
from .native import ROWS, UNIT, WIDTH

GROUP: Final = 64
"""Rows of which a task computes the products: while they are computed, another task's weights come near."""

FEW: Final = 16
"""Rows of which a task normalises, or turns, the numbers."""

_TRIES: Final = 64
"""How often a thread looks at a number before it looks at the clock."""

_MOST_TRIES: Final = 4096
"""How often it looks before it sleeps a little: whoever it waits for has no core. To offer it its own by `sched_yield` would cost a turn."""

_NAP_US: Final = 50

_COMPILED: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "_nrt": False}

_sums: Final = on_stack(types.float32, ROWS, UNIT)
_two_sums: Final = on_stack(types.float32, 2 * ROWS, UNIT)
_none: Final = on_stack(types.float32, 0, 0)


@njit(**_COMPILED)
def _wait(progress: Any, stage: int, num_tasks: int) -> None:
    """Until so many tasks of a stage are done."""
    tries = 0
    while seen(progress.ctypes.data + 8 * (1 + stage)) < num_tasks:
        tries += 1
        if tries < _MOST_TRIES:
            rest()
        else:
            sleep(np.uint32(_NAP_US))


@njit(**_COMPILED)
def _done(progress: Any, stage: int) -> None:
    """One more task of a stage is."""
    count(progress.ctypes.data + 8 * (1 + stage))


@njit(**_COMPILED)
def _number(words: Any, at: Any) -> Any:
    """A number of an array, of float32 or of bfloat16 as words."""
    if is_bfloat16(words):
        return np.uint32(np.uint32(words[at]) << np.uint32(16)).view(np.float32)
    return np.float32(words[at])


@njit(**_COMPILED)
def _put(words: Any, at: Any, number: Any) -> None:
    """A number into such an array, rounded to the nearest."""
    if is_bfloat16(words):
        bits = np.float32(number).view(np.uint32)
        words[at] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    else:
        words[at] = number


@njit(**_COMPILED)
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
        square += _number(numbers, at) * _number(numbers, at)
    return np.float32(1) / np.sqrt(square / np.float32(size) + np.float32(epsilon))


@njit(**_COMPILED)
def _normalise(rows: Any, weights: Any, epsilon: float, begin: int, out: Any, sums: Any) -> None:
    """RMSNorm of FEW rows from `begin` on."""
    for row in range(begin, min(begin + FEW, rows.shape[0])):
        numbers, to = rows[row], out[row]
        by = _share(numbers, epsilon, sums)
        for at in range(numbers.size):
            _put(to, at, _number(numbers, at) * by * _number(weights, at))


@njit(**_COMPILED)
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


@njit(**_COMPILED)
def _product(
    left: Any, weights: Any, bias: Any, task: int, num_threads: int, base: Any, out: Any, sums: Any
) -> None:
    """Rows of a group by a panel of weights, to its columns of `out`: with the bias, if there is one, and with `base`, if there is one.

    weights: [panels, steps, UNIT] of float32, or [panels, steps, 2 * UNIT] of bfloat16 by twos.
    """
    num_groups = -(-left.shape[0] // GROUP)
    number, group = divmod(task, num_groups)
    panel = weights.ctypes.data + number * weights.strides[0]
    ahead = panel + num_threads * weights.strides[0]
    first, end = number * UNIT, min(number * UNIT + UNIT, out.shape[1])
    row, last = group * GROUP, min(group * GROUP + GROUP, left.shape[0])
    while row < last:
        num_rows = ROWS if last - row >= ROWS else 1
        _multiply(left, row, num_rows, panel, weights.shape[1], ahead, sums)
        for i in range(num_rows):
            to, found = out[row + i], sums[i]
            if bias.size:
                for at in range(end - first):
                    found[at] += bias[first + at]
            if base.size:
                of_base = base[row + i]
                for at in range(end - first):
                    _put(to, first + at, found[at] + _number(of_base, first + at))
            else:
                for at in range(end - first):
                    _put(to, first + at, found[at])
        row += num_rows
        ahead += weights.shape[1] * FETCH_BYTES


@njit(**_COMPILED)
def _gated(left: Any, weights: Any, bias: Any, task: int, num_threads: int, out: Any, sums: Any) -> None:
    """silu(gate) * up of a group's rows, for UNIT columns of `out`. weights: a panel of gates, one of ups, and so on; bias too."""
    num_groups = -(-left.shape[0] // GROUP)
    number, group = divmod(task, num_groups)
    step = weights.strides[0]
    zero = everywhere(np.float32(0))
    gate = weights.ctypes.data + 2 * number * step
    ahead = gate + 2 * num_threads * step
    first, end = number * UNIT, min(number * UNIT + UNIT, out.shape[1])
    row, last = group * GROUP, min(group * GROUP + GROUP, left.shape[0])
    while row < last:
        num_rows = ROWS if last - row >= ROWS else 1
        _multiply(left, row, num_rows, gate, weights.shape[1], ahead, sums)
        _multiply(left, row, num_rows, gate + step, weights.shape[1], ahead + step, sums[ROWS:])
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
                _put(to, first + at, gates[at])
        row += num_rows
        ahead += weights.shape[1] * FETCH_BYTES


@njit(**_COMPILED)
def _turn(numbers: Any, by: Any, weights: Any, cos: Any, sin: Any, out: Any) -> None:
    """Rotary embedding of a head's numbers, which are first multiplied by `by` and these weights, if there are any."""
    half = numbers.size // 2
    for at in range(half):
        first, second = numbers[at], numbers[half + at]
        if weights.size:
            first = first * by * _number(weights, at)
            second = second * by * _number(weights, half + at)
        _put(out, at, first * _number(cos, at) - second * _number(sin, at))
        _put(out, half + at, second * _number(cos, half + at) + first * _number(sin, half + at))


@njit(**_COMPILED)
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
                _put(to, at, values[head * dim + at])


def _before(
    x: Any,
    norm: Any,
    weights: Any,
    bias: Any,
    of_query: Any,
    of_key: Any,
    epsilon: float,
    cos: Any,
    sin: Any,
    normal: Any,
    qkv: Any,
    query: Any,
    kv: Any,
    progress: Any,
    num_threads: int,
) -> None:
    """What comes before attention; any number of threads may compute it together, each by a call with the same arguments.

    Numbers are float32, or bfloat16 as uint16 words, unless another type is said.   x: [rows, hidden].   norm: weights of the norm,
    [hidden].   weights, bias: of queries, keys and values, as `_product` has them; bias float32.   of_query, of_key: weights of the
    heads' norms, [dim], or none.   cos, sin: of the turns, [rows, dim].   normal: scratch, like x.   qkv: scratch, float32
    [rows, all heads * dim].   query: [rows, heads, dim], and kv: [2, rows, kv_heads, dim], are what is made.   progress: int64
    [PROGRESS], 0 before the first call.
    """
    sums, none = _sums(), _none()
    rows = x.shape[0]
    few, products = -(-rows // FEW), weights.shape[0] * -(-rows // GROUP)
    while True:
        task = next_number(progress.ctypes.data)
        if task < few:
            _normalise(x, norm, epsilon, task * FEW, normal, sums)
            _done(progress, 0)
        elif task < few + products:
            _wait(progress, 0, few)
            _product(normal, weights, bias, task - few, num_threads, none, qkv, sums)
            _done(progress, 1)
        elif task < 2 * few + products:
            _wait(progress, 1, products)
            begin = (task - few - products) * FEW
            _turn_rows(begin, qkv, of_query, of_key, epsilon, cos, sin, query, kv, sums)
            _done(progress, 2)
        else:
            return


def _after(
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
    between: Any,
    normal: Any,
    gates: Any,
    out: Any,
    progress: Any,
    num_threads: int,
) -> None:
    """What comes after attention, together likewise: the sum with x, and the feed-forward.

    x, normal, out: [rows, hidden].   attended: [rows, heads * dim].   to_...: weights as `_product` and `_gated` have them, and
    of_...: float32, their bias or none.   between: scratch, float32 like x.   gates: scratch, [rows, intermediate], as x is.
    """
    sums = _two_sums()
    rows = x.shape[0]
    groups, few = -(-rows // GROUP), -(-rows // FEW)
    hidden, wide = to_hidden.shape[0] * groups, to_gates.shape[0] // 2 * groups
    while True:
        task = next_number(progress.ctypes.data)
        if task < hidden:
            _product(attended, to_hidden, of_hidden, task, num_threads, x, between, sums)
            _done(progress, 0)
        elif task < hidden + few:
            _wait(progress, 0, hidden)
            _normalise(between, norm, epsilon, (task - hidden) * FEW, normal, sums)
            _done(progress, 1)
        elif task < hidden + few + wide:
            _wait(progress, 1, few)
            _gated(normal, to_gates, of_gates, task - hidden - few, num_threads, gates, sums)
            _done(progress, 2)
        elif task < 2 * hidden + few + wide:
            _wait(progress, 2, wide)
            task -= hidden + few + wide
            _product(gates, to_down, of_down, task, num_threads, between, out, sums)
            _done(progress, 3)
        else:
            return


def _watch(address: int, number: int, most_ticks: int) -> bool:
    """Whether the int64 at an address is another one than that, or becomes another one before so many ticks of the clock are over."""
    begun, tries = ticks(), 0
    while seen(address) == number:
        tries += 1
        rest()
        if tries % _TRIES == 0 and ticks() - begun > most_ticks:
            return False
    return True
