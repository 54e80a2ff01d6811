"""Matrix products for code that numba compiles, of which the sums stay in registers: written in LLVM's own instructions.

What is here is called from compiled functions alone. Addresses are int64, and need not be aligned.
"""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types

from .lane_vectors import (
    F32,
    FLOATS,
    I32,
    I64,
    PAIRS,
    REGISTER_BYTES,
    ROW_BYTES,
    bring,
    call,
    fetch,
    floats,
    fma,
    intrinsic,
    put,
    splat,
    total,
)
from .native import HAS_PAIRS, ROWS, VECTORS, WIDTH

FETCH_BYTES: Final = ROW_BYTES // 8
"""What a product brings near of what is read later, for each of its steps: as much as it reads, by 64 rows."""


def _multiplied(builder: Any, left: Any, right: Any, addend: Any, *, pairs: bool) -> Any:
    """Left * right + addend in each lane, or both products of a pair."""
    if not pairs:
        return fma(builder, left, right, addend)
    if not HAS_PAIRS:  # it is compiled all the same, and never reached
        return addend
    operands = (builder.bitcast(one, PAIRS) for one in (left, right))
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", addend, *operands)


_Sums = dict[tuple[int, int], Any]


def _summed(builder: Any, num_steps: Any, begin: _Sums, following: Callable[[Any, _Sums], _Sums]) -> _Sums:
    """Sums after a loop, which stay in registers: `following` gives those after a step of its number and those before it, of which
    the first are `begin`. There is one step at least.
    """
    before, loop, after = builder.block, *map(builder.append_basic_block, ("step", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    step, now = builder.phi(I64), {place: builder.phi(FLOATS) for place in begin}
    then = following(step, now)
    next_step = builder.add(step, ir.Constant(I64, 1))
    for phi, first, last in (
        (step, ir.Constant(I64, 0), next_step),
        *((now[place], begin[place], then[place]) for place in begin),
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(last, loop)
    builder.cbranch(builder.icmp_signed("<", next_step, num_steps), loop, after)
    builder.position_at_end(after)
    return then


def _at(builder: Any, base: Any, step: Any, times: int) -> Any:
    return builder.add(base, builder.mul(step, ir.Constant(I64, times)))


def _product(*, pairs: bool, adds: bool = False, fetches: bool = False, num_rows: int = ROWS) -> Any:
    """Rows of a matrix product, of UNIT lanes: sums[i] = sum over k of left[i, k] * right[k], from k = 0 on, one after the other.

    left: numbers, or pairs of bfloat16, at left + i * left_row + k * left_step; each counts in all lanes.   right: lanes side by
    side, ROW_BYTES bytes from one k to the next.   sums: the same from one i to the next.   adds: what the sums were, times `factors`
    of each lane, is added.   fetches: `factors` is where something lies that is read later, of which FETCH_BYTES are brought near
    for each k.
    """

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        left, left_row, left_step, right, sums, factors, num_steps = given
        row, register = ir.Constant(I64, ROW_BYTES), ir.Constant(I64, REGISTER_BYTES)

        def of_register(base: Any, number: int) -> Any:
            return _at(builder, base, register, number)

        places = {
            (i, j): of_register(_at(builder, sums, row, i), j)
            for i in range(num_rows)
            for j in range(VECTORS)
        }
        begin = dict.fromkeys(places, floats(0.0))
        if adds:
            by_lane = [fetch(builder, of_register(factors, j)) for j in range(VECTORS)]
            begin = {
                (i, j): builder.fmul(fetch(builder, place), by_lane[j]) for (i, j), place in places.items()
            }

        def following(step: Any, now: _Sums) -> _Sums:
            of_step = builder.add(right, builder.mul(step, row))
            lanes = [fetch(builder, of_register(of_step, j)) for j in range(VECTORS)]
            column = builder.add(left, builder.mul(step, left_step))
            if fetches:
                bring(builder, _at(builder, factors, step, FETCH_BYTES))
            numbers = [
                splat(builder, fetch(builder, _at(builder, column, left_row, i), I32 if pairs else F32))
                for i in range(num_rows)
            ]
            return {
                (i, j): _multiplied(builder, numbers[i], lanes[j], now[i, j], pairs=pairs) for i, j in places
            }

        then = _summed(builder, num_steps, begin, following)
        for place, address in places.items():
            put(builder, address, then[place])
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


dot: Final = _product(pairs=False)
dot_add: Final = _product(pairs=False, adds=True)
dot_fetch: Final = _product(pairs=False, fetches=True)
dot_one: Final = _product(pairs=False, num_rows=1)
dot_pairs: Final = _product(pairs=True)
dot_pairs_add: Final = _product(pairs=True, adds=True)
dot_pairs_fetch: Final = _product(pairs=True, fetches=True)
dot_pairs_one: Final = _product(pairs=True, num_rows=1)


def _row_products(*, pairs: bool, num_left: int, num_right: int) -> Any:
    """Sums over k of left[i, k] * right[j, k], to sums[i, j] of float32: WIDTH sums, one of which takes every WIDTH-th product, or as many
    pairs of bfloat16, and these added by halves. Numbers of a row lie side by side.

    left_row, right_row, sums_row: bytes from one row to the next.   num_steps: registers full of numbers in a row.
    """

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        left, left_row, right, right_row, sums, sums_row, num_steps = given

        places = [(i, j) for i in range(num_left) for j in range(num_right)]

        def following(step: Any, now: _Sums) -> _Sums:
            offset = builder.mul(step, ir.Constant(I64, REGISTER_BYTES))
            lefts, rights = (
                [fetch(builder, builder.add(_at(builder, base, row, i), offset)) for i in range(num)]
                for base, row, num in ((left, left_row, num_left), (right, right_row, num_right))
            )
            return {
                (i, j): _multiplied(builder, lefts[i], rights[j], now[i, j], pairs=pairs) for i, j in places
            }

        then = _summed(builder, num_steps, dict.fromkeys(places, floats(0.0)), following)
        for i, j in places:
            address = _at(builder, _at(builder, sums, sums_row, i), ir.Constant(I64, 4), j)
            put(builder, address, total(builder, then[i, j]))
        return context.get_dummy_value()

    @intrinsic
    def product(
        _context: Any,
        _left: Any,
        _left_row: Any,
        _right: Any,
        _right_row: Any,
        _sums: Any,
        _sums_row: Any,
        _num_steps: Any,
    ) -> Any:
        return types.void(*[types.int64] * 7), emit

    return product


ROW_LEFT: Final = 4 if WIDTH == 16 else 2
ROW_RIGHT: Final = 4
"""Of `rows_by_rows`: rows that are multiplied with each other."""

rows_by_rows: Final = _row_products(pairs=False, num_left=ROW_LEFT, num_right=ROW_RIGHT)
row_by_rows: Final = _row_products(pairs=False, num_left=1, num_right=ROW_RIGHT)
rows_by_rows_pairs: Final = _row_products(pairs=True, num_left=ROW_LEFT, num_right=ROW_RIGHT)
row_by_rows_pairs: Final = _row_products(pairs=True, num_left=1, num_right=ROW_RIGHT)
