"""What a process does that has numba compile. Asked by kvstore.code, which loads what it answers."""

import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.np.numpy_support import from_dtype

from kvstore.code import ENTRY, FAILED, REFUSED, Function, target
from kvstore.scratch import array_of

_KNOWN: Final = frozenset({"memcpy", "memset", "memmove", "malloc", "free", "usleep", "sqrtf"})
"""What code may call besides itself: of the C library, which Python's own process has. Of anything else LLVM would end the process that loads it."""

_SCALARS: Final[dict[str, Any]] = {
    "int64": types.int64,
    "float64": types.float64,
    "bool": types.boolean,
    "none": types.none,
}

# What any extension that is compiled against numpy has in it: PyArrayObject_fields and PyArray_Descr, behind the head of an object.
_HEAD: Final = object.__basicsize__
_TYPE, _DATA, _NDIM, _SHAPE, _STRIDES, _DESCR, _FLAGS = (
    _HEAD - 8,
    *(_HEAD + 8 * at for at in (0, 1, 2, 3, 5, 6)),
)
_NUMBER, _ORDER = _HEAD + 12, _HEAD + 10
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400

_I8, _I32, _I64 = map(ir.IntType, (8, 32, 64))


@global_compiler_lock  # numba asks for it
def object_code(function: Function) -> bytes:
    """An object file that needs nothing of numba's."""
    kinds = [_kind(argument) for argument in function.arguments]
    flags: Any = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.nrt, flags.error_model = False, "numpy"
    typing, context = cpu_target.typing_context, cpu_target.target_context
    typing.refresh()
    context.refresh()
    library = context.codegen().create_library(function.name)
    plain = getattr(import_module(function.module), function.name)
    made = compiler.compile_extra(typing, context, plain, tuple(kinds), None, flags, {}, library=library)
    module = library.create_ir_module(ENTRY)
    _Entry(context, module, made, function).build()
    library.add_ir_module(module)
    library.finalize()
    whole = llvm.parse_assembly(library.get_llvm_str())
    named = {one.name for one in [*whole.functions, *whole.global_variables] if one.is_declaration}
    if strange := {name for name in named if not name.startswith("llvm.")} - _KNOWN:
        raise AssertionError(f"{function.name} calls what only numba has: {sorted(strange)}")
    return bytes(_machine().emit_object(whole))


def _kind(argument: str | tuple[str, ...]) -> Any:
    """The type that numba calls it."""
    if not isinstance(argument, str):
        return types.Tuple([_kind(one) for one in argument])
    item, *told = argument.split()
    if not told:
        return _SCALARS[item]
    layout: Any = "A" if "strided" in told else "C"
    read, aligned = "written" not in told, "anywhere" not in told
    return types.Array(from_dtype(np.dtype(item)), int(told[0]), layout, readonly=read, aligned=aligned)


def _machine() -> Any:
    """The code lies where it is loaded, as numba's own does."""
    host, at = llvm.Target.from_default_triple(), target()
    reloc = "static" if host.name.startswith("x86") else "default"
    return host.create_target_machine(
        cpu=at.cpu, features=at.features, opt=3, reloc=reloc, codemodel="jitdefault", jit=True
    )


class _Entry:
    """Writes the function that others call: it makes numba's arrays of numpy's, if these are as they should be."""

    def __init__(self, context: Any, module: Any, made: Any, function: Function) -> None:
        self._context, self._made, self._function = context, made, function
        kinds = [ir.DoubleType() if argument == "float64" else _I64 for argument in ("type", *function.flat)]
        self._entry = ir.Function(module, ir.FunctionType(_I64, kinds), ENTRY)
        self._builder = ir.IRBuilder(self._entry.append_basic_block("begin"))
        self._refused = self._entry.append_basic_block("refused")

    def build(self) -> None:
        builder, context, signature = self._builder, self._context, self._made.signature
        self._array_type, *given = self._entry.args
        left = iter(given)
        values = [
            self._value(next(left), kind, argument)
            if isinstance(argument, str)
            else self._tuple(left, kind, argument)
            for kind, argument in zip(signature.args, self._function.arguments, strict=True)
        ]
        convention, described = context.call_conv, self._made.fndesc
        kind = convention.get_function_type(described.restype, described.argtypes)
        callee = cgutils.get_or_insert_function(builder.module, kind, described.llvm_func_name)
        status, answer = convention.call_function(
            builder, callee, described.restype, described.argtypes, values
        )
        with builder.if_then(status.is_error):
            builder.ret(_I64(FAILED))
        restype = described.restype
        if restype == types.none:
            builder.ret(_I64(0))
        else:
            builder.ret(context.cast(builder, answer, restype, types.int64))
        builder.position_at_end(self._refused)
        builder.ret(_I64(REFUSED))

    def _tuple(self, left: Iterator[Any], kind: Any, arguments: tuple[str, ...]) -> Any:
        pairs = zip(kind.types, arguments, strict=True)
        values = [self._value(next(left), one, argument) for one, argument in pairs]
        return self._context.make_tuple(self._builder, kind, values)

    def _value(self, given: Any, kind: Any, argument: str) -> Any:
        if argument == "none":
            return self._context.get_dummy_value()
        if argument == "bool":
            return self._builder.icmp_unsigned("!=", given, _I64(0))
        if not isinstance(kind, types.Array):
            return given
        self._require(self._read(given, _TYPE), self._array_type)
        self._require(self._read(given, _NDIM, _I32), _I32(kind.ndim))
        described = self._read(given, _DESCR)
        self._require(self._read(described, _NUMBER, _I32), _I32(np.dtype(argument.partition(" ")[0]).num))
        self._refuse_if(self._builder.icmp_unsigned("==", self._read(described, _ORDER, _I8), _I8(ord(">"))))
        needed = (
            (_CONTIGUOUS if kind.layout == "C" else 0)
            | (_WRITEABLE if kind.mutable else 0)
            | (_ALIGNED if kind.aligned else 0)
        )
        flags = self._builder.and_(self._read(given, _FLAGS, _I32), _I32(needed))
        self._require(flags, _I32(needed))
        return self._array(given, kind)

    def _array(self, given: Any, kind: Any) -> Any:
        shape, strides = (
            [self._read(self._read(given, at), 8 * number) for number in range(kind.ndim)]
            for at in (_SHAPE, _STRIDES)
        )
        return array_of(self._context, self._builder, kind, self._read(given, _DATA), shape, strides)

    def _read(self, address: Any, offset: int, kind: Any = _I64) -> Any:
        builder = self._builder
        return builder.load(builder.inttoptr(builder.add(address, _I64(offset)), kind.as_pointer()))

    def _require(self, found: Any, wanted: Any) -> None:
        self._refuse_if(self._builder.icmp_unsigned("!=", found, wanted))

    def _refuse_if(self, is_so: Any) -> None:
        goes_on = self._builder.append_basic_block("on")
        self._builder.cbranch(is_so, self._refused, goes_on)
        self._builder.position_at_end(goes_on)


def main() -> None:
    """Functions in JSON from the standard input; each one's code to the standard output, its size in eight bytes before it."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for whatever else prints
    for module, name, sources, arguments in json.load(sys.stdin):
        kinds = tuple(one if isinstance(one, str) else tuple(one) for one in arguments)
        code = object_code(Function(module, name, tuple(sources), kinds))
        answers.write(len(code).to_bytes(8, "little") + code)
    answers.close()
