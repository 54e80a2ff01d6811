"""The loops over blocks and slots, compiled: see tiering.loops. How that is done, and kept, says docs/adr/0019.

They keep Python's lock: most take a microsecond, and a lock that is given up is quickly somebody else's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from kvstore.code import Function, loaded


@dataclass(frozen=True)
class Kernels:
    """Compiled, by the names that they have in tiering.loops. Without slots: what is called from a slot is looked up anew each time."""

    is_eligible: Callable[..., int]
    are_eligible: Callable[..., int]
    walk: Callable[..., int]
    peek: Callable[..., int]
    rewind: Callable[..., int]
    place_of: Callable[..., int]
    touch: Callable[..., int]
    forget: Callable[..., int]
    take_slots: Callable[..., int]
    count_found: Callable[..., int]
    copies_begin: Callable[..., int]
    copies_arrive: Callable[..., int]
    copies_leave: Callable[..., int]
    copies_read: Callable[..., int]
    copies_awaited: Callable[..., int]
    give_out: Callable[..., int]
    free_blocks: Callable[..., int]
    follow: Callable[..., int]
    chain: Callable[..., int]
    name_blocks: Callable[..., int]
    find_child: Callable[..., int]
    descend: Callable[..., int]
    link: Callable[..., int]
    unlink: Callable[..., int]
    move_places: Callable[..., int]
    lay: Callable[..., int]
    plant: Callable[..., int]
    take_off: Callable[..., int]
    name_run: Callable[..., int]
    along: Callable[..., int]
    gather: Callable[..., int]
    sort_leaving: Callable[..., int]
    sort_by_way_down: Callable[..., int]
    num_last_in: Callable[..., int]
    find_unused: Callable[..., int]
    sort_by_ties: Callable[..., int]
    take_keys: Callable[..., int]
    put_keys: Callable[..., int]
    find_nowhere: Callable[..., int]
    find_unkeyed: Callable[..., int]
    nearest_tiers: Callable[..., int]
    found_in: Callable[..., int]
    num_usable: Callable[..., int]
    num_absent: Callable[..., int]
    find_older: Callable[..., int]
    oldest_of: Callable[..., int]
    count_blocks: Callable[..., int]
    count_use: Callable[..., int]
    mark_owners: Callable[..., int]
    stand: Callable[..., int]
    split: Callable[..., int]
    find_dirty: Callable[..., int]
    are_in_part: Callable[..., int]
    walk_part: Callable[..., int]
    oldest_in_part: Callable[..., int]
    change_slots: Mapping[int, Callable[..., int]]
    """By the bytes of a slot's number."""
    free_slots: Mapping[int, Callable[..., int]]
    """The same."""


@cache
def kernels() -> Kernels:
    """The first call loads them, in milliseconds; where they are not kept it has them compiled, which takes seconds. Raises StoreFailed
    where numba is told not to compile.
    """
    slots = [_SLOTS[name](bytes_) for name in _SLOTS for bytes_ in _SLOT_BYTES]
    made = loaded(*_FUNCTIONS, *slots)
    plain: dict[str, Any] = {function.name: call for function, call in zip(_FUNCTIONS, made, strict=False)}
    left = iter(made[len(_FUNCTIONS) :])
    by_slot: dict[str, Any] = {name: {bytes_: next(left) for bytes_ in _SLOT_BYTES} for name in _SLOTS}
    return Kernels(**plain, **by_slot)


def _order(name: str, *arguments: str | tuple[str, ...]) -> Function:
    sources = ("tiering.loops.order", "tiering.loops.states", "tiering.rules")
    return Function("tiering.loops.order", name, sources, arguments, keeps_gil=True)


def _blocks(name: str, *arguments: str | tuple[str, ...]) -> Function:
    sources = ("tiering.loops.blocks", "tiering.loops.states")
    return Function("tiering.loops.blocks", name, sources, arguments, keeps_gil=True)


def _slots(name: str, *arguments: str) -> Function:
    sources = ("tiering.loops.slots", "tiering.loops.states")
    return Function("tiering.loops.slots", name, sources, arguments, keeps_gil=True)


def _copies(name: str, *arguments: str | tuple[str, ...]) -> Function:
    sources = ("tiering.loops.copies", "tiering.loops.order", "tiering.loops.states", "tiering.rules")
    return Function("tiering.loops.copies", name, sources, arguments, keeps_gil=True)


def _fingerprints(name: str, *arguments: str) -> Function:
    sources = (
        "tiering.loops.fingerprints",
        "tiering.loops.states",
        "kvstore.instructions",
        "kvstore.scratch",
    )
    return Function("tiering.loops.fingerprints", name, sources, arguments, keeps_gil=True)


