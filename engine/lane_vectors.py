"""Vectors and matrix products for code that numba compiles, which has neither: written in LLVM's own instructions.

What is here is called from compiled functions alone. Addresses are int64, and need not be aligned.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

from .native import HAS_PAIRS, UNIT, WIDTH

intrinsic: Any = extending.intrinsic
"""Its type says that what it makes is called as it is written, with the context; it is called without."""


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


F32, _I8, _I16, I32, I64 = ir.FloatType(), *map(ir.IntType, (8, 16, 32, 64))
FLOATS, _HALVES, _INTS = (ir.VectorType(one, WIDTH or 1) for one in (F32, _I16, I32))
PAIRS = ir.VectorType(_BFloat(), 2 * (WIDTH or 1))


class _Vector(types.Type):
    """WIDTH numbers of float32 in one register, as a type of numba's."""

    def __init__(self) -> None:
        super().__init__(name=f"float32 x {WIDTH}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, FLOATS)


_VECTOR: Final = _Vector()


def splat(builder: Any, scalar: Any) -> Any:
    """A number in every lane."""
    kind = ir.VectorType(scalar.type, WIDTH)
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * WIDTH))


def floats(number: float) -> Any:
    """That number in every lane, as is known when it is compiled."""
    return ir.Constant(FLOATS, [number] * WIDTH)


def _ints(number: int) -> Any:
    return ir.Constant(_INTS, [number] * WIDTH)


def fetch(builder: Any, address: Any, kind: Any = FLOATS) -> Any:
    """What is at an address, which need not be aligned."""
    found = builder.load(builder.inttoptr(address, kind.as_pointer()))
    found.align = 2
    return found


