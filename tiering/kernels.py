"""The loops over blocks and slots, compiled: see tiering.loops. How that is done, and kept, says kvstore.kernels.

They keep Python's lock: most take a microsecond, and a lock that is given up is quickly somebody else's.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kvstore.kernels import compiled


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled, by the names that they have in tiering.loops."""

    is_eligible: Callable[..., bool]
    are_eligible: Callable[..., None]
    walk: Callable[..., int]
    first_behind: Callable[..., int]
    place_of: Callable[..., int]
    touch: Callable[..., None]
    forget: Callable[..., None]


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
"""The first call compiles them, some ten seconds once on a machine, or loads them, some tenths of one."""


def _all() -> Kernels:
    from numba import config, types

    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise RuntimeError("NUMBA_DISABLE_JIT is set: there can be no index; unset it")

    from tiering import loops

    def array(item: Any, ndim: int = 1) -> Any:
        return types.Array(item, ndim, "C")

    integer, flag, nothing = types.int64, types.boolean, types.void
    longs, ints, flags = array(types.int64), array(types.int32), array(types.boolean)
    # what is only read may be a part of an array, or back to front
    found, ids = array(types.intp), types.Array(types.intp, 1, "A", readonly=True)
    state, readers, held = array(types.uint8, 2), array(types.int16, 2), array(types.uint16, 2)
    rule, columns = (integer, flag), (state, readers, ints, flags, held)
    log = (longs, longs, integer)

    def kernel(function: Callable[..., Any], result: Any, *arguments: Any) -> Callable[..., Any]:
        return compiled(getattr(function, "py_func", function), [result(*arguments)], nogil=False)

    return Kernels(
        is_eligible=kernel(loops.is_eligible, flag, *rule, integer, *columns),
        are_eligible=kernel(loops.are_eligible, nothing, *rule, *columns, ids, flags),
        walk=kernel(loops.walk, integer, *log, longs, ints, longs, *rule, *columns, found),
        first_behind=kernel(loops.first_behind, integer, integer, longs, *rule, *columns, ids),
        place_of=kernel(loops.place_of, integer, *log[::2], integer),
        touch=kernel(loops.touch, nothing, longs, ids, integer),
        forget=kernel(loops.forget, nothing, *log, ints, longs, ids),
    )