def _owners(name: str, *arguments: str) -> Function:
    return Function("tiering.loops.owners", name, ("tiering.loops.owners",), arguments, keeps_gil=True)


def _parts(name: str, *arguments: str | tuple[str, ...]) -> Function:
    sources = ("tiering.loops.parts", "tiering.loops.order", "tiering.loops.states", "tiering.rules")
    return Function("tiering.loops.parts", name, sources, arguments, keeps_gil=True)


def _tree(name: str, *arguments: str | tuple[str, ...]) -> Function:
    sources = ("tiering.loops.tree", "tiering.loops.states")
    return Function("tiering.loops.tree", name, sources, arguments, keeps_gil=True)


# Columns, some of which are changed; `_IDS` are only read, and may be a part of an array, or back to front.
_LONGS, _INTS, _FLAGS, _BYTES = (f"{item} 1" for item in ("int64", "int32", "bool", "uint8"))
_NEW_LONGS, _NEW_INTS, _NEW_FLAGS, _NEW_BYTES = (
    f"{column} written" for column in (_LONGS, _INTS, _FLAGS, _BYTES)
)
_REALS = "float64 1"
_STATE, _READERS, _HELD = "uint8 2", "int16 2", "uint16 2"
_IDS, _FOUND = "int64 1 strided", _NEW_LONGS
_TOKENS = "int32 1 anywhere"
_NODES = "int32 2 written"
_CHILDREN, _NEW_CHILDREN, _KEYS = "uint64 2", "uint64 2 written", "uint64 1"
_WALKED = (_INTS, _NEW_INTS, _NEW_INTS, _NEW_CHILDREN, _NEW_CHILDREN, _KEYS)
_RULE, _TIES = ("int64", _LONGS), (_STATE, _READERS, _INTS, _FLAGS, _HELD)
_COPIES = (
    *("uint8 2 written", "int32 2 written", "int16 2 written", _INTS, _NEW_FLAGS, _HELD),
    *(_LONGS, _NEW_LONGS),
)
_TABLE, _VIEWS = (_NEW_BYTES, _NEW_INTS, _NEW_LONGS), (_NEW_LONGS, _NEW_LONGS, _LONGS)
_LOG = (_NEW_LONGS, f"{_REALS} written", _NEW_LONGS)
_SEEN = (_VIEWS, _LONGS, _LONGS)
_PART = ("int64", "int64", "int64", _INTS, _INTS, "int8 1", _LONGS)

