"""The loops over a block's elements, compiled: kvstore.planes and kvstore.loops. See docs/adr/0012 and 0019."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from kvstore.code import Function, loaded

SOURCES: Final = tuple(
    f"kvstore.{name}" for name in ("head", "huffman", "instructions", "loops", "planes", "scratch", "xxh3")
)
"""Of what compiles a proof with the rest of its code: see PROOFS."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled. They release the GIL; any thread may call them. Arrays may lie anywhere, and be read-only where nothing is written."""

    split: Callable[..., int]
    """Of kvstore.planes."""
    join: Callable[..., int]
    """The same."""
    encode: Callable[..., int]
    """Of kvstore.loops."""
    checksum: Callable[..., int]
    """Of kvstore.loops; the lowest 64 bits of what it answers."""
    recognise: Callable[..., int]
    """Of kvstore.loops."""
    restore: Callable[..., int]
    """The same."""


@cache
def kernels(word_bytes: int) -> Kernels:
    """For elements of so many bytes, of FUNCTIONS. The first call loads them, in milliseconds; where they are not kept it has them compiled, which takes seconds (docs/adr/0019). Who
    must not wait then has another thread call it before. Raises StoreFailed where numba is told not to compile.
    """
    return Kernels(*loaded(*FUNCTIONS[word_bytes]))


def _array(item: str, ndim: int = 1, *, written: bool = False) -> str:
    """Looser than arrays need, so that all kinds of arrays fit."""
    return f"{item} {ndim} anywhere" + " written" * written


_READ, _WRITTEN = _array("uint8"), _array("uint8", written=True)

_ENCODE: Final = Function(
    "kvstore.loops",
    "encode",
    SOURCES,
    (
        _READ,
        "int64",
        _array("uint32"),
        _READ,
        _array("bool"),
        _WRITTEN,
        _array("uint32", written=True),
        _WRITTEN,
        _array("int64", written=True),
    ),
)


_CHECKSUM: Final = Function("kvstore.loops", "checksum", SOURCES, (_READ,))

_RECORDS: Final = (_array("int64"),) * 3
"""Addresses, sizes and numbers."""

_RECOGNISE: Final = Function(
    "kvstore.loops",
    "recognise",
    SOURCES,
    (*_RECORDS, _array("uint8", 2), _array("uint64", 2, written=True), _WRITTEN),
)


def _split(word_bytes: int) -> Function:
    return _of_words("split_words", word_bytes, writes_words=False)


def _join(word_bytes: int) -> Function:
    return _of_words("join_words", word_bytes, writes_words=True)


def _of_words(name: str, word_bytes: int, *, writes_words: bool) -> Function:
    words, plane = _word(word_bytes, written=writes_words), _array("uint8", written=not writes_words)
    given = (words, *_numbers(word_bytes), plane, plane, _low(word_bytes, written=not writes_words))
    return Function("kvstore.planes", name, ("kvstore.planes",), given)


def _restore(word_bytes: int) -> Function:
    places = (*_RECORDS, "int64", _array("int64"), _array("uint64", 2), _WRITTEN)
    return Function("kvstore.loops", "restore", SOURCES, (*places, *_way(word_bytes)))


def _way(word_bytes: int) -> tuple[str, ...]:
    """From a payload to elements."""
    code = ("int64", _READ, _array("uint64"), _WRITTEN)
    return (*code, *_numbers(word_bytes), _low(word_bytes, written=False))


def _word(word_bytes: int, *, written: bool) -> str:
    return _array(f"uint{8 * word_bytes}", written=written)


def _numbers(word_bytes: int) -> tuple[str, str, str]:
    return _array(f"uint{8 * word_bytes}", 2), "int64", "int64"


def _low(word_bytes: int, *, written: bool) -> str:
    return "none" if word_bytes == 2 else _array("uint16", written=written)


PROOFS: Final = {
    word_bytes: (_array("uint8", 2), "int64", _array("int64"), *_way(word_bytes)) for word_bytes in (2, 4)
}
"""What kvstore.wanted knows of the records that it can prove, by the bytes of an element."""

FUNCTIONS: Final = {
    word_bytes: (_split(word_bytes), _join(word_bytes), _ENCODE, _CHECKSUM, _RECOGNISE, _restore(word_bytes))
    for word_bytes in PROOFS
}
"""All that is compiled for this, by the bytes of an element."""
