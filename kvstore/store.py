"""The store interface: where the bytes of blocks rest, by key, batch first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeAlias, get_args

from kvstore.block import BlockKey, BlockLayout, Namespace
from kvstore.reasons import MissReason

if TYPE_CHECKING:
    import numpy as np

    from kvstore.metas import BlockMetas

    Writable: TypeAlias = bytearray | memoryview | np.ndarray[Any, Any]
    """C-contiguous memory that can be written; any shape and item type, only its bytes count."""
    Readable: TypeAlias = bytes | Writable


OWNER_BYTES: Final = 16
NO_OWNER: Final = bytes(OWNER_BYTES)
"""What is everybody's."""

Durability: TypeAlias = Literal["relaxed", "strict"]
"""When a write survives a loss of power: after the next sync, or when it returns. See docs/durability.md."""
DURABILITIES: Final = get_args(Durability)

Compression: TypeAlias = Literal["auto", "on", "off"]
"""Whether blocks are encoded: where that gains, and reading does not become slower by it; where it gains; never."""
COMPRESSIONS: Final = get_args(Compression)

_END_OF_TIME_NS: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class BlockRef:
    """One block as a caller knows it. A record is served only if it agrees with all three."""

    key: BlockKey
    parent_key: BlockKey
    tokens: bytes
    """The block's token ids, little-endian int32."""
    owner: bytes = NO_OWNER
    """Whose the block is, OWNER_BYTES bytes that the caller chooses: what one owner has can be erased together. Of no
    account for reading."""


@dataclass(frozen=True, slots=True)
class BlockMeta:
    """What a store knows of a block without touching its payload."""

    key: BlockKey
    parent_key: BlockKey
    tokens: bytes
    stored_bytes: int
    """What the block takes of the store's capacity (for a disk: whole pages)."""
    used_ns: int
    """When it was last used as far as `touch_many` has said, else when it was written; nanoseconds since the epoch."""
    owner: bytes = NO_OWNER

    @property
    def ref(self) -> BlockRef:
        """The block as it was written."""
        return BlockRef(self.key, self.parent_key, self.tokens, self.owner)


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """How the read of one block ended: a hit if there is no reason for a miss."""

    reason: MissReason | None

    @property
    def hit(self) -> bool:
        return self.reason is None

    @property
    def damaged(self) -> bool:
        """Whether there was a record that failed a check."""
        return self.reason is not None and self.reason.damaged


HIT: Final = ReadOutcome(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """A snapshot of a store. Counts are of its own namespace unless the name says otherwise."""

    blocks: int
    stored_bytes: int
    raw_bytes: int
    """What the blocks are when decoded: blocks * layout.block_bytes."""
    capacity_bytes: int
    """The bound on stored bytes of all namespaces together."""
    other_namespaces_bytes: int
    """Stored bytes of the others that share the medium; they count against the capacity."""
    damaged: Mapping[MissReason, int]
    """Reads that found a record which failed a check, since this store was opened, by reason."""

    written: Mapping[str, int] = field(default_factory=dict)
    """Blocks written since this store was opened, by how they were encoded: `raw`, `planes`, `baseline`."""
    encodes: bool = True
    """Whether blocks are encoded now, where that gains: what compression "auto" has found out."""
    fresh_starts: int = 0
    """How often the medium itself failed and the store went on empty, since it was opened."""

    @property
    def damaged_blocks(self) -> int:
        """All of them together."""
        return sum(self.damaged.values())


def check_times(keys: Sequence[BlockKey], used_ns: Sequence[int]) -> None:
    """Raise ValueError for what `Store.touch_many` does not take."""
    if len(keys) != len(used_ns):
        raise ValueError(f"{len(keys)} keys but {len(used_ns)} times")
    if any(not 0 <= when_ns < _END_OF_TIME_NS for when_ns in used_ns):
        raise ValueError(f"times are nanoseconds since the epoch, got {min(used_ns)} to {max(used_ns)}")


class Store(Protocol):
    """Blocks of one namespace and one layout, by key.

    Every method blocks until it is done, and may be called by any thread. A reader of a key that is being
    written or deleted sees the old record, the new one, or none: never a mixture. All raise StoreClosed after
    `close()`, and StoreFailed when the medium fails.
    """

    @property
    def namespace(self) -> Namespace: ...

    @property
    def layout(self) -> BlockLayout: ...

    @property
    def max_stored_bytes(self) -> int:
        """The most that one block can take of the capacity."""
        ...

    def get_many(self, refs: "Sequence[BlockRef]", out: "Sequence[Writable]") -> list[ReadOutcome]:
        """Read blocks, each into the buffer of `layout.block_bytes` bytes at the same place in `out`.

        Answers one outcome a block, in order. A buffer holds the block if its outcome is a hit, and is
        undefined otherwise. A record that fails a check is a miss: it is counted by reason, and taken out of
        use. Raises ValueError for a buffer of another size or another number of buffers; StoreError if the
        batch as a whole failed.
        """
        ...

    def put_many(self, refs: "Sequence[BlockRef]", data: "Sequence[Readable]") -> list[int]:
        """Write blocks, replacing those that are there. Answers the stored bytes of each.

        All of the batch or nothing of it. Buffers must not change before this returns; a block whose buffer
        did change is found out when it is read. Raises StoreFull if there is no room; ValueError for a buffer
        of another size than `layout.block_bytes`, tokens of another size than `layout.token_id_bytes`,
        keys that are not KEY_BYTES long, or owners that are not OWNER_BYTES long.
        """
        ...

    def delete_many(self, keys: Sequence[BlockKey]) -> None:
        """Forget blocks. Keys that are not there are fine."""
        ...

    def touch_many(self, keys: Sequence[BlockKey], used_ns: Sequence[int]) -> None:
        """Note when blocks were last used: `BlockMeta.used_ns` from now on, earlier than before or later.

        Touches no payload and takes no capacity. Keys that are not there are fine; of a key that comes twice the last
        time counts. Raises ValueError unless there are as many times, none of them before the epoch. Should it fail,
        each block tells the new time or the old one.
        """
        ...

    def erase(self, owner: bytes) -> int:
        """Delete every block of an owner, of all namespaces on the medium. Answers how many there were.

        Where blocks are encrypted it destroys the owner's key first: nobody reads them then, wherever copies may lie.
        Blocks that are written later are not concerned. Raises ValueError for NO_OWNER.
        """
        ...

    def scan(self) -> "Iterator[BlockMetas]":
        """Every block of this namespace, in any order, some thousands at a time, without touching payloads.

        What is written or deleted during the scan may be seen or not; everything else is seen exactly once.
        `kvstore.metas.metas_of` tells them one by one.
        """
        ...

    def sync(self) -> None:
        """Return when what was written before the call survives a loss of power, as far as the medium can."""
        ...

    def stats(self) -> StoreStats:
        """A snapshot; does not touch the medium."""
        ...

    def check(self) -> None:
        """Raise AssertionError unless the counts agree with what the store holds. Slow: for tests."""
        ...

    def close(self) -> None:
        """Wait for calls in progress, sync, and let go of everything. Safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_compression(compression: str) -> None:
    """Raise ValueError for what is none."""
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}")


def check_owner(owner: bytes) -> None:
    """Raise ValueError unless this is an owner whose blocks can be erased."""
    if len(owner) != OWNER_BYTES or owner == NO_OWNER:
        raise ValueError(f"an owner has {OWNER_BYTES} bytes, not all of them 0; got {owner!r}")
