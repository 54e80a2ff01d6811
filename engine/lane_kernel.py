"""Attention of many query rows over the pool's blocks, compiled for this processor: the kernel of engine/lanes.py.

A lane is a query row of one head. Lanes lie side by side in vector registers, so that every step, the softmax too, is the same
arithmetic in all of them and none knows of another: a lane's bits follow from its query and from the keys that it sees, and from
nothing else. Who compiles imports this, and nobody else: engine/native.py has what it becomes.

The softmax is the online one of FlashAttention (Dao et al., 2022).
"""

from typing import Any, Final

import numpy as np
from numba import njit

from kvstore.scratch import allocate, floats_at, free

from .lane_products import dot, dot_add, dot_pairs, dot_pairs_add
from .lane_signals import next_number
from .lane_vectors import (
    REGISTER_BYTES,
    ROW_BYTES,
    add,
    everywhere,
    exp2,
    is_bfloat16,
    larger,
    load,
    load_any,
    load_pairs,
    madd,
    paired,
    prefetch,
    seen_of,
    store,
)
from .lane_words import put
from .native import CHUNK, ROWS, UNIT, WIDTH
from .waiting import INSIDE, done

MAXIMUM, TOTAL, FACTOR, FIRST, LAST = range(5)
"""What is known of each lane of a unit: its largest score so far, the sum of its weights, what its sums are next to be multiplied
with, and the first and the last token that it sees."""

_NONE_YET: Final = np.float32(-1e30)
"""A maximum of nothing. Not an infinity: of two of them the difference is no number."""

_LINE_BYTES: Final = 64


@njit(**INSIDE)
def _places(layer: Any, slots: Any, known: Any, head: int, token: int, zeros: Any) -> Any:
    """Where a token's key and value of one head begin; both at `zeros` where no slot is known for it."""
    if token < known[0] or token >= known[1]:
        return zeros.ctypes.data, zeros.ctypes.data
    block, within = divmod(np.int32(token - known[0]), np.int32(layer.shape[2]))
    key = (
        layer.ctypes.data
        + slots[block] * layer.strides[0]
        + within * layer.strides[2]
        + head * layer.strides[3]
    )
    return key, key + layer.strides[1]


