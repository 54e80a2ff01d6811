"""What a process does that has numba compile. Asked by kvstore.code, which loads what it answers."""

import gc
import json
import os
import sys
from importlib import import_module
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.np.numpy_support import from_dtype

from kvstore.code import Function
from kvstore.linking import kept_code
from kvstore.machine_code import BOUND, ENTRY, PYTHONS, SYMBOLS
from kvstore.scratch import array_of
from kvstore.target import target

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

_ITEMS: Final = tuple.__basicsize__
_I1, _I8, _I32, _I64 = map(ir.IntType, (1, 8, 32, 64))
_F64, _VOID = ir.DoubleType(), ir.VoidType()


class _NeverRun(codegen.JITCodeLibrary):
    """Of a function that is only compiled into others. numba would make machine code of each by itself, to be called from here."""

    def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002 - as it is called
        """No address, and not none either: of that numba would make no function."""
        return 1

    def _finalize_specific(self) -> None:
        pass


class _Codegen(codegen.JITCPUCodegen):
    """Optimises for what code is loaded into later, and loads none itself: a third less to do."""

    _library_class = _NeverRun

    def _add_module(self, module: Any) -> None:
        pass

    def set_env(self, env_name: str, env: Any) -> None:
        """There is none: no code here calls Python's."""


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
    if strange := {name for name in named if not name.startswith("llvm.")} - set(SYMBOLS):
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
    """Writes the function that Python calls: it makes numba's arrays of numpy's, if these are as they should be."""

    def __init__(self, context: Any, module: Any, made: Any, function: Function) -> None:
        self._context, self._made, self._function = context, made, function
        entry = ir.Function(module, ir.FunctionType(_I64, [_I64] * 3), ENTRY)
        self._builder = ir.IRBuilder(entry.append_basic_block("begin"))
        bound, self._given, self._num_given = entry.args
        self._array_type, self._type_error, self._memory_error = (
            self._read(bound, _ITEMS + 8 * at) for at in range(len(BOUND))
        )

    def build(self) -> None:
        arguments = self._function.arguments
        wrong = self._builder.icmp_signed("!=", self._num_given, _I64(len(arguments)))
        self._raise_if(wrong, self._type_error, f"takes {len(arguments)} arguments")
        objects = [self._objects(at, argument) for at, argument in enumerate(arguments)]
        # numbers first: the way to one may be Python's, which could change an array
        found = {
            (at, part): self._value(given, argument, at)
            for is_array in (False, True)
            for at, group in enumerate(objects)
            for part, (given, argument) in enumerate(group)
            if (" " in argument) == is_array
        }
        values = []
        for at, (group, kind) in enumerate(zip(objects, self._made.signature.args, strict=True)):
            parts = [found[at, part] for part in range(len(group))]
            is_tuple = isinstance(kind, types.BaseTuple)
            values.append(self._context.make_tuple(self._builder, kind, parts) if is_tuple else parts[0])
        self._call(values)

    def _call(self, values: list[Any]) -> None:
        builder, described = self._builder, self._made.fndesc
        convention = self._context.call_conv
        kind = convention.get_function_type(described.restype, described.argtypes)
        callee = cgutils.get_or_insert_function(builder.module, kind, described.llvm_func_name)
        releases = not self._function.keeps_gil
        thread = self._python("PyEval_SaveThread", _I64) if releases else None
        status, answer = convention.call_function(
            builder, callee, described.restype, described.argtypes, values
        )
        if releases:
            self._python("PyEval_RestoreThread", _VOID, thread)
        self._raise_if(status.is_error, self._memory_error, "had no memory to work in")
        if described.restype == types.boolean:
            builder.ret(self._python("PyBool_FromLong", _I64, builder.zext(answer, _I64)))
        elif described.restype == types.none:
            builder.ret(self._python("PyLong_FromLongLong", _I64, _I64(0)))
        else:
            number = self._context.cast(builder, answer, described.restype, types.int64)
            builder.ret(self._python("PyLong_FromLongLong", _I64, number))

    def _objects(self, at: int, argument: str | tuple[str, ...]) -> list[tuple[Any, str]]:
        """What is given as an argument: one object, or those in a tuple."""
        given = self._read(self._given, 8 * at)
        if isinstance(argument, str):
            return [(given, argument)]
        size = self._python("PyTuple_Size", _I64, given)
        wrong = self._builder.icmp_signed("!=", size, _I64(len(argument)))
        self._raise_if(wrong, self._type_error, f"takes a tuple of {len(argument)} as argument {at}")
        return [
            (self._python("PyTuple_GetItem", _I64, given, _I64(part)), one)
            for part, one in enumerate(argument)
        ]

    def _value(self, given: Any, argument: str, at: int) -> Any:
        match argument:
            case "none":
                return self._context.get_dummy_value()
            case "int64":
                return self._number("PyLong_AsLongLong", _I64, given)
            case "float64":
                return self._number("PyFloat_AsDouble", _F64, given)
            case "bool":
                found = self._python("PyObject_IsTrue", _I32, given)
                self._fail_if(self._builder.icmp_signed("<", found, _I32(0)))
                return self._builder.trunc(found, _I1)
        kind = _kind(argument)
        described = self._read(given, _DESCR)
        item, big = np.dtype(argument.partition(" ")[0]).num, _I8(ord(">"))
        needed = (
            (_CONTIGUOUS if kind.layout == "C" else 0)
            | (_WRITEABLE if kind.mutable else 0)
            | (_ALIGNED if kind.aligned else 0)
        )
        told = f"is not compiled for argument {at}: it takes an array, {argument}"
        self._require(self._read(given, _TYPE), self._array_type, told)
        self._require(self._read(given, _NDIM, _I32), _I32(kind.ndim), told)
        self._require(self._read(described, _NUMBER, _I32), _I32(item), told)
        order = self._read(described, _ORDER, _I8)
        self._raise_if(self._builder.icmp_unsigned("==", order, big), self._type_error, told)
        flags = self._builder.and_(self._read(given, _FLAGS, _I32), _I32(needed))
        self._require(flags, _I32(needed), told)
        return self._array(given, kind)

    def _array(self, given: Any, kind: Any) -> Any:
        shape, strides = (
            [self._read(self._read(given, at), 8 * number) for number in range(kind.ndim)]
            for at in (_SHAPE, _STRIDES)
        )
        return array_of(self._context, self._builder, kind, self._read(given, _DATA), shape, strides)

    def _number(self, converter: str, kind: Any, given: Any) -> Any:
        """What is none has Python's own exception, and is -1 beside it."""
        found = self._python(converter, kind, given)
        builder, minus_one = self._builder, kind(-1)
        may_be = (
            builder.fcmp_ordered("==", found, minus_one)
            if kind is _F64
            else builder.icmp_signed("==", found, minus_one)
        )
        with builder.if_then(may_be, likely=False):
            raised = self._python("PyErr_Occurred", _I64)
            self._fail_if(builder.icmp_unsigned("!=", raised, _I64(0)))
        return found

    def _python(self, name: str, kind: Any, *given: Any) -> Any:
        """Call one of PYTHONS."""
        assert name in PYTHONS
        form = ir.FunctionType(kind, [one.type for one in given])
        return self._builder.call(cgutils.get_or_insert_function(self._builder.module, form, name), given)

    def _read(self, address: Any, offset: int, kind: Any = _I64) -> Any:
        builder = self._builder
        return builder.load(builder.inttoptr(builder.add(address, _I64(offset)), kind.as_pointer()))

    def _require(self, found: Any, wanted: Any, told: str) -> None:
        self._raise_if(self._builder.icmp_unsigned("!=", found, wanted), self._type_error, told)

    def _raise_if(self, is_so: Any, error: Any, told: str) -> None:
        builder = self._builder
        with builder.if_then(is_so, likely=False):
            text = f"{self._function.name} {told}"
            address = builder.ptrtoint(self._context.insert_const_string(builder.module, text), _I64)
            self._python("PyErr_SetString", _VOID, error, address)
            builder.ret(_I64(0))

    def _fail_if(self, has_raised: Any) -> None:
        with self._builder.if_then(has_raised, likely=False):
            self._builder.ret(_I64(0))


def main() -> None:
    """Functions in JSON from the standard input; each one's code to the standard output, its size in eight bytes before it."""
    codegen.JITCPUCodegen = _Codegen  # type: ignore[misc]  # before the first use of `cpu_target`, which makes one
    gc.disable()  # all that is made stays until it ends: a tenth of the time
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for whatever else prints
    for module, name, sources, arguments, keeps_gil in json.load(sys.stdin):
        kinds = tuple(one if isinstance(one, str) else tuple(one) for one in arguments)
        code = kept_code(object_code(Function(module, name, tuple(sources), kinds, keeps_gil)))
        answers.write(len(code).to_bytes(8, "little") + code)
    answers.close()
