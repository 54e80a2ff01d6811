"""What code that numba compiles has no words for: numbers at any address, and the steps of XXH3 on whole registers.

What is here is called from compiled functions alone. Addresses are int64, need not be aligned, and are not looked at: who calls sees
to it that they lie within an array.
"""

import platform
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from kvstore.scratch import array_of
from kvstore.target import target

intrinsic: Any = extending.intrinsic
"""Its type says that what it makes is called as it is written, with the context; it is called without."""

_LANES: Final = ir.VectorType(ir.IntType(64), 8)
_NEIGHBOURS: Final = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])
_STRIPE_BYTES: Final = 64
_BYTES: Final = ir.VectorType(ir.IntType(8), _STRIPE_BYTES)
_IS_X86: Final = platform.machine().lower() in ("x86_64", "amd64")
_FEATURES: Final = target().features.split(",") if _IS_X86 else []
_LETS_GO: Final = "+clflushopt" in _FEATURES
_PERMUTES: Final = "+avx512vbmi" in _FEATURES


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _loading(bits: int) -> Any:
    """An intrinsic that answers the little-endian number of so many bits at an address."""

    def load(_context: Any, _address: Any) -> Any:
        def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
            value = builder.load(_at(builder, given[0], ir.IntType(bits)), align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(types.int64), emit

    return intrinsic(load)


load4: Final = _loading(32)
load8: Final = _loading(64)


@intrinsic
def store8(_context: Any, _address: Any, _number: Any) -> Any:
    """Put eight bytes, the lowest first."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        builder.store(given[1], _at(builder, given[0], ir.IntType(64)), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), emit


@intrinsic
def called(_context: Any, _function: Any, _first: Any, _second: Any, _third: Any, _fourth: Any) -> Any:
    """What a C function at an address answers, an int64 or less, given four integers; more than it takes do no harm."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * 4)
        return builder.call(_at(builder, given[0], kind), given[1:])

    return types.int64(*[types.int64] * 5), emit


@intrinsic
def changed_if(_context: Any, _address: Any, _old: Any, _new: Any) -> Any:
    """Whether the number at an address was the old one, and is the new one now, for all threads at once."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        pointer = _at(builder, given[0], ir.IntType(64))
        return builder.extract_value(builder.cmpxchg(pointer, given[1], given[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic
def leading_zeros(_context: Any, _number: Any) -> Any:
    """How many of the upper bits of a number, which is not 0, are 0."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        return builder.ctlz(given[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), emit


@intrinsic
def copy(_context: Any, _target: Any, _source: Any, _num_bytes: Any) -> Any:
    """Copy so many bytes between two addresses that lie apart."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        target, source = (_at(builder, address, ir.IntType(8)) for address in given[:2])
        cgutils.raw_memcpy(builder, target, source, given[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def fetch(_context: Any, _address: Any) -> Any:
    """Have what is at an address come into the second cache. Nothing happens where there is nothing."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        pointer = _at(builder, given[0], ir.IntType(8))
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[number] * 3])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, number(0), number(2), number(1)])  # to be read; second cache; data
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def let_go(_context: Any, _address: Any) -> Any:
    """Have the 64 bytes at an address leave all caches, as soon as may be. What they are does not change; some processors do nothing."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        if _LETS_GO:
            pointer = _at(builder, given[0], ir.IntType(8))
            kind = ir.FunctionType(ir.VoidType(), [pointer.type])
            builder.call(builder.module.declare_intrinsic("llvm.x86.clflushopt", (), kind), [pointer])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def in_turn(_context: Any, _number: Any) -> Any:
    """The number; what is written before is before what is written behind in the code as well.

    The compiler otherwise mixes several turns of a loop, as the processor does by itself, and then has more numbers at once than registers.
    """

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word])
        return builder.asm(kind, "", "=r,0,~{memory}", given, side_effect=True)

    return types.int64(types.int64), emit


@intrinsic
def folded_product(_context: Any, _left: Any, _right: Any) -> Any:
    """The upper 64 bits of a product, exclusive or its lower ones."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        wide, half = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(number, wide) for number in given))
        upper = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), half)
        return builder.xor(upper, builder.trunc(product, half))

    return types.uint64(types.uint64, types.uint64), emit