def put(builder: Any, address: Any, value: Any) -> None:
    """A value to an address, which need not be aligned."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


def call(builder: Any, name: str, *values: Any) -> Any:
    """A call of an intrinsic of LLVM's that gives floats."""
    kind = ir.FunctionType(FLOATS, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def bring(builder: Any, address: Any) -> None:
    """Have what is at an address brought near."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), I32, I32, I32])
    read, near, data = (ir.Constant(I32, number) for number in (0, 2, 1))
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, _I8.as_pointer()), read, near, data])


def fma(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    """Left * right + addend, rounded once."""
    return call(builder, f"llvm.fma.v{WIDTH}f32", left, right, addend)


def total(builder: Any, vector: Any) -> Any:
    """All its lanes added: one half to the other, and so on."""
    width = WIDTH or 1
    while width > 1:
        width //= 2
        halves = (
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(I32, width), [*range(first, first + width)])
            )
            for first in (0, width)
        )
        vector = builder.fadd(*halves)
    return builder.extract_element(vector, ir.Constant(I32, 0))


@intrinsic
def load(_context: Any, _address: Any) -> Any:
    """The float32 numbers at an address."""
    return _VECTOR(types.int64), lambda _c, builder, _s, given: fetch(builder, given[0])


@intrinsic
def load_any(_context: Any, array: Any, _address: Any) -> Any:
    """The numbers at an address in an array, of float32 or of bfloat16 as words."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        if array.dtype != types.uint16:
            return fetch(builder, given[1])
        wide = builder.zext(fetch(builder, given[1], _HALVES), _INTS)
        return builder.bitcast(builder.shl(wide, _ints(16)), FLOATS)

    return _VECTOR(array, types.int64), emit


@intrinsic
def load_pairs(_context: Any, _first: Any, _second: Any) -> Any:
    """Pairs of a bfloat16 from here and one from there."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        first, second = (builder.zext(fetch(builder, one, _HALVES), _INTS) for one in given)
        return builder.bitcast(builder.or_(first, builder.shl(second, _ints(16))), FLOATS)

    return _VECTOR(types.int64, types.int64), emit


@intrinsic
def store(_context: Any, _address: Any, _vector: Any) -> Any:
    """Put numbers at an address."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        put(builder, *given)
        return context.get_dummy_value()

    return types.void(types.int64, _VECTOR), emit


@intrinsic
def store_any(_context: Any, array: Any, _address: Any, _vector: Any) -> Any:
    """Put numbers at an address in an array of float32, or of bfloat16 as words: rounded to the nearest."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        _, address, vector = given
        if array.dtype == types.uint16:
            bits = builder.lshr(_rounded(builder, vector), _ints(16))
            vector = builder.trunc(bits, _HALVES)
        builder.store(vector, builder.inttoptr(address, vector.type.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(array, types.int64, _VECTOR), emit


@intrinsic
def word_at(_context: Any, array: Any, _address: Any) -> Any:
    """What an array has at an address."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        kind = context.get_value_type(array.dtype).as_pointer()
        return builder.load(builder.inttoptr(given[1], kind))

    return array.dtype(array, types.int64), emit


@intrinsic
def put_word(_context: Any, array: Any, _address: Any, _word: Any) -> Any:
    """Have an array hold that at an address."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        builder.store(given[2], builder.inttoptr(given[1], given[2].type.as_pointer()))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), emit


@intrinsic
def everywhere(_context: Any, _number: Any) -> Any:
    """A number in every lane."""
    return _VECTOR(types.float32), lambda _c, builder, _s, given: splat(builder, given[0])


@intrinsic
def madd(_context: Any, _left: Any, _right: Any, _addend: Any) -> Any:
    """Left * right + addend, rounded once."""
    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), lambda _c, builder, _s, given: fma(builder, *given)


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
        token = splat(builder, builder.sitofp(token, F32))
        seen = builder.and_(builder.fcmp_ordered(">=", token, first), builder.fcmp_ordered("<=", token, last))
        return builder.select(seen, scores, floats(float("-inf")))

    return _VECTOR(_VECTOR, types.int64, _VECTOR, _VECTOR), emit


def _exponential() -> list[float]:
    """Coefficients of 2**x from -0.5 to 0.5, the lowest first, off by less than float32 can say; exactly 1 of 0."""
    x = np.cos(np.pi * (np.arange(200) + 0.5) / 200) / 2
    return [1.0, *np.polynomial.polynomial.polyfit(x, np.expm1(x * np.log(2)) / x, 5)]


def _exp2(builder: Any, exponents: Any) -> Any:
    normal = builder.fcmp_ordered(">", exponents, floats(-126.0))
    exponent = builder.select(normal, exponents, floats(-126.0))
    whole = call(builder, f"llvm.rint.v{WIDTH}f32", exponent)
    rest_of = builder.fsub(exponent, whole)
    *others, found = map(floats, _exponential())
    for coefficient in reversed(others):
        found = fma(builder, found, rest_of, coefficient)
    if WIDTH == 16:
        everywhere_, rounding = ir.Constant(_I16, -1), ir.Constant(I32, 4)
        whole = builder.select(normal, whole, floats(-1000.0))
        return call(builder, "llvm.x86.avx512.mask.scalef.ps.512", found, whole, found, everywhere_, rounding)
    shift = builder.shl(builder.fptosi(whole, _INTS), _ints(23))
    found = builder.bitcast(builder.add(builder.bitcast(found, _INTS), shift), FLOATS)
    return builder.select(normal, found, floats(0.0))


@intrinsic
def exp2(_context: Any, _exponents: Any) -> Any:
    """2**x of numbers of at most 0: exactly 1 of 0, and 0 of what is less than -126, -inf too."""
    return _VECTOR(_VECTOR), lambda _c, builder, _s, given: _exp2(builder, given[0])


@intrinsic
def silu(_context: Any, _numbers: Any) -> Any:
    """Each number times its logistic function."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        x, one = given[0], floats(1.0)
        negative = builder.fcmp_ordered("<", x, floats(0.0))
        less = builder.fmul(x, builder.select(negative, floats(np.log2(np.e)), floats(-np.log2(np.e))))
        power = _exp2(builder, less)
        share = builder.fdiv(builder.select(negative, power, one), builder.fadd(power, one))
        return builder.fmul(x, share)

    return _VECTOR(_VECTOR), emit


def _rounded(builder: Any, vector: Any) -> Any:
    """Words of which the upper half is the nearest bfloat16."""
    bits = builder.bitcast(vector, _INTS)
    odd = builder.and_(builder.lshr(bits, _ints(16)), _ints(1))
    return builder.add(bits, builder.add(odd, _ints(0x7FFF)))


@intrinsic
def paired(_context: Any, _first: Any, _second: Any) -> Any:
    """Both as bfloat16, rounded to the nearest, side by side in each lane."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        if HAS_PAIRS:
            kind = ir.FunctionType(PAIRS, [FLOATS, FLOATS])
            name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
            both = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given[::-1])
            words = builder.bitcast(both, ir.VectorType(_I16, 2 * WIDTH))
            order = [at for lane in range(WIDTH) for at in (lane, WIDTH + lane)]
            mixed = builder.shuffle_vector(words, words, ir.Constant(ir.VectorType(I32, 2 * WIDTH), order))
            return builder.bitcast(mixed, FLOATS)

        first, second = (_rounded(builder, one) for one in given)
        both = builder.or_(builder.lshr(first, _ints(16)), builder.and_(second, _ints(-1 << 16)))
        return builder.bitcast(both, FLOATS)

    return _VECTOR(_VECTOR, _VECTOR), emit


@intrinsic
def prefetch(_context: Any, _address: Any) -> Any:
    """Have what is at an address brought near, as it will be read."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        bring(builder, given[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def is_bfloat16(_context: Any, array: Any) -> Any:
    """Whether an array's words are bfloat16, for which numpy has no type: known when this is compiled."""
    found = array.dtype == types.uint16
    return types.boolean(array), lambda _c, _b, _s, _g: ir.Constant(ir.IntType(1), found)