_FUNCTIONS: Final = (
    _order("is_eligible", *_RULE, "int64", *_TIES),
    _order("are_eligible", *_RULE, _TIES, _IDS, _NEW_FLAGS),
    _order(
        "walk",
        *(_LONGS, _LONGS, "int64", "int64", _NEW_LONGS, _INTS, _LONGS),
        *(*_RULE, _TIES, _FOUND),
    ),
    _order("peek", _LOG, "int64", "int64", "int64", _VIEWS, "int64", _INTS, _LONGS, _LONGS, _TIES, _FOUND),
    _order("rewind", _LONGS, *_VIEWS, _LONGS, _LONGS, _TIES, _IDS),
    _order("place_of", _LONGS, "int64", "int64"),
    _order("touch", _INTS, _NEW_LONGS, _NEW_INTS, _LOG, "int64", "int64", "int64", _IDS, "int64", "float64"),
    _order("forget", _LONGS, _NEW_LONGS, "int64", _INTS, _LONGS, _IDS),
    _slots("take_slots", _NEW_BYTES, _INTS, _NEW_LONGS, "int64", _FOUND),
    _blocks("count_found", _NEW_INTS, _STATE, _FLAGS, _IDS, "int8 1 written", _NEW_LONGS),
    _copies("copies_begin", _COPIES, *_SEEN, _NEW_LONGS, "int64", _IDS, _IDS),
    _copies("copies_arrive", _COPIES, _TABLE, *_SEEN, _NEW_LONGS, "int64", _IDS, _IDS),
    _copies("copies_leave", _COPIES, _TABLE, *_SEEN, _NEW_LONGS, "int64", "int64", _IDS),
    _copies("copies_read", _COPIES, *_SEEN, "int64", "int64", _IDS),
    _copies("copies_awaited", _COPIES, *_SEEN, "bool", _IDS),
    _blocks("give_out", _INTS, "int64", "int64", _NEW_FLAGS, _NEW_INTS, _NEW_INTS, _FOUND),
    _blocks(
        "free_blocks",
        *(_NEW_FLAGS, _INTS, _INTS, _STATE, _READERS),
        *(_NEW_INTS, _NEW_INTS, _NEW_LONGS, _NEW_INTS, _NEW_INTS, _NEW_FLAGS, _NEW_INTS, "int64", _IDS),
    ),
    _blocks("follow", _NEW_INTS, _NEW_INTS, "int64", _IDS),
    _blocks("sort_leaving", _TIES, _NEW_INTS, _INTS, "int64", _IDS, _FOUND, _FOUND, _FOUND, _NEW_LONGS),
    _blocks("sort_by_way_down", _STATE, _HELD, _IDS, _FOUND, _NEW_LONGS),
    _fingerprints("chain", _TOKENS, "int64", "uint64 1 written"),
    _fingerprints("name_blocks", _INTS, "int64", _INTS, _KEYS, "uint64 1 written", _IDS),
    _blocks("num_last_in", _STATE, "int64", _IDS),
    _blocks("find_unused", _LONGS, _IDS, _INTS, _IDS, _FOUND),
    _blocks("sort_by_ties", _TIES, _NEW_INTS, _INTS, _IDS, _FOUND, _FOUND),
    _blocks("put_keys", "uint8 2 written", _NEW_FLAGS, _IDS, "uint8 2"),
    _blocks("take_keys", "uint8 2", _FLAGS, _IDS, "uint8 2 written"),
    _blocks("find_nowhere", _FLAGS, _STATE, _IDS, _FOUND),
    _blocks("find_unkeyed", _INTS, _NEW_FLAGS, _IDS, _NEW_FLAGS, _FOUND),
    _blocks("nearest_tiers", _STATE, _IDS, _FOUND),
    _blocks("found_in", _STATE, _FLAGS, _IDS, "int8 1 written"),
    _blocks("num_usable", _STATE, _FLAGS, "int64", _IDS),
    _blocks("num_absent", _STATE, _FLAGS, _IDS),
    _tree("find_child", _TOKENS, "int64", "int64", _INTS, _CHILDREN, _CHILDREN, _KEYS, "int64"),
    _tree("descend", _TOKENS, "int64", "int64", _WALKED, "int64", _FOUND),
    _tree("link", "int64", _NODES, _WALKED, "int64"),
    _tree("unlink", "int64", _NODES, _WALKED, "int64"),
    _tree("move_places", _CHILDREN, _NEW_CHILDREN, "int64", "int64"),
    _tree("lay", _NEW_INTS, _NEW_INTS, "int64", _TOKENS, _IDS),
    _tree("plant", "int64", _NODES, _WALKED, _NEW_INTS, "int64", "int64", "int64", "int64"),
    _tree("take_off", "int64", _NODES, _WALKED, _INTS, _INTS, _NEW_INTS, _IDS, _FOUND),
    _tree("name_run", _NEW_INTS, _INTS, "int64", "int64"),
    _tree("along", _INTS, "int64", _FOUND),
    _tree("gather", "int32 2", _INTS, _IDS, _FOUND),
    _blocks("find_older", _INTS, _LONGS, "int64", "int64", _IDS, _FOUND),
    _blocks("oldest_of", _LONGS, _IDS),
    _owners("count_blocks", _NEW_LONGS, _INTS, "int64", _IDS),
    _owners("count_use", "int64 2 written", _NEW_LONGS, "int64", "int64", "int32 2", _INTS, "int64", _IDS),
    _owners("mark_owners", _NEW_FLAGS, _INTS),
    _owners(
        "stand", "int64 2", "int64", _REALS, "float64 2", _REALS, "int64", "float64", "float64 2 written"
    ),
    _owners("split", _REALS, _REALS, "int64", "float64", f"{_REALS} written", _NEW_LONGS),
    _owners("find_dirty", _LONGS, _REALS, "float64", _NEW_LONGS),
    _parts("are_in_part", *_PART, _IDS, _NEW_FLAGS),
    _parts(
        "walk_part",
        *(_LONGS, _LONGS, "int64", "int64", "int64", "int64", _INTS),
        *(*_PART, *_RULE, _TIES, _FOUND),
    ),
    _parts("oldest_in_part", "int64", *_PART, *_RULE, _TIES, _IDS),
)

_SLOT_BYTES: Final = (4, 8)
_SLOTS: Final[dict[str, Callable[[int], Function]]] = {
    "change_slots": lambda bytes_: _slots(
        "change_slots", _NEW_BYTES, _NEW_LONGS, "int64", "int64", f"int{8 * bytes_} 1 strided"
    ),
    "free_slots": lambda bytes_: _slots(
        "free_slots", _NEW_BYTES, _NEW_INTS, _NEW_LONGS, "int64", f"int{8 * bytes_} 1 strided"
    ),
}
