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
    node_runs: Callable[..., int]
    change_slots: Callable[..., bool]
    take_slots: Callable[..., None]
    free_slots: Callable[..., bool]
    add: Callable[..., bool]
    change_state: Callable[..., bool]
    place_copies: Callable[..., bool]
    drop_copies: Callable[..., bool]
    add_readers: Callable[..., bool]
    enter: Callable[..., None]
    free_blocks: Callable[..., bool]
    chain: Callable[..., None]
    sort_by_copies: Callable[..., tuple[int, int]]
    sort_by_ties: Callable[..., int]
    find_nowhere: Callable[..., int]
    find_unkeyed: Callable[..., int]
    nearest_tiers: Callable[..., None]
    num_usable: Callable[..., int]
    num_absent: Callable[..., int]


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

    from tiering.loops import blocks, order

    def array(item: Any, ndim: int = 1) -> Any:
        return types.Array(item, ndim, "C")

    def given(item: Any) -> Any:
        """What is only read may be a part of an array, or back to front."""
        return types.Array(item, 1, "A", readonly=True)

    integer, flag, nothing = types.int64, types.boolean, types.void
    longs, ints, flags = array(types.int64), array(types.int32), array(types.boolean)
    found, ids, slots = array(types.intp), given(types.intp), (given(types.intp), given(types.int32))
    state, readers, held = array(types.uint8, 2), array(types.int16, 2), array(types.uint16, 2)
    rule, ties = (integer, flag), (state, readers, ints, flags, held)
    bytes_ = array(types.uint8)
    pair = types.Tuple((types.int64, types.int64))  # type: ignore[no-untyped-call]
    log, blank = (longs, longs, integer), (ints, ints, longs, ints, ints)

    def kernel(function: Callable[..., Any], result: Any, *arguments: Any) -> Callable[..., Any]:
        """One version, or one for each type of the last argument."""
        *others, last = arguments
        lasts = last if isinstance(last, tuple) else (last,)
        signatures = [result(*others, each) for each in lasts]
        return compiled(getattr(function, "py_func", function), signatures, nogil=False)

    return Kernels(
        is_eligible=kernel(order.is_eligible, flag, *rule, integer, *ties),
        are_eligible=kernel(order.are_eligible, nothing, *rule, *ties, ids, flags),
        walk=kernel(order.walk, integer, *log, integer, longs, ints, longs, *rule, *ties, found),
        first_behind=kernel(order.first_behind, integer, integer, longs, *rule, *ties, ids),
        place_of=kernel(order.place_of, integer, *log[::2], integer),
        touch=kernel(order.touch, nothing, longs, ids, integer),
        forget=kernel(order.forget, nothing, *log, ints, longs, ids),
        node_runs=kernel(blocks.node_runs, integer, ints, ids, found),
        change_slots=kernel(blocks.change_slots, flag, bytes_, integer, integer, slots),
        take_slots=kernel(blocks.take_slots, nothing, bytes_, ints, integer, integer, integer, found),
        free_slots=kernel(blocks.free_slots, flag, bytes_, ints, integer, integer, slots),
        add=kernel(blocks.add, flag, ints, integer, ids),
        change_state=kernel(blocks.change_state, flag, bytes_, integer, integer, ids),
        place_copies=kernel(blocks.place_copies, flag, bytes_, ints, integer, ids, ids),
        drop_copies=kernel(blocks.drop_copies, flag, bytes_, array(types.int16), integer, ids),
        add_readers=kernel(blocks.add_readers, flag, array(types.int16), bytes_, integer, ids),
        enter=kernel(blocks.enter, nothing, flags, ints, ints, ids),
        free_blocks=kernel(
            blocks.free_blocks, flag, flags, ints, ints, state, readers, *blank, flags, ints, integer, ids
        ),
        chain=kernel(blocks.chain, nothing, ints, ints, integer, ids),
        sort_by_copies=kernel(blocks.sort_by_copies, pair, state, integer, ids, found, found),
        sort_by_ties=kernel(
            blocks.sort_by_ties, integer, ints, state, readers, held, ints, ints, ids, found, found
        ),
        find_nowhere=kernel(blocks.find_nowhere, integer, flags, state, ids, found),
        find_unkeyed=kernel(blocks.find_unkeyed, integer, ints, flags, ids, found),
        nearest_tiers=kernel(blocks.nearest_tiers, nothing, state, ids, found),
        num_usable=kernel(blocks.num_usable, integer, state, flags, integer, ids),
        num_absent=kernel(blocks.num_absent, integer, state, flags, ids),
    )