@intrinsic
def array_at(_context: Any, _address: Any, _num: Any, like: Any) -> Any:
    """So many items of the type of `like`, an array, from an address on; None where `like` is that."""
    if isinstance(like, types.NoneType):
        return like(types.int64, types.int64, like), lambda context, *_: context.get_dummy_value()
    kind = types.Array(like.dtype, 1, "C", aligned=False)

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        return array_of(context, builder, kind, given[0], [given[1]])

    return kind(types.int64, types.int64, like), emit


@intrinsic
def quads_of(_context: Any, _coded: Any, _planes: Any, _quads: Any) -> Any:
    """Put the bits of 64 bytes that begin at `coded`, four by four, to 16 words at `quads`, and to the 16 behind them how many each has. Whether all have a
    code. `planes`: of kvstore.huffman.

    The words are those of bytes 0, 4, 16, 20, 32, 36, 48 and 52, and then of those eight behind each. Where there are no instructions for it the answer is no.
    """

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        if not _PERMUTES:
            return ir.Constant(ir.IntType(1), 0)
        coded, planes, quads = given
        indices = _loaded(builder, coded, 0, _BYTES)
        is_upper = builder.icmp_signed("<", indices, _lanes(0, _BYTES))
        kind = ir.FunctionType(_BYTES, [_BYTES] * 3)
        look = builder.module.declare_intrinsic("llvm.x86.avx512.vpermi2var.qi.512", (), kind)
        lower, upper, lengths = (
            builder.select(
                is_upper,
                *(
                    builder.call(
                        look,
                        [
                            _loaded(builder, planes, begin + half, _BYTES),
                            indices,
                            _loaded(builder, planes, begin + half + _STRIPE_BYTES, _BYTES),
                        ],
                    )
                    for half in (2 * _STRIPE_BYTES, 0)
                ),
            )
            for begin in (0, 256, 512)
        )
        has_none = builder.bitcast(builder.icmp_signed("==", lengths, _lanes(0, _BYTES)), ir.IntType(64))
        for half in (0, 8):
            # as the processor lays them side by side: within each 16 bytes
            order = [
                at + 64 * other
                for first in range(half, 64, 16)
                for at in range(first, first + 8)
                for other in (0, 1)
            ]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 64), order)
            bits = builder.shuffle_vector(lower, upper, mask)
            counts = builder.shuffle_vector(lengths, _lanes(0, _BYTES), mask)
            for width in (16, 32):
                bits, counts = _in_twos(builder, bits, counts, width)
            for begin, words in (
                (quads, bits),
                (builder.add(quads, ir.Constant(ir.IntType(64), 128)), counts),
            ):
                address = builder.add(begin, ir.Constant(ir.IntType(64), 8 * half))
                builder.store(words, _at(builder, address, _LANES), align=8)
        return builder.icmp_unsigned("==", has_none, ir.Constant(ir.IntType(64), 0))

    return types.boolean(types.int64, types.int64, types.int64), emit


