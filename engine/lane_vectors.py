"""Vectors and matrix products for code that numba compiles, which has neither: written in LLVM's own instructions.

What is here is called from compiled functions alone. Addresses are int64, and need not be aligned.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic
"""Its type says that what it makes is called as it is written, with the context; it is called without."""


def _features() -> str:
    """The instructions that numba compiles for, which its settings may make less than this processor has: else LLVM would end the process."""
    settings: Any = config  # its names are made when it is imported
    if settings.DISABLE_JIT:
        return ""
    found = get_host_cpu_features() if settings.CPU_FEATURES is None else settings.CPU_FEATURES
    return str(found)


_HAS: Final = frozenset(name[1:] for name in _features().split(",") if name.startswith("+"))

WIDTH: Final = 16 if "avx512f" in _HAS else 8 if {"avx2", "fma"} <= _HAS else 0
"""Lanes of one register; 0 where the kernel would be slow."""

HAS_PAIRS: Final = WIDTH == 16 and "avx512bf16" in _HAS
"""Whether there are products of bfloat16 by twos, summed in float32."""

# A product keeps ROWS x VECTORS sums in registers, of which AVX-512 has 32 and AVX2 has 16, and needs some more.
VECTORS: Final = 3 if WIDTH == 16 else 2
ROWS: Final = 8 if WIDTH == 16 else 4

UNIT: Final = VECTORS * (WIDTH or 1)
"""Lanes that are computed together: what threads share out among them."""

REGISTER_BYTES: Final = 4 * (WIDTH or 1)
ROW_BYTES: Final = UNIT * 4


class _BFloat(ir.Type):
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


class _Vector(types.Type):
    """WIDTH numbers of float32 in one register, as a type of numba's."""

    def __init__(self) -> None:
        super().__init__(name=f"float32 x {WIDTH}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
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
def load(_context: Any, _address: Any) -> Any:
    """The float32 numbers at an address."""
    return _VECTOR(types.int64), lambda _c, builder, _s, given: _fetch(builder, given[0])


@intrinsic
def load_bfloat16(_context: Any, _address: Any) -> Any:
    """The bfloat16 numbers at an address."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        wide = builder.zext(_fetch(builder, given[0], _HALVES), _INTS)
        return builder.bitcast(builder.shl(wide, _ints(16)), _FLOATS)

    return _VECTOR(types.int64), emit


@intrinsic
def load_pairs(_context: Any, _first: Any, _second: Any) -> Any:
    """Pairs of a bfloat16 from here and one from there."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        first, second = (builder.zext(_fetch(builder, one, _HALVES), _INTS) for one in given)
        return builder.bitcast(builder.or_(first, builder.shl(second, _ints(16))), _FLOATS)

    return _VECTOR(types.int64, types.int64), emit


@intrinsic
def store(_context: Any, _address: Any, _vector: Any) -> Any:
    """Put numbers at an address."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        _put(builder, *given)
        return context.get_dummy_value()

    return types.void(types.int64, _VECTOR), emit


@intrinsic
def everywhere(_context: Any, _number: Any) -> Any:
    """A number in every lane."""
    return _VECTOR(types.float32), lambda _c, builder, _s, given: _splat(builder, given[0])


@intrinsic
def madd(_context: Any, _left: Any, _right: Any, _addend: Any) -> Any:
    """Left * right + addend, rounded once."""
    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), lambda _c, builder, _s, given: _fma(builder, *given)


@intrinsic
def add(_context: Any, _left: Any, _right: Any) -> Any:
    """Left + right."""
    return _VECTOR(_VECTOR, _VECTOR), lambda _c, builder, _s, given: builder.fadd(*given)


@intrinsic
def larger(_context: Any, _left: Any, _right: Any) -> Any:
    """The larger of both."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *given), *given)

    return _VECTOR(_VECTOR, _VECTOR), emit


@intrinsic
def seen_of(_context: Any, _scores: Any, _token: Any, _first: Any, _last: Any) -> Any:
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
def exp2(_context: Any, _exponents: Any) -> Any:
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
def paired(_context: Any, _first: Any, _second: Any) -> Any:
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
def prefetch(_context: Any, _address: Any) -> Any:
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
def next_number(_context: Any, _address: Any) -> Any:
    """The number at an address, that is one more for whoever comes next."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        counter = builder.inttoptr(given[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), emit


def _product(*, pairs: bool, adds: bool) -> Any:
    """ROWS rows of a matrix product, of UNIT lanes: sums[i] = sum over k of left[i, k] * right[k].

    left: numbers, or pairs of bfloat16, at left + i * left_row + k * left_step; each counts in all lanes.   right: lanes side by
    side, ROW_BYTES bytes from one k to the next.   sums: the same from one i to the next.   adds: what the sums were, times `factors`
    of each lane, is added.
    """

    def load_left(builder: Any, address: Any) -> Any:
        return _splat(builder, _fetch(builder, address, _I32 if pairs else _F32))

    def multiply(builder: Any, left: Any, right: Any, addend: Any) -> Any:
        if not pairs:
            return _fma(builder, left, right, addend)
        if not HAS_PAIRS:  # it is compiled all the same, and never reached
            return addend
        operands = (builder.bitcast(one, _PAIRS) for one in (left, right))
        return _llvm(builder, "llvm.x86.avx512bf16.dpbf16ps.512", addend, *operands)

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        left, left_row, left_step, right, sums, factors, num_steps = given

        def at(base: Any, step: Any, number: int) -> Any:
            return builder.add(base, builder.mul(step, ir.Constant(_I64, number)))

        row, register = ir.Constant(_I64, ROW_BYTES), ir.Constant(_I64, REGISTER_BYTES)
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


dot: Final = _product(pairs=False, adds=False)
dot_add: Final = _product(pairs=False, adds=True)
dot_pairs: Final = _product(pairs=True, adds=False)
dot_pairs_add: Final = _product(pairs=True, adds=True)


@intrinsic
def is_bfloat16(_context: Any, array: Any) -> Any:
    """Whether an array's words are bfloat16, for which numpy has no type: known when this is compiled."""
    found = array.dtype == types.uint16
    return types.boolean(array), lambda _c, _b, _s, _g: ir.Constant(ir.IntType(1), found)
