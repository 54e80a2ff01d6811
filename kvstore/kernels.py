"""The loops over a block's elements, compiled: the bits of elements into planes, and planes into elements.

numba compiles them for this processor, with signatures that are given here, so that no argument has another version made while
somebody waits. What it has compiled it keeps beside this file, or where that cannot be written in the user's cache directory
(NUMBA_CACHE_DIR names another), for later processes; what turns out to be damaged is deleted; where nothing can be kept each
process compiles for itself.
See docs/adr/0012. What the planes are says kvstore.codec.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled. They release the GIL; any thread may call them. Arrays may lie anywhere, and be read-only where nothing is written."""

    split: Callable[..., None]
    """Of `_split`."""
    join: Callable[..., None]
    """Of `_join`."""


class _Once:
    """The kernels of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # two threads would compile the same
        self._kernels: Kernels | None = None

    def get(self) -> Kernels:
        if self._kernels is None:
            with self._lock:
                if self._kernels is None:
                    self._kernels = Kernels(
                        _compiled(_split, writes_words=False), _compiled(_join, writes_words=True)
                    )
        return self._kernels


kernels: Final = _Once().get
"""The first call compiles them, or loads them: seconds, or half of one (docs/adr/0012). Who must not wait then has another thread
call it before.
"""


def _compiled(function: Callable[..., None], *, writes_words: bool) -> Callable[..., None]:
    """Of words of 16 and of 32 bits. Looser signatures than arrays need, so that all kinds of arrays fit the same ones."""
    from numba import types

    def array(item: Any, ndim: int, *, written: bool) -> Any:
        return types.Array(item, ndim, "C", readonly=not written, aligned=False)

    def signature(word: Any, low: Any) -> Any:
        words, planes = array(word, 1, written=writes_words), array(types.uint8, 1, written=not writes_words)
        return types.void(words, array(word, 2, written=False), types.int64, types.int64, planes, planes, low)

    low = array(types.uint16, 1, written=not writes_words)
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


def _split(
    words: Any, numbers: Any, group_rows: int, first_bit: int, coded: Any, second: Any, low: Any
) -> None:
    """Part `words` [n] into `coded` [n], `second` [n] and, of 32 bits only, `low` [n], which is None otherwise.

    Rows have as many elements as `numbers` [groups, channels] has channels, the last one maybe fewer; a group has `group_rows` rows.
    """
    word = words.dtype.type
    bits = 16 if low is None else 32
    channels = numbers.shape[1]
    for row in range((words.size + channels - 1) // channels):
        begin = row * channels
        end = min(begin + channels, words.size)
        number, of_row = numbers[row // group_rows], words[begin:end]
        to_coded, to_second = coded[begin:end], second[begin:end]
        to_low = None if low is None else low[begin:end]
        if first_bit == bits - 8:
            for i in range(end - begin):
                left = word(of_row[i] - number[i])
                to_coded[i] = np.uint8(left >> (bits - 8))
                to_second[i] = np.uint8(left >> (bits - 16))
                if to_low is not None:
                    to_low[i] = np.uint16(left)
        else:
            for i in range(end - begin):
                left = word(of_row[i] - number[i])
                to_coded[i] = np.uint8(left >> (bits - 9))
                to_second[i] = np.uint8((left >> (bits - 16)) & 0x7F | (left >> (bits - 8)) & 0x80)
                if to_low is not None:
                    to_low[i] = np.uint16(left)


def _join(
    words: Any, numbers: Any, group_rows: int, first_bit: int, coded: Any, second: Any, low: Any
) -> None:
    """Undo `_split`: fill `words`."""
    word = words.dtype.type
    bits = 16 if low is None else 32
    channels = numbers.shape[1]
    for row in range((words.size + channels - 1) // channels):
        begin = row * channels
        end = min(begin + channels, words.size)
        number, of_row = numbers[row // group_rows], words[begin:end]
        from_coded, from_second = coded[begin:end], second[begin:end]
        from_low = None if low is None else low[begin:end]
        if first_bit == bits - 8:
            for i in range(end - begin):
                left = word(word(from_coded[i]) << (bits - 8) | word(from_second[i]) << (bits - 16))
                if from_low is not None:
                    left |= word(from_low[i])
                of_row[i] = word(left + number[i])
        else:
            for i in range(end - begin):
                upper = word(from_second[i])
                left = word(
                    word(from_coded[i]) << (bits - 9)
                    | (upper & 0x7F) << (bits - 16)
                    | (upper & 0x80) << (bits - 8)
                )
                if from_low is not None:
                    left |= word(from_low[i])
                of_row[i] = word(left + number[i])
