"""Compiled functions as they are kept, and how they become functions of CPython's.

Where kvstore.linking has laid code out, it is copied, and the addresses that it asks for are filled in: that takes a hundredth of a
millisecond. Elsewhere, as for other processors than x86-64, LLVM's own loader does it, which llvmlite has: a millisecond, and tens of them
to import it. See docs/adr/0019.
"""

import ctypes
import mmap
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import StoreFailed

ENTRY: Final = "kvtide_entry"
"""The symbol of a function's code: a METH_FASTCALL of CPython's, bound to BOUND."""

BOUND: Final = (np.ndarray, TypeError, MemoryError)
"""What the code must know of this process."""

PYTHONS: Final = (
    "PyBool_FromLong",
    "PyErr_Occurred",
    "PyErr_SetString",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyFloat_AsDouble",
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
    "PyObject_IsTrue",
    "PyTuple_GetItem",
    "PyTuple_Size",
)
"""What it calls of Python's, all of the stable ABI."""

_LIBRARYS: Final = ("free", "malloc", "memcpy", "memmove", "memset", "sqrtf", "usleep")
SYMBOLS: Final = (*PYTHONS, *_LIBRARYS)
"""All that code may call besides itself: of Python and of the C library, which Python's own process has."""

UNIT: Final = 64
"""Bytes, at multiples of which each image begins: no part of one asks for more."""

_IMAGE, _OBJECT = b"image\0\0\0", b"object\0\0"
"""What is kept begins with one of these."""
_COUNTS: Final = struct.Struct("<qq")
"""Of an image: where the function begins, and how many places get an address. Then the places, and the content."""


class Image(NamedTuple):
    """Code laid out. entry: where the function begins.   places: int64 [n, 3], for each of 8 bytes that get an address: where they are; of what
    it is the address, 0 for the image itself, else one of SYMBOLS, counted from 1; and what is added.
    """

    entry: int
    places: NDArray[np.int64]
    content: bytes


def image_bytes(image: Image) -> bytes:
    """As it is kept."""
    return b"".join(
        (_IMAGE, _COUNTS.pack(image.entry, len(image.places)), image.places.tobytes(), image.content)
    )


def object_bytes(code: bytes) -> bytes:
    """An object file as it is kept."""
    return _OBJECT + code


def _image(kept: bytes) -> Image | None:
    """None for an object file."""
    if not kept.startswith(_IMAGE):
        return None
    entry, count = _COUNTS.unpack_from(kept, len(_IMAGE))
    begin = len(_IMAGE) + _COUNTS.size
    places = np.frombuffer(kept, np.int64, 3 * count, begin).reshape(-1, 3)
    return Image(entry, places, kept[begin + places.nbytes :])


def loaded_code(
    kept: Sequence[bytes], names: Sequence[str], modules: Sequence[str]
) -> list[Callable[..., int]]:
    """Functions, of what is kept of them. Who calls knows that it is whole, and was made for this processor."""
    images = [_image(one) for one in kept]
    addresses = iter(_placed([image for image in images if image is not None]))
    return [
        _builtin(_by_llvm(one[len(_OBJECT) :]) if image is None else next(addresses), name, module)
        for one, image, name, module in zip(kept, images, names, modules, strict=True)
    ]


# --- memory -----------------------------------------------------------------------------------------------------------

_READ, _RUN = 0x1, 0x4
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _placed(images: list[Image]) -> list[int]:
    """Where each one's function begins now. Memory is written first, and may then be run, but no more be written."""
    begins, size = [], 0
    for image in images:
        begins.append(size)
        size += -(-len(image.content) // UNIT) * UNIT
    if not size:
        return []
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint8)
    base = int(array.ctypes.data)
    for begin, image in zip(begins, images, strict=True):
        memory[begin : begin + len(image.content)] = image.content
        at, target, added = image.places.T
        addresses = np.array([base + begin, *_addresses()], np.uint64)[target] + added.astype(np.uint64)
        array[begin + at[:, None] + np.arange(8)] = addresses.view(np.uint8).reshape(-1, 8)
    if _libc.mprotect(base, size, _READ | _RUN):
        raise StoreFailed(f"no memory can be had that code may be run in (errno {ctypes.get_errno()})")
    _keep(array)
    return [base + begin + image.entry for begin, image in zip(begins, images, strict=True)]


def _keep(owner: Any) -> None:
    """What owns the memory that code was loaded into, or what Python says of it, is there as long as this process: longer than the interpreter,
    as a thread that waits in such code when that ends comes back to it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


@cache
def _addresses() -> list[int]:
    """Of SYMBOLS."""
    try:
        found = [_address(ctypes.pythonapi[name]) for name in PYTHONS]
        return [*found, *(_address(_libc[name]) for name in _LIBRARYS)]
    except AttributeError as error:
        raise StoreFailed(f"this Python lacks what compiled code calls: {error}") from error


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _loader() -> Any:
    """LLVM's, which knows where Python's functions are, whichever library they are in."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name, address in zip(SYMBOLS, _addresses(), strict=True):
        if name in PYTHONS:
            llvm.add_symbol(name, address)
    return llvm.Target.from_default_triple()


def _by_llvm(code: bytes) -> int:
    """Where an object file's function begins now."""
    import llvmlite.binding as llvm

    machine = _loader().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _keep(engine)
    return int(engine.get_function_address(ENTRY))


# --- functions --------------------------------------------------------------------------------------------------------


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL: Final = 0x80
_new_builtin: Final = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.py_object
)(("PyCFunction_NewEx", ctypes.pythonapi))


def _builtin(address: int, name: str, module: str) -> Callable[..., int]:
    method = _Method(name.encode(), address, _FASTCALL, None)
    _keep(method)
    made: Callable[..., int] = _new_builtin(ctypes.addressof(method), BOUND, module)
    return made
