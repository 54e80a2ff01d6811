"""Stores around a store."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kvstore.block import BlockKey, BlockLayout, Namespace
from kvstore.closing import Closing
from kvstore.store import BlockMeta, BlockRef, ReadOutcome, Store, StoreStats

if TYPE_CHECKING:
    from kvstore.store import Readable, Writable

Gate: TypeAlias = Callable[[Sequence[BlockKey]], None]
"""Called with the keys of a batch before the batch. It may wait (a slow disk) or raise (a failing one)."""


class FaultStore(Closing):
    """A store that fails and stalls on command, for tests of what is built on stores.

    `read_gate` runs before each `get_many` and `scan` (which passes no keys), `write_gate` before each
    `put_many`, `delete_many` and `sync`; what they raise is raised. Both may be replaced at any time; None
    lets everything pass. Damage to records belongs below the record check, or it would be served: use the
    store's `raw()` for that.
    """

    def __init__(
        self, store: Store, *, read_gate: Gate | None = None, write_gate: Gate | None = None
    ) -> None:
        self.store = store
        self.read_gate = read_gate
        self.write_gate = write_gate

    @property
    def namespace(self) -> Namespace:
        return self.store.namespace

    @property
    def layout(self) -> BlockLayout:
        return self.store.layout

    @property
    def max_stored_bytes(self) -> int:
        return self.store.max_stored_bytes

    def get_many(self, refs: Sequence[BlockRef], out: "Sequence[Writable]") -> list[ReadOutcome]:
        _pass(self.read_gate, [ref.key for ref in refs])
        return self.store.get_many(refs, out)

    def put_many(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> list[int]:
        _pass(self.write_gate, [ref.key for ref in refs])
        return self.store.put_many(refs, data)

    def delete_many(self, keys: Sequence[BlockKey]) -> None:
        _pass(self.write_gate, keys)
        self.store.delete_many(keys)

    def scan(self) -> Iterator[BlockMeta]:
        _pass(self.read_gate, ())
        return self.store.scan()

    def sync(self) -> None:
        _pass(self.write_gate, ())
        self.store.sync()

    def stats(self) -> StoreStats:
        return self.store.stats()

    def check(self) -> None:
        self.store.check()

    def close(self) -> None:
        self.store.close()


def _pass(gate: Gate | None, keys: Sequence[BlockKey]) -> None:
    if gate is not None:
        gate(keys)
