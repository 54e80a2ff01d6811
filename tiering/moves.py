"""What the core asks others to do, and what they answer. Plain values: nothing here runs anything."""

from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvstore.block import BlockKey
from kvstore.store import ReadOutcome
from tiering.ranks import Rank
from tiering.residency import Ids
from tiering.terms import Term


class Demote(NamedTuple):
    """Copy device slots to host slots."""

    number: int
    ids: Ids
    device_slots: Ids
    host_slots: Ids
    stamps: Ids
    """The blocks' stamps at departure: a block used since then keeps its device copy."""
    then_free: bool
    """Whether the device copy is given up once the host has it."""


class Promote(NamedTuple):
    """Copy host slots to device slots."""

    number: int
    ids: Ids
    host_slots: Ids
    device_slots: Ids


class Ancestor(NamedTuple):
    """A block whose key must be computed: its own is wanted, or one further down."""

    id: int
    parent_id: int
    tokens: bytes
    owner: bytes


Lineage: TypeAlias = tuple[tuple[Ancestor, ...], dict[int, BlockKey]]
"""Blocks whose keys must be computed, parents first; and the keys that the chain starts from, by block id (-1: the root)."""


class Write(NamedTuple):
    """Compute the keys of blocks and write them from host slots to disk."""

    number: int
    ids: Ids
    host_slots: Ids
    unkeyed: Ids
    """The blocks, and those between them and known keys, whose keys must be computed; a parent that is here comes before its children.

    `Index.lineage` has what it takes to compute them.
    """


class Read(NamedTuple):
    """Read blocks from disk into host slots, every check included. `Index.refs` has what a store is asked for."""

    number: int
    ids: Ids
    host_slots: Ids


class SwapOut(NamedTuple):
    """Copy a preempted request's own device slots to host slots."""

    number: int
    device_slots: Ids
    host_slots: Ids


class SwapIn(NamedTuple):
    """Copy a request's own blocks back from host slots to device slots."""

    number: int
    host_slots: Ids
    device_slots: Ids


class Forget(NamedTuple):
    """Delete records. Nobody waits for the answer; must run before any Write that was asked for later."""

    keys: NDArray[np.uint8]
    """[n, KEY_BYTES]: `block_keys` makes keys of them, for who has a store."""


class Touch(NamedTuple):
    """Note when blocks on disk were last used, on the clock of `plan`. Nobody waits for it, and it may fail.

    Must run after any Write that was asked for earlier, and before any that was asked for later: that one knows nothing
    of uses.
    """

    keys: tuple[BlockKey, ...]
    used_s: tuple[float, ...]


class Wanted(NamedTuple):
    """What requests have said of a block that is to hold over a restart."""

    term: Term = Term()
    rank: Rank = Rank.NORMAL


class Retain(NamedTuple):
    """Note what was said of blocks on disk. As for Touch; who stores nothing of it ignores it."""

    keys: tuple[BlockKey, ...]
    wanted: tuple[Wanted, ...]


class Unname(NamedTuple):
    """Delete the record of a named cache that is over. As for Retain."""

    key: bytes


Move: TypeAlias = Demote | Promote | SwapOut | SwapIn | Write | Read | Forget | Touch | Retain | Unname


class Copied(NamedTuple):
    """A copy between device and host is over."""

    number: int
    error: Exception | None = None


_NO_SIZES: Final = np.empty(0, dtype=np.int64)


class Written(NamedTuple):
    """A Write is over. Without an error `stored_bytes` has an entry a block, int64."""

    number: int
    stored_bytes: NDArray[np.int64] = _NO_SIZES
    keys: bytes = b""
    """The keys that were computed, one behind the other: of the move's `unkeyed` from the first on; valid even if the write failed."""
    error: Exception | None = None


class HasRead(NamedTuple):
    """A Read is over. Without an error `outcomes` has an entry a block."""

    number: int
    outcomes: tuple[ReadOutcome, ...] = ()
    error: Exception | None = None


Answer: TypeAlias = Copied | Written | HasRead
