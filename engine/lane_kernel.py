"""Attention of many query rows over the pool's blocks, compiled for this processor: the kernel of engine/lanes.py.

A lane is a query row of one head. Lanes lie side by side in vector registers, so that every step, the softmax too, is the same
arithmetic in all of them and none knows of another: a lane's bits follow from its query and from the keys that it sees, and from
nothing else. numba has neither vectors nor a matrix product that keeps its sums in registers, so both are written here in LLVM's own
instructions, and what is around them in Python. Importing this takes numba, half a second; the first call of each kind compiles, or
loads what an earlier process compiled.

The softmax is the online one of FlashAttention (Dao et al., 2022).
"""

import os
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_FEATURES: Final = os.environ.get("NUMBA_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
_HAS: Final = frozenset(name[1:] for name in _FEATURES.split(",") if name.startswith("+"))

WIDTH: Final = 16 if "avx512f" in _HAS else 8 if {"avx2", "fma"} <= _HAS else 0
"""Lanes of one register; 0 where the kernel would be slow."""

HAS_PAIRS: Final = WIDTH == 16 and "avx512bf16" in _HAS
"""Whether there are products of bfloat16 by twos, summed in float32."""

# A product keeps ROWS x VECTORS sums in registers, of which AVX-512 has 32 and AVX2 has 16, and needs some more.
VECTORS: Final = 3 if WIDTH == 16 else 2
ROWS: Final = 8 if WIDTH == 16 else 4

UNIT: Final = VECTORS * (WIDTH or 1)
"""Lanes that are computed together: what threads share out among them."""

CHUNK: Final = 128
"""Tokens of which the scores are computed together, and one maximum is taken. They begin at multiples of it, so that a lane's bits
do not depend on where a call begins."""

_BYTES: Final = 4 * (WIDTH or 1)
_ROW: Final = UNIT * 4
_LINE_BYTES: Final = 64
MAXIMUM, TOTAL, FACTOR, FIRST, LAST = range(5)
"""What is known of each lane of a unit: its largest score so far, the sum of its weights, what its sums are next to be multiplied
with, and the first and the last token that it sees."""

_NONE_YET: Final = np.float32(-1e30)
"""A maximum of nothing. Not an infinity: of two of them the difference is no number."""


# --- what numba lacks -------------------------------------------------------------------------------------------------


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), *map(ir.IntType, (8, 16, 32, 64))
_FLOATS, _HALVES, _INTS = (ir.VectorType(one, WIDTH or 1) for one in (_F32, _I16, _I32))
_PAIRS = ir.VectorType(_BFloat(), 2 * (WIDTH or 1))


class _Vector(types.Type):  # type: ignore[misc]
    """WIDTH numbers of float32 in one register, as a type of numba's."""

    def __init__(self) -> None:
        super().__init__(name=f"float32 x {WIDTH}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


_VECTOR: Final = _Vector()


def _splat(builder: Any, scalar: Any) -> Any:
    kind = ir.VectorType(scalar.type, WIDTH)
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * WIDTH))


def _floats(number: float) -> Any:
    return ir.Constant(_FLOATS, [number] * WIDTH)


def _ints(number: int) -> Any:
    return ir.Constant(_INTS, [number] * WIDTH)


def _fetch(builder: Any, address: Any, kind: Any = _FLOATS) -> Any:
    """What is at an address, which need not be aligned."""
    found = builder.load(builder.inttoptr(address, kind.as_pointer()))
    found.align = 2
    return found


