"""What code that numba compiles has no words for: numbers at any address, and the steps of XXH3 on whole registers.

What is here is called from compiled functions alone. Addresses are int64, need not be aligned, and are not looked at: who calls sees
to it that they lie within an array.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import extending, types

from kvstore.scratch import array_of

intrinsic: Any = extending.intrinsic
"""Its type says that what it makes is called as it is written, with the context; it is called without."""

_LANES: Final = ir.VectorType(ir.IntType(64), 8)
_NEIGHBOURS: Final = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])
_STRIPE_BYTES: Final = 64


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


def _adding(num_stripes: int) -> Callable[..., Any]:
    """An intrinsic that adds so many stripes of 64 bytes at `data` to the eight sums at `sums`, with keys from `secret` on."""

    def add(_context: Any, _sums: Any, _data: Any, _secret: Any) -> Any:
        def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
            def lanes(number: int) -> Any:
                return ir.Constant(_LANES, [number] * 8)

            def loaded(begin: Any, offset: int) -> Any:
                address = builder.add(begin, ir.Constant(ir.IntType(64), offset))
                return builder.load(_at(builder, address, _LANES), align=1)

            sums, data, secret = given
            total = loaded(sums, 0)
            for stripe in range(num_stripes):
                numbers = loaded(data, stripe * _STRIPE_BYTES)
                keyed = builder.xor(numbers, loaded(secret, stripe * 8))
                product = builder.mul(builder.and_(keyed, lanes(0xFFFFFFFF)), builder.lshr(keyed, lanes(32)))
                swapped = builder.shuffle_vector(numbers, numbers, _NEIGHBOURS)
                total = builder.add(total, builder.add(product, swapped))
            builder.store(total, _at(builder, sums, _LANES), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), emit

    found: Callable[..., Any] = intrinsic(add)
    return found


add_block: Final = _adding(16)
add_stripe: Final = _adding(1)

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
