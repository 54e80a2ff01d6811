"""Memory for code that numba compiles, without numba's own: it is counted at each use, and by what only numba has.

What is here is called from compiled functions alone.
"""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.np import arrayobj

_intrinsic: Any = extending.intrinsic
_I8, _I64 = map(ir.IntType, (8, 64))
_ALIGNED_BYTES: Final = 64


def array_of(
    context: Any, builder: Any, kind: Any, data: Any, shape: list[Any], strides: list[Any] | None = None
) -> Any:
    """An array of numba's over memory that it does not own, at an address or a pointer; contiguous unless `strides`, in bytes, are given."""
    item = context.get_data_type(kind.dtype)
    item_bytes = _I64(context.get_abi_sizeof(item))
    if strides is None:
        strides = [item_bytes]
        for size in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], size))
    array = arrayobj.make_array(kind)(context, builder)
    if data.type == _I64:
        data = builder.inttoptr(data, item.as_pointer())
    arrayobj.populate_array(array, data=data, shape=shape, strides=strides, itemsize=item_bytes, meminfo=None)
    return array._getvalue()  # noqa: SLF001 - what numba's own code calls


def on_stack(item: Any, *shape: int) -> Callable[[], Any]:
    """A function that gives an array of a few kB, undefined, that is gone when its caller returns."""
    kind = types.Array(item, len(shape), "C")

    def emit(context: Any, builder: Any, _s: Any, _given: Any) -> Any:
        num_items = 1
        for size in shape:
            num_items *= size
        with builder.goto_entry_block():
            data = builder.alloca(context.get_data_type(item), max(1, num_items))
            data.align = _ALIGNED_BYTES
        return array_of(context, builder, kind, data, [_I64(size) for size in shape])

    def stack(_context: Any) -> Any:
        return kind(), emit

    found: Callable[[], Any] = _intrinsic(stack)
    return found


@_intrinsic
def allocate(_context: Any, _num_bytes: Any) -> Any:
    """The address of so many bytes, undefined, that `free` gives back. 0 if there are not so many."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        kind = ir.FunctionType(_I8.as_pointer(), [_I64])
        function = cgutils.get_or_insert_function(builder.module, kind, "malloc")
        return builder.ptrtoint(builder.call(function, given), _I64)

    return types.int64(types.int64), emit


@_intrinsic
def free(_context: Any, _address: Any) -> Any:
    """Give back what `allocate` gave."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, kind, "free")
        builder.call(function, [builder.inttoptr(given[0], _I8.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@_intrinsic
def floats_at(_context: Any, _address: Any, shape: Any) -> Any:
    """An array of float32 over what is at an address, of a shape that is a tuple."""
    kind = types.Array(types.float32, len(shape), "C")

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        return array_of(context, builder, kind, given[0], cgutils.unpack_tuple(builder, given[1]))

    return kind(types.int64, types.UniTuple(types.int64, len(shape))), emit
