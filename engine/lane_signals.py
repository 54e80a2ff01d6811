"""Numbers that threads share, the clock, and rest, for code that numba compiles: written in LLVM's own instructions.

What is here is called from compiled functions alone. Addresses are int64, of an int64.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .lane_vectors import I32, I64, intrinsic


@intrinsic
def next_number(_context: Any, _address: Any) -> Any:
    """The number at an address, that is one more for whoever comes next."""
    return types.int64(types.int64), _adding_one("monotonic")


@intrinsic
def count(_context: Any, _address: Any) -> Any:
    """Add one to the number at an address, once all that was written before can be seen. Gives what it was."""
    return types.int64(types.int64), _adding_one("acq_rel")


def _adding_one(ordering: str) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        counter = builder.inttoptr(given[0], I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(I64, 1), ordering)

    return emit


@intrinsic
def seen(_context: Any, _address: Any) -> Any:
    """The number at an address, with all that was written before it was."""

    def emit(_c: Any, builder: Any, _s: Any, given: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(given[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def ticks(_context: Any) -> Any:
    """The processor's clock."""

    def emit(_c: Any, builder: Any, _s: Any, _given: Any) -> Any:
        kind = ir.FunctionType(I64, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), emit


@intrinsic
def rest(_context: Any) -> Any:
    """Let a loop that waits take less of the core."""

    def emit(context: Any, builder: Any, _s: Any, _given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def sleep(_context: Any, _microseconds: Any) -> Any:
    """At least so long."""

    def emit(context: Any, builder: Any, _s: Any, given: Any) -> Any:
        kind = ir.FunctionType(I32, [I32])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "usleep"), given)
        return context.get_dummy_value()

    return types.void(types.uint32), emit