def _put(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


def _llvm(builder: Any, name: str, *values: Any) -> Any:
    """A call of an intrinsic of LLVM's that gives floats."""
    kind = ir.FunctionType(_FLOATS, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _fma(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    return _llvm(builder, f"llvm.fma.v{WIDTH}f32", left, right, addend)


@intrinsic
def _load(_context: Any, _address: Any) -> Any:
    return _VECTOR(types.int64), lambda _c, builder, _s, given: _fetch(builder, given[0])


@intrinsic
def _load_bfloat16(_context: Any, _address: Any) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        wide = builder.zext(_fetch(builder, given[0], _HALVES), _INTS)
        return builder.bitcast(builder.shl(wide, _ints(16)), _FLOATS)

    return _VECTOR(types.int64), emit


@intrinsic
def _load_pairs(_context: Any, _first: Any, _second: Any) -> Any:
    """Pairs of a bfloat16 from here and one from there."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        first, second = (builder.zext(_fetch(builder, one, _HALVES), _INTS) for one in given)
        return builder.bitcast(builder.or_(first, builder.shl(second, _ints(16))), _FLOATS)

    return _VECTOR(types.int64, types.int64), emit


@intrinsic
def _store(_context: Any, _address: Any, _vector: Any) -> Any:
    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        _put(builder, *given)
        return context.get_dummy_value()

    return types.void(types.int64, _VECTOR), emit


@intrinsic
def _all(_context: Any, _number: Any) -> Any:
    """A number in every lane."""
    return _VECTOR(types.float32), lambda _c, builder, _s, given: _splat(builder, given[0])


@intrinsic
def _madd(_context: Any, _left: Any, _right: Any, _addend: Any) -> Any:
    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), lambda _c, builder, _s, given: _fma(builder, *given)


@intrinsic
def _add(_context: Any, _left: Any, _right: Any) -> Any:
    return _VECTOR(_VECTOR, _VECTOR), lambda _c, builder, _s, given: builder.fadd(*given)


@intrinsic
def _larger(_context: Any, _left: Any, _right: Any) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *given), *given)

    return _VECTOR(_VECTOR, _VECTOR), emit


@intrinsic
def _seen(_context: Any, _scores: Any, _token: Any, _first: Any, _last: Any) -> Any:
    """The scores of a token, -inf in lanes that see only later ones than it, or only earlier ones."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        scores, token, first, last = given
        token = _splat(builder, builder.sitofp(token, _F32))
        seen = builder.and_(builder.fcmp_ordered(">=", token, first), builder.fcmp_ordered("<=", token, last))
        return builder.select(seen, scores, _floats(float("-inf")))

    return _VECTOR(_VECTOR, types.int64, _VECTOR, _VECTOR), emit


def _exponential() -> list[float]:
    """Coefficients of 2**x from -0.5 to 0.5, the lowest first, off by less than float32 can say; exactly 1 of 0."""
    x = np.cos(np.pi * (np.arange(200) + 0.5) / 200) / 2
    return [1.0, *np.polynomial.polynomial.polyfit(x, np.expm1(x * np.log(2)) / x, 5)]


@intrinsic
def _exp2(_context: Any, _exponents: Any) -> Any:
    """2**x of numbers of at most 0: exactly 1 of 0, and 0 of what is less than -126, -inf too."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        normal = builder.fcmp_ordered(">", given[0], _floats(-126.0))
        exponent = builder.select(normal, given[0], _floats(-126.0))
        whole = _llvm(builder, f"llvm.rint.v{WIDTH}f32", exponent)
        rest = builder.fsub(exponent, whole)
        *others, found = map(_floats, _exponential())
        for coefficient in reversed(others):
            found = _fma(builder, found, rest, coefficient)
        shift = builder.shl(builder.fptosi(whole, _INTS), _ints(23))
        found = builder.bitcast(builder.add(builder.bitcast(found, _INTS), shift), _FLOATS)
        return builder.select(normal, found, _floats(0.0))

    return _VECTOR(_VECTOR), emit


@intrinsic
def _pair(_context: Any, _first: Any, _second: Any) -> Any:
    """Both as bfloat16, rounded to the nearest, side by side in each lane."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        def rounded(vector: Any) -> Any:
            bits = builder.bitcast(vector, _INTS)
            odd = builder.and_(builder.lshr(bits, _ints(16)), _ints(1))
            return builder.add(bits, builder.add(odd, _ints(0x7FFF)))

        first = builder.lshr(rounded(given[0]), _ints(16))
        return builder.bitcast(builder.or_(first, builder.and_(rounded(given[1]), _ints(-1 << 16))), _FLOATS)

    return _VECTOR(_VECTOR, _VECTOR), emit


@intrinsic
def _prefetch(_context: Any, _address: Any) -> Any:
    """Have what is at an address brought near, as it will be read."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        read, near, data = (ir.Constant(_I32, number) for number in (0, 2, 1))
        place = builder.inttoptr(given[0], _I8.as_pointer())
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def _take(_context: Any, _address: Any) -> Any:
    """The number at an address, that is one more for whoever comes next."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        counter = builder.inttoptr(given[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), emit


def _product(*, pairs: bool, adds: bool) -> Any:
    """ROWS rows of a matrix product, of UNIT lanes: sums[i] = sum over k of left[i, k] * right[k].

    left: numbers, or pairs of bfloat16, at left + i * left_row + k * left_step; each counts in all lanes.   right: lanes side by
    side, _ROW bytes from one k to the next.   sums: the same from one i to the next.   adds: what the sums were, times `factors`
    of each lane, is added.
    """

    def load_left(builder: Any, address: Any) -> Any:
        return _splat(builder, _fetch(builder, address, _I32 if pairs else _F32))

    def multiply(builder: Any, left: Any, right: Any, addend: Any) -> Any:
        if not pairs:
            return _fma(builder, left, right, addend)
        operands = (builder.bitcast(one, _PAIRS) for one in (left, right))
        return _llvm(builder, "llvm.x86.avx512bf16.dpbf16ps.512", addend, *operands)

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        left, left_row, left_step, right, sums, factors, num_steps = given

        def at(base: Any, step: Any, number: int) -> Any:
            return builder.add(base, builder.mul(step, ir.Constant(_I64, number)))

        row, register = ir.Constant(_I64, _ROW), ir.Constant(_I64, _BYTES)
        places = [[at(at(sums, row, i), register, j) for j in range(VECTORS)] for i in range(ROWS)]
        begin = [[_floats(0.0) for _ in of_row] for of_row in places]
        if adds:
            by_lane = [_fetch(builder, at(factors, register, j)) for j in range(VECTORS)]
            begin = [
                [builder.fmul(_fetch(builder, one), by) for one, by in zip(of_row, by_lane, strict=True)]
                for of_row in places
            ]
        before, loop, after = builder.block, *map(builder.append_basic_block, ("step", "done"))
        builder.branch(loop)
        builder.position_at_end(loop)
        step, now = builder.phi(_I64), [[builder.phi(_FLOATS) for _ in of_row] for of_row in places]
        of_step = builder.add(right, builder.mul(step, row))
        lanes = [_fetch(builder, at(of_step, register, j)) for j in range(VECTORS)]
        column = builder.add(left, builder.mul(step, left_step))
        numbers = [load_left(builder, at(column, left_row, i)) for i in range(ROWS)]
        then = [
            [multiply(builder, numbers[i], lanes[j], now[i][j]) for j in range(VECTORS)] for i in range(ROWS)
        ]
        next_step = builder.add(step, ir.Constant(_I64, 1))
        for phi, first, following in (
            (step, ir.Constant(_I64, 0), next_step),
            *((now[i][j], begin[i][j], then[i][j]) for i in range(ROWS) for j in range(VECTORS)),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", next_step, num_steps), loop, after)
        builder.position_at_end(after)
        for i in range(ROWS):
            for j in range(VECTORS):
                _put(builder, places[i][j], then[i][j])
        return context.get_dummy_value()

    @intrinsic
    def product(
        _context: Any,
        _left: Any,
        _left_row: Any,
        _left_step: Any,
        _right: Any,
        _sums: Any,
        _factors: Any,
        _num_steps: Any,
    ) -> Any:
        return types.void(*[types.int64] * 7), emit

    return product


_dot: Final = _product(pairs=False, adds=False)
_dot_add: Final = _product(pairs=False, adds=True)
_dot_pairs: Final = _product(pairs=True, adds=False)
_dot_pairs_add: Final = _product(pairs=True, adds=True)


# --- the kernel -------------------------------------------------------------------------------------------------------


@intrinsic
def _is_bfloat16(_context: Any, array: Any) -> Any:
    """Whether an array's words are bfloat16, for which numpy has no type: known when this is compiled."""
    found = array.dtype == types.uint16
    return types.boolean(array), lambda _c, _b, _s, _g: ir.Constant(ir.IntType(1), found)


_COMPILED: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy"}


@njit(**_COMPILED)
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


@njit(**_COMPILED)
def _read(
    layer: Any,
    slots: Any,
    known: Any,
    head: int,
    begin: int,
    num_tokens: int,
    zeros: Any,
    keys: Any,
    values: Any,
    pairs: bool,
) -> None:
    """A head's keys and values of tokens from `begin` on, as float32, or of an even number of tokens as pairs of bfloat16: of two
    numbers of a key, which is how it lies in the pool, and of the same number of two tokens' values.

    known: the first and the end of the tokens whose blocks `slots` has; the others are 0.
    """
    dim, size = layer.shape[4], layer.itemsize
    for token in range(
        begin + num_tokens, begin + num_tokens + CHUNK
    ):  # what is read next, while these are computed with
        key, value = _places(layer, slots, known, head, token, zeros)
        for at in range(0, dim * size, _LINE_BYTES):
            _prefetch(key + at)
            _prefetch(value + at)
    to_key, to_value = keys.ctypes.data, values.ctypes.data
    if pairs:
        for token in range(begin, begin + num_tokens, 2):
            key, value = _places(layer, slots, known, head, token, zeros)
            next_key, next_value = _places(layer, slots, known, head, token + 1, zeros)
            for at in range(0, dim * 2, _BYTES):
                _store(to_key + at, _load(key + at))
                _store(to_key + dim * 2 + at, _load(next_key + at))
            for number in range(0, dim, WIDTH):
                _store(to_value + number * 4, _load_pairs(value + number * 2, next_value + number * 2))
            to_key, to_value = to_key + dim * 4, to_value + dim * 4
        return
    for token in range(begin, begin + num_tokens):
        key, value = _places(layer, slots, known, head, token, zeros)
        for number in range(0, dim, WIDTH):
            if _is_bfloat16(layer):
                _store(to_key + number * 4, _load_bfloat16(key + number * size))
                _store(to_value + number * 4, _load_bfloat16(value + number * size))
            else:
                _store(to_key + number * 4, _load(key + number * size))
                _store(to_value + number * 4, _load(value + number * size))
        to_key, to_value = to_key + dim * 4, to_value + dim * 4


@njit(**_COMPILED)
def _begin(
    query: Any, group: int, head: int, lane: int, start: int, window: int, lanes: Any, state: Any
) -> None:
    """Queries of a unit side by side in `lanes` [dim, UNIT], in pairs of bfloat16 where they are that, and its `state`."""
    num_rows, dim = query.shape[1], query.shape[2]
    words = lanes.view(np.uint32)
    for column in range(UNIT):
        row, member = divmod(min(lane + column, num_rows * group - 1), group)  # the last one is repeated
        numbers = query[head * group + member, row]
        if _is_bfloat16(query):
            for pair in range(dim // 2):
                words[pair, column] = np.uint32(numbers[2 * pair]) | np.uint32(numbers[2 * pair + 1]) << 16
        else:
            for number in range(dim):
                lanes[number, column] = numbers[number]
        state[MAXIMUM, column], state[TOTAL, column] = _NONE_YET, 0
        state[FIRST, column], state[LAST, column] = start + row - window + 1, start + row


@njit(**_COMPILED)
def _hide(scores: int, num_tokens: int, token: int, state: int) -> None:
    """-inf in the scores of what a column's lanes do not see."""
    first, last = _load(state + FIRST * _ROW), _load(state + LAST * _ROW)
    for at in range(num_tokens):
        _store(scores + at * _ROW, _seen(_load(scores + at * _ROW), token + at, first, last))


@njit(**_COMPILED)
def _weigh(scores: int, num_tokens: int, state: int, scale: float, pairs: bool) -> None:
    """A register's column of scores to weights, by the largest so far; what earlier sums are to be multiplied with, to FACTOR.

    scale: of the scores, in powers of two. pairs: those of two tokens that follow each other are put side by side, as bfloat16.
    """
    before = _load(state + MAXIMUM * _ROW)
    odd, even, third, largest = before, before, before, before  # apart: each waits for its own last one alone
    for at in range(0, num_tokens, 4):
        odd = _larger(_load(scores + at * _ROW), odd)
        even = _larger(_load(scores + (at + 1) * _ROW), even)
        third = _larger(_load(scores + (at + 2) * _ROW), third)
        largest = _larger(_load(scores + (at + 3) * _ROW), largest)
    largest = _larger(_larger(odd, even), _larger(third, largest))
    zero, by = _all(np.float32(0)), _all(np.float32(scale))
    shift = _madd(largest, _all(np.float32(-scale)), zero)
    # by the difference, which is exactly 0 where nothing larger came: tokens that a lane does not see must not change its bits
    factor = _exp2(_madd(_madd(largest, _all(np.float32(-1)), before), by, zero))
    total, other = zero, zero
    for at in range(0, num_tokens, 2):
        weight = _exp2(_madd(_load(scores + at * _ROW), by, shift))
        next_weight = _exp2(_madd(_load(scores + (at + 1) * _ROW), by, shift))
        total, other = _add(total, weight), _add(other, next_weight)
        if pairs:
            _store(scores + at // 2 * _ROW, _pair(weight, next_weight))
        else:
            _store(scores + at * _ROW, weight)
            _store(scores + (at + 1) * _ROW, next_weight)
    _store(state + MAXIMUM * _ROW, largest)
    _store(state + FACTOR * _ROW, factor)
    _store(state + TOTAL * _ROW, _madd(_load(state + TOTAL * _ROW), factor, _add(total, other)))


@njit(**_COMPILED)
def _score(keys: int, lanes: int, scores: int, num_tokens: int, dim: int, pairs: bool) -> None:
    """Products of all keys with all lanes' queries."""
    for token in range(0, num_tokens, ROWS):
        if pairs:
            _dot_pairs(keys + token * dim * 2, dim * 2, 4, lanes, scores + token * _ROW, 0, dim // 2)
        else:
            _dot(keys + token * dim * 4, dim * 4, 4, lanes, scores + token * _ROW, 0, dim)


@njit(**_COMPILED)
def _sum_up(
    values: int, weights: int, sums: int, factors: int, num_tokens: int, dim: int, pairs: bool
) -> None:
    """Values by their weights, added to the sums so far times `factors`."""
    for number in range(0, dim, ROWS):
        target = sums + number * _ROW
        if pairs:
            _dot_pairs_add(values + number * 4, 4, dim * 4, weights, target, factors, num_tokens // 2)
        else:
            _dot_add(values + number * 4, 4, dim * 4, weights, target, factors, num_tokens)


@njit(**_COMPILED)
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
) -> None:
    """A unit's sums with the values of a chunk of tokens, from number `token` on."""
    dim = keys.shape[1]
    at_scores, at_state = scores.ctypes.data, state.ctypes.data
    _score(keys.ctypes.data, lanes.ctypes.data, at_scores, num_tokens, dim, pairs)
    last, window_begin = state[LAST, 0], state[FIRST, UNIT - 1]
    for column in range(0, _ROW, _BYTES):
        if token + num_tokens - 1 > last or token < window_begin:
            _hide(at_scores + column, num_tokens, token, at_state + column)
        _weigh(at_scores + column, num_tokens, at_state + column, scale, pairs)
    factors = at_state + FACTOR * _ROW
    _sum_up(values.ctypes.data, at_scores, sums.ctypes.data, factors, num_tokens, dim, pairs)


@njit(**_COMPILED)
def _finish(out: Any, group: int, head: int, lane: int, sums: Any, state: Any) -> None:
    num_rows, _, dim = out.shape
    for column in range(min(UNIT, num_rows * group - lane)):
        row, member = divmod(lane + column, group)
        share = np.float32(1) / state[TOTAL, column]
        for number in range(dim):
            out[row, head * group + member, number] = sums[number, column] * share


@njit(cache=True, **_COMPILED)
def attend(
    query: Any,
    layer: Any,
    slots: Any,
    known: Any,
    start: int,
    window: int,
    scale: float,
    wide: int,
    out: Any,
    queue: Any,
) -> None:
    """Attention of a chunk's rows; any number of threads may compute one together, each by a call with the same arguments.

    query: [heads, rows, dim] of float32, or of bfloat16 as uint16 words.   layer: [slots, 2, block_tokens, kv_heads, dim] of
    float32, or of such words, as it must be where the query is.   slots: int64, of the blocks of the tokens from known[0] to
    known[1]; all that a row sees is there.   start: the first row's position.   window: tokens that a row sees, itself among
    them.   scale: of the scores, times log2(e).   wide: how many units a thread takes at a time, for which it reads the blocks
    once.   out: float32 [rows, heads, dim].   queue: int64 [1], 0 before the first call.
    """
    pairs = _is_bfloat16(query)
    num_heads, num_rows, dim = query.shape
    kv_heads = layer.shape[3]
    group = num_heads // kv_heads
    lanes, sums = np.empty((wide, dim, UNIT), np.float32), np.empty((wide, dim, UNIT), np.float32)
    keys, values = np.empty((CHUNK, dim), np.float32), np.empty((CHUNK, dim), np.float32)
    state, scores = np.empty((wide, 5, UNIT), np.float32), np.empty((CHUNK, UNIT), np.float32)
    zeros = np.zeros(dim, np.float32)
    num_takes = -(-num_rows * group // (wide * UNIT))
    while True:
        take = _take(queue.ctypes.data)
        if take >= num_takes * kv_heads:
            return
        # the last rows first: they see most, and the threads are to end together
        head, lane = take % kv_heads, (num_takes - 1 - take // kv_heads) * wide * UNIT
        num_units = min(wide, -(-(num_rows * group - lane) // UNIT))
        for unit in range(num_units):
            _begin(query, group, head, lane + unit * UNIT, start, window, lanes[unit], state[unit])
        sums[:] = 0
        earliest, latest = state[0, LAST, 0], state[num_units - 1, LAST, UNIT - 1]
        for token in range(
            max(known[0], int(earliest) - window + 1) // CHUNK * CHUNK, int(latest) + 1, CHUNK
        ):
            num_tokens = min(CHUNK, (int(latest) - token) // ROWS * ROWS + ROWS)
            _read(layer, slots, known, head, token, num_tokens, zeros, keys, values, pairs)
            for unit in range(num_units):
                _step(
                    keys,
                    values,
                    scores,
                    lanes[unit],
                    sums[unit],
                    state[unit],
                    token,
                    num_tokens,
                    scale,
                    pairs,
                )
        for unit in range(num_units):
            _finish(out, group, head, lane + unit * UNIT, sums[unit], state[unit])