@njit(**INSIDE)
def _fetch(
    layer: Any, slots: Any, known: Any, heads: Any, begin: int, part: int, num_parts: int, zeros: Any
) -> None:
    """Bring one part of so many of what CHUNK tokens from `begin` on have near, as it will be read next."""
    num_bytes = (heads[1] - heads[0]) * layer.strides[3]
    for token in range(begin + part * CHUNK // num_parts, begin + (part + 1) * CHUNK // num_parts):
        if token < known[1]:
            key, value = _places(layer, slots, known, heads[0], token, zeros)
            for at in range(0, num_bytes, _LINE_BYTES):
                prefetch(key + at)
                prefetch(value + at)


@njit(**INSIDE)
def _read(
    layer: Any,
    slots: Any,
    known: Any,
    heads: Any,
    begin: int,
    num_tokens: int,
    zeros: Any,
    keys: Any,
    values: Any,
    pairs: bool,
) -> None:
    """These heads' keys and values of tokens from `begin` on, as float32, or of an even number of tokens as pairs of bfloat16: of two
    numbers of a key, which is how it lies in the pool, and of the same number of two tokens' values.

    known: the first and the end of the tokens whose blocks `slots` has; the others are 0.   heads: the first and the end of
    these.   keys, values: [heads, CHUNK, dim].
    """
    dim, size, step = layer.shape[4], layer.itemsize, layer.strides[3]
    head_bytes = CHUNK * dim * 4
    for token in range(begin, begin + num_tokens, 2 if pairs else 1):
        key, value = _places(layer, slots, known, heads[0], token, zeros)
        next_key, next_value = _places(layer, slots, known, heads[0], token + 1, zeros) if pairs else (0, 0)
        place = (token - begin) * (dim * 2 if pairs else dim * 4)
        for head in range(heads[1] - heads[0]):
            # addresses: a view of an array costs as much as what is read for it
            to_key = keys.ctypes.data + head * head_bytes + place
            to_value = values.ctypes.data + head * head_bytes + place
            if pairs:
                for at in range(0, dim * 2, REGISTER_BYTES):
                    store(to_key + at, load(key + at))
                    store(to_key + dim * 2 + at, load(next_key + at))
                for number in range(0, dim, WIDTH):
                    store(to_value + number * 4, load_pairs(value + number * 2, next_value + number * 2))
            else:
                for number in range(0, dim, WIDTH):
                    store(to_key + number * 4, load_any(layer, key + number * size))
                    store(to_value + number * 4, load_any(layer, value + number * size))
            key, value = key + step, value + step
            next_key, next_value = next_key + step, next_value + step


@njit(**INSIDE)
def _begin(
    query: Any, group: int, head: int, lane: int, start: int, window: int, lanes: Any, state: Any
) -> None:
    """Queries of a unit side by side in `lanes` [dim, UNIT], in pairs of bfloat16 where they are that, and its `state`."""
    num_rows, dim = query.shape[0], query.shape[2]
    words = lanes.view(np.uint32)
    for column in range(UNIT):
        row, member = divmod(min(lane + column, num_rows * group - 1), group)  # the last one is repeated
        numbers = query[row, head * group + member]
        if is_bfloat16(query):
            for pair in range(dim // 2):
                words[pair, column] = np.uint32(numbers[2 * pair]) | np.uint32(numbers[2 * pair + 1]) << 16
        else:
            for number in range(dim):
                lanes[number, column] = numbers[number]
        state[MAXIMUM, column], state[TOTAL, column] = _NONE_YET, 0
        state[FIRST, column], state[LAST, column] = start + row - window + 1, start + row


@njit(**INSIDE)
def _hide(scores: int, num_tokens: int, token: int, state: int) -> None:
    """-inf in the scores of what a column's lanes do not see."""
    first, last = load(state + FIRST * ROW_BYTES), load(state + LAST * ROW_BYTES)
    for at in range(num_tokens):
        store(scores + at * ROW_BYTES, seen_of(load(scores + at * ROW_BYTES), token + at, first, last))


@njit(**INSIDE)
def _weigh(scores: int, num_tokens: int, state: int, scale: float, pairs: bool) -> None:
    """A register's column of scores to weights, by the largest so far; what earlier sums are to be multiplied with, to FACTOR.

    scale: of the scores, in powers of two. pairs: those of two tokens that follow each other are put side by side, as bfloat16.
    """
    before = load(state + MAXIMUM * ROW_BYTES)
    odd, even, third, largest = before, before, before, before  # apart: each waits for its own last one alone
    for at in range(0, num_tokens, 4):
        odd = larger(load(scores + at * ROW_BYTES), odd)
        even = larger(load(scores + (at + 1) * ROW_BYTES), even)
        third = larger(load(scores + (at + 2) * ROW_BYTES), third)
        largest = larger(load(scores + (at + 3) * ROW_BYTES), largest)
    largest = larger(larger(odd, even), larger(third, largest))
    zero, by = everywhere(np.float32(0)), everywhere(np.float32(scale))
    shift = madd(largest, everywhere(np.float32(-scale)), zero)
    # by the difference, which is exactly 0 where nothing larger came: tokens that a lane does not see must not change its bits
    factor = exp2(madd(madd(largest, everywhere(np.float32(-1)), before), by, zero))
    total, other = zero, zero
    for at in range(0, num_tokens, 2):
        weight = exp2(madd(load(scores + at * ROW_BYTES), by, shift))
        next_weight = exp2(madd(load(scores + (at + 1) * ROW_BYTES), by, shift))
        total, other = add(total, weight), add(other, next_weight)
        if pairs:
            store(scores + at // 2 * ROW_BYTES, paired(weight, next_weight))
        else:
            store(scores + at * ROW_BYTES, weight)
            store(scores + (at + 1) * ROW_BYTES, next_weight)
    store(state + MAXIMUM * ROW_BYTES, largest)
    store(state + FACTOR * ROW_BYTES, factor)
    store(state + TOTAL * ROW_BYTES, madd(load(state + TOTAL * ROW_BYTES), factor, add(total, other)))


@njit(**INSIDE)
def _score(
    keys: int, lanes: int, scores: int, num_tokens: int, dim: int, pairs: bool, coming: Any, part: int
) -> None:
    """Products of all keys with all lanes' queries. Meanwhile what is read next comes near: `coming`, from part number `part` on."""
    layer, slots, known, heads, begin, num_parts, zeros = coming
    for token in range(0, num_tokens, ROWS):
        _fetch(layer, slots, known, heads, begin, part + token // ROWS, num_parts, zeros)
        if pairs:
            dot_pairs(keys + token * dim * 2, dim * 2, 4, lanes, scores + token * ROW_BYTES, 0, dim // 2)
        else:
            dot(keys + token * dim * 4, dim * 4, 4, lanes, scores + token * ROW_BYTES, 0, dim)


@njit(**INSIDE)
def _sum_up(
    values: int, weights: int, sums: int, factors: int, num_tokens: int, dim: int, pairs: bool
) -> None:
    """Values by their weights, added to the sums so far times `factors`."""
    for number in range(0, dim, ROWS):
        target = sums + number * ROW_BYTES
        if pairs:
            dot_pairs_add(values + number * 4, 4, dim * 4, weights, target, factors, num_tokens // 2)
        else:
            dot_add(values + number * 4, 4, dim * 4, weights, target, factors, num_tokens)


@njit(**INSIDE)
def _step(
    keys: Any,
    values: Any,
    scores: Any,
    lanes: Any,
    sums: Any,
    state: Any,
    token: int,
    num_tokens: int,
    scale: float,
    pairs: bool,
    coming: Any,
    unit: int,
) -> None:
    """A unit's sums with the values of a chunk of tokens, from number `token` on. coming: of `_score`, of all units."""
    dim = keys.shape[1]
    at_scores, at_state = scores.ctypes.data, state.ctypes.data
    part = unit * (CHUNK // ROWS)
    _score(keys.ctypes.data, lanes.ctypes.data, at_scores, num_tokens, dim, pairs, coming, part)
    last, window_begin = state[LAST, 0], state[FIRST, UNIT - 1]
    for column in range(0, ROW_BYTES, REGISTER_BYTES):
        if token + num_tokens - 1 > last or token < window_begin:
            _hide(at_scores + column, num_tokens, token, at_state + column)
        _weigh(at_scores + column, num_tokens, at_state + column, scale, pairs)
    factors = at_state + FACTOR * ROW_BYTES
    _sum_up(values.ctypes.data, at_scores, sums.ctypes.data, factors, num_tokens, dim, pairs)


@njit(**INSIDE)
def _finish(out: Any, group: int, head: int, lane: int, sums: Any, state: Any) -> None:
    num_rows, _, dim = out.shape
    for column in range(min(UNIT, num_rows * group - lane)):
        row, member = divmod(lane + column, group)
        share = np.float32(1) / state[TOTAL, column]
        for number in range(dim):
            put(out, (row, head * group + member, number), sums[number, column] * share)


@njit(**INSIDE)
def num_takes(num_rows: int, group: int, kv_heads: int, together: int, wide: int) -> int:
    """Tasks that `attend` has for its threads."""
    return -(-num_rows * group // (wide * UNIT)) * -(-kv_heads // together)


@njit(**INSIDE)
def _memory_bytes(together: int, wide: int, dim: int, kv_heads: int) -> int:
    """Of all that a thread computes in, to begin at a line of the cache."""
    units = together * wide
    lanes, keys = 2 * units * dim * ROW_BYTES, 2 * together * CHUNK * dim * 4
    return lanes + keys + (5 * units + CHUNK) * ROW_BYTES + kv_heads * dim * 4 + _LINE_BYTES


@njit(**INSIDE)
def attend(
    query: Any,
    layer: Any,
    slots: Any,
    known: Any,
    start: int,
    window: int,
    scale: float,
    together: int,
    wide: int,
    out: Any,
    progress: Any,
) -> None:
    """Attention of a chunk's rows; any number of threads may compute one together, each by a call with the same arguments.

    query: [rows, heads, dim] of float32, or of bfloat16 as uint16 words.   layer: [slots, 2, block_tokens, kv_heads, dim] of
    float32, or of such words, as it must be where the query is.   slots: int64, of the blocks of the tokens from known[0] to
    known[1]; all that a row sees is there.   start: the first row's position.   window: tokens that a row sees, itself among
    them.   scale: of the scores, times log2(e).   together: of how many KV heads a thread takes lanes at a time, and wide: how
    many units of each; for them it reads the blocks once.   out: [rows, heads, dim], as the query is.   progress: int64 [2], 0 before
    the first call.
    """
    pairs = is_bfloat16(query)
    num_rows, num_heads, dim = query.shape
    kv_heads = layer.shape[3]
    group = num_heads // kv_heads
    lane_bytes, key_bytes = together * wide * dim * ROW_BYTES, together * CHUNK * dim * 4
    memory = allocate(_memory_bytes(together, wide, dim, kv_heads))
    if memory == 0:
        raise MemoryError
    at = -(-memory // _LINE_BYTES) * _LINE_BYTES
    lanes = floats_at(at, (together, wide, dim, UNIT))
    sums = floats_at(at + lane_bytes, (together, wide, dim, UNIT))
    at += 2 * lane_bytes
    keys, values = (
        floats_at(at, (together, CHUNK, dim)),
        floats_at(at + key_bytes, (together, CHUNK, dim)),
    )
    at += 2 * key_bytes
    state = floats_at(at, (together, wide, 5, UNIT))
    at += together * wide * 5 * ROW_BYTES
    scores = floats_at(at, (CHUNK, UNIT))
    zeros = floats_at(at + CHUNK * ROW_BYTES, (kv_heads * dim,))
    zeros[:] = 0
    runs = -(-kv_heads // together)
    all_takes = num_takes(num_rows, group, kv_heads, together, wide)
    while True:
        take = next_number(progress.ctypes.data)
        if take >= all_takes:
            free(memory)
            break
        # the last rows first: they see most, and the threads are to end together
        run, lane = take % runs, (all_takes // runs - 1 - take // runs) * wide * UNIT
        heads = (run * together, min(run * together + together, kv_heads))
        num_units = min(wide, -(-(num_rows * group - lane) // UNIT))
        all_units = (heads[1] - heads[0]) * num_units
        for one in range(all_units):
            head, unit = divmod(one, num_units)
            at = lane + unit * UNIT
            _begin(query, group, heads[0] + head, at, start, window, lanes[head, unit], state[head, unit])
        sums[:] = 0
        earliest, latest = state[0, 0, LAST, 0], state[0, num_units - 1, LAST, UNIT - 1]
        for token in range(
            max(known[0], int(earliest) - window + 1) // CHUNK * CHUNK, int(latest) + 1, CHUNK
        ):
            num_tokens = min(CHUNK, (int(latest) - token) // ROWS * ROWS + ROWS)
            _read(layer, slots, known, heads, token, num_tokens, zeros, keys, values, pairs)
            coming = (layer, slots, known, heads, token + CHUNK, all_units * (CHUNK // ROWS), zeros)
            for one in range(all_units):
                head, unit = divmod(one, num_units)
                _step(
                    keys[head],
                    values[head],
                    scores,
                    lanes[head, unit],
                    sums[head, unit],
                    state[head, unit],
                    token,
                    num_tokens,
                    scale,
                    pairs,
                    coming,
                    one,
                )
        for one in range(all_units):
            head, unit = divmod(one, num_units)
            at = lane + unit * UNIT
            _finish(out, group, heads[0] + head, at, sums[head, unit], state[head, unit])
        done(progress, 0)