def _in_twos(builder: Any, bits: Any, counts: Any, width: int) -> tuple[Any, Any]:
    """Numbers of so many bits each, two and two as one: bits behind one another, and how many."""
    kind = ir.VectorType(ir.IntType(2 * width), 512 // (2 * width))
    bits, counts = builder.bitcast(bits, kind), builder.bitcast(counts, kind)
    low, half = _lanes((1 << width) - 1, kind), _lanes(width, kind)
    first = builder.and_(counts, low)
    joined = builder.or_(builder.and_(bits, low), builder.shl(builder.lshr(bits, half), first))
    return joined, builder.add(first, builder.lshr(counts, half))


def _lanes(number: int, kind: Any = _LANES) -> Any:
    """A vector of so many times the same number."""
    return ir.Constant(kind, [number] * kind.count)


def _loaded(builder: Any, begin: Any, offset: int, kind: Any = _LANES) -> Any:
    """A vector that lies so many bytes behind an address."""
    address = builder.add(begin, ir.Constant(ir.IntType(64), offset))
    return builder.load(_at(builder, address, kind), align=1)


def _with_stripe(builder: Any, total: Any, numbers: Any, secret: Any, stripe: int) -> Any:
    """XXH3's sums and one stripe more."""
    keyed = builder.xor(numbers, _loaded(builder, secret, stripe * 8))
    product = builder.mul(builder.and_(keyed, _lanes(0xFFFFFFFF)), builder.lshr(keyed, _lanes(32)))
    swapped = builder.shuffle_vector(numbers, numbers, _NEIGHBOURS)
    return builder.add(total, builder.add(product, swapped))


def _adding(num_stripes: int) -> Callable[..., Any]:
    """An intrinsic that adds so many stripes of 64 bytes at `data` to the eight sums at `sums`, with keys from `secret` on."""

    def add(_context: Any, _sums: Any, _data: Any, _secret: Any) -> Any:
        def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
            sums, data, secret = given
            total = _loaded(builder, sums, 0)
            for stripe in range(num_stripes):
                numbers = _loaded(builder, data, stripe * _STRIPE_BYTES)
                total = _with_stripe(builder, total, numbers, secret, stripe)
            builder.store(total, _at(builder, sums, _LANES), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), emit

    found: Callable[..., Any] = intrinsic(add)
    return found


add_block: Final = _adding(16)
add_stripe: Final = _adding(1)


def _joining(*, past_caches: bool) -> Callable[..., Any]:
    """An intrinsic that joins the planes of 1,024 bytes of elements, of the type of `like`, and adds `numbers` to them, as kvstore.planes does, and these
    bytes as 16 stripes to the sums at `sums`, while they are in registers.

    Where they are written past the caches, which they are not read from again, `words` is a multiple of 64; who is to read them comes behind a `fence`.
    """

    def join(
        _context: Any,
        _words: Any,
        _numbers: Any,
        _coded: Any,
        _second: Any,
        _low: Any,
        _whole: Any,
        _sums: Any,
        _secret: Any,
        like: Any,
    ) -> Any:
        item_bytes = like.dtype.bitwidth // 8
        items = ir.VectorType(ir.IntType(8 * item_bytes), _STRIPE_BYTES // item_bytes)

        def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
            words, numbers, coded, second, low, whole, sums, secret, _ = given
            planes = _Planes(builder, items, whole)
            total = _loaded(builder, sums, 0)
            for stripe in range(16):
                first = stripe * items.count
                joined = planes.joined(coded, second, low, first)
                joined = builder.add(joined, _loaded(builder, numbers, first * item_bytes, items))
                address = builder.add(words, ir.Constant(ir.IntType(64), first * item_bytes))
                store = builder.store(
                    joined, _at(builder, address, items), align=_STRIPE_BYTES if past_caches else 1
                )
                if past_caches:
                    store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
                total = _with_stripe(builder, total, builder.bitcast(joined, _LANES), secret, stripe)
            builder.store(total, _at(builder, sums, _LANES), align=1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, types.boolean, types.int64, types.int64, like), emit

    found: Callable[..., Any] = intrinsic(join)
    return found


class _Planes:
    """Vectors of elements from their planes."""

    def __init__(self, builder: Any, items: Any, whole: Any) -> None:
        """`whole`: whether the first byte is the upper one whole, sign included."""
        self._builder, self._items = builder, items
        self._upper = 8 * (items.element.width // 8 - 1)
        """Where the upper byte begins."""
        self._shift = builder.select(whole, _lanes(self._upper, items), _lanes(self._upper - 1, items))
        self._mask = builder.select(whole, _lanes(0xFF, items), _lanes(0x7F, items))

    def joined(self, coded: Any, second: Any, low: Any, first: int) -> Any:
        """Of the planes at these addresses, from the element `first` on; less what was subtracted."""
        builder, items = self._builder, self._items
        upper, middle = self._widened(coded, first, 8), self._widened(second, first, 8)
        below = builder.and_(middle, self._mask)
        sign = builder.shl(builder.xor(middle, below), _lanes(self._upper, items))
        below = builder.shl(below, _lanes(self._upper - 8, items))
        joined = builder.or_(builder.or_(builder.shl(upper, self._shift), below), sign)
        return joined if self._upper == 8 else builder.or_(joined, self._widened(low, 2 * first, 16))

    def _widened(self, begin: Any, offset: int, bits: int) -> Any:
        kind = ir.VectorType(ir.IntType(bits), self._items.count)
        return self._builder.zext(_loaded(self._builder, begin, offset, kind), self._items)


join_block: Final = _joining(past_caches=False)
stream_block: Final = _joining(past_caches=True)


@intrinsic
def fence(_context: Any) -> Any:
    """Whoever sees what this thread writes from now on sees what it has written so far, past the caches too.

    LLVM's own fence may be a locked instruction on x86, of which LLVM does not say that it is one for what goes past the caches.
    """

    def emit(context: Any, builder: Any, _s: Any, _given: Any) -> Any:
        if _IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse.sfence", (), kind), [])
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


XXH3_SECRET: Final = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
"""The algorithm's own, which is no secret."""
