"""The loops over a block's elements, compiled: kvstore.planes and kvstore.loops.

numba compiles them for this processor, with signatures that are given here, so that no argument has another version made while
somebody waits. What it has compiled it keeps beside this file, or where that cannot be written in the user's cache directory
(NUMBA_CACHE_DIR names another), for later processes; what turns out to be damaged is deleted; where nothing can be kept each
process compiles for itself.
See docs/adr/0012.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from kvstore.errors import StoreFailed
from kvstore.planes import join_words, split_words

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled. They release the GIL; any thread may call them. Arrays may lie anywhere, and be read-only where nothing is written."""

    split: Callable[..., None]
    """Of kvstore.planes."""
    join: Callable[..., None]
    """Of kvstore.planes."""
    encode: Callable[..., int]
    """Of kvstore.loops."""
    recognise: Callable[..., None]
    """Of kvstore.loops."""
    restore: Callable[..., None]
    """Of kvstore.loops."""


class _Once:
    """The kernels of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # two threads would compile the same
        self._kernels: Kernels | None = None

    def get(self) -> Kernels:
        if self._kernels is None:
            with self._lock:
                if self._kernels is None:
                    self._kernels = _all()
        return self._kernels


kernels: Final = _Once().get
"""The first call compiles them, or loads them: seconds, or half of one (docs/adr/0012). Who must not wait then has another thread
call it before. Raises StoreFailed where numba is told not to compile.
"""


def _all() -> Kernels:
    from numba import config, types

    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise StoreFailed("NUMBA_DISABLE_JIT is set: no block can be encoded or decoded; unset it")

    from kvstore import loops

    read, written = _array(types.uint8, written=False), _array(types.uint8, written=True)
    encode = types.int64(
        read,
        types.int64,
        _array(types.uint32, written=False),
        _array(types.boolean, written=False),
        written,
        _array(types.uint32, written=True),
        written,
        _array(types.int64, written=True),
    )

    records = (_array(types.int64, written=False),) * 3
    checksums = _array(types.uint64, 2, written=True)
    recognise = types.void(*records, _array(types.uint8, 2, written=False), checksums, written)

    def restore(word: Any, low: Any) -> Any:
        places = *records, types.int64, records[0], checksums, written
        code = read, _array(types.uint64, written=False), written
        numbers = _array(word, 2, written=False), types.int64, types.int64
        return types.void(*places, types.int64, *code, *numbers, low)

    low = _array(types.uint16, written=False)
    return Kernels(
        compiled_words(split_words, writes_words=False),
        compiled_words(join_words, writes_words=True),
        compiled(loops.encode, [encode]),
        compiled(loops.recognise, [recognise]),
        compiled(loops.restore, [restore(types.uint16, types.none), restore(types.uint32, low)]),
    )


def _array(item: Any, ndim: int = 1, *, written: bool) -> Any:
    """Looser than arrays need, so that all kinds of arrays fit the same signature."""
    from numba import types

    return types.Array(item, ndim, "C", readonly=not written, aligned=False)


def compiled_words(function: Callable[..., None], *, writes_words: bool) -> Callable[..., None]:
    """`split_words` or `join_words`, of words of 16 and of 32 bits."""
    from numba import types

    def signature(word: Any, low: Any) -> Any:
        words, plane = _array(word, written=writes_words), _array(types.uint8, written=not writes_words)
        numbers = _array(word, 2, written=False), types.int64, types.int64
        return types.void(words, *numbers, plane, plane, low)

    low = _array(types.uint16, written=not writes_words)
    return compiled(function, [signature(types.uint16, types.none), signature(types.uint32, low)])


def compiled(function: Callable[..., Any], signatures: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """A function compiled for these signatures, without the GIL, and kept for later processes where that can be."""
    from numba import njit

    options["nogil"] = True
    try:
        made = njit(signatures, cache=True, **options)(function)
        if made.stats.cache_misses:
            _bring_to_disk(_files(made))
        return cast("Callable[..., Any]", made)
    except Exception as error:  # noqa: BLE001 - what is kept may be damaged in any way; compiling anew tells what else is wrong
        with suppress(OSError, RuntimeError):  # nothing can be kept, or deleted
            for damaged in _files(njit(cache=True)(function)):
                damaged.unlink(missing_ok=True)  # or every process to come met it
        facts = {"error": error}
        _log.warning(
            "compiled code could not be found or kept, this process compiles its own: %(error)s",
            facts,
            extra=facts,
        )
        return cast("Callable[..., Any]", njit(signatures, **options)(function))


def _files(made: Any) -> list[Path]:
    """What is kept of a function."""
    function = made.py_func
    module = Path(function.__code__.co_filename).stem
    return list(Path(made.stats.cache_path).glob(f"{module}.{function.__qualname__}-*"))


def _bring_to_disk(paths: Iterable[Path]) -> None:
    """Code of which a loss of power has left a part ends the process that runs it."""
    for path in paths:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
