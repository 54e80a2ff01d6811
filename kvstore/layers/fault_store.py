"""A store that fails on command."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Final

from kvstore.block import BlockKey, BlockLayout, Namespace
from kvstore.closing import Closing
from kvstore.codec import as_bytes
from kvstore.errors import StoreClosed, StoreFailed, Unsupported
from kvstore.layers.faults import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    Fault,
    Garbage,
    Hang,
    ShortData,
)
from kvstore.layers.injector import Injector, Strike
from kvstore.metas import BlockMetas
from kvstore.raw import HasRaw, RawRecords
from kvstore.reasons import MissReason
from kvstore.reports import NamespaceInfo
from kvstore.steering import (
    UNCHANGED,
    Changeable,
    Elsewhere,
    KnowsOthers,
    Retains,
    StoredName,
    StoredTerm,
    Unchanged,
)
from kvstore.store import BlockRef, ReadOutcome, Store, StoreStats

if TYPE_CHECKING:
    from kvstore.store import Readable, Writable

_ALL: Final = ("read", "write", "delete", "touch", "scan", "sync")
_POSSIBLE: Final[dict[type[Fault], tuple[str, ...]]] = {
    Delay: _ALL,
    Hang: _ALL,
    ErrorBefore: _ALL,
    ErrorAfter: _ALL,
    ShortData: ("read", "write"),
    Garbage: ("read", "write"),
    FalseMiss: ("read",),
    DirtyMiss: ("read",),
}
_MAX_GARBAGE_BYTES: Final = 64


class FaultStore(Closing):
    """A store that is slow, hangs, fails and lies on command, for tests of what is built on stores.

    Operations are "read" (`get_many`), "write" (`put_many`), "delete" (also `erase`), "touch", "scan" and "sync";
    `stats`, `check` and what only some stores have (kvstore/steering.py) are never struck. The faults in the list strike a
    call in their order, and one that raises ends it. An error after a scan comes when its last block has been handed out.

    ShortData and Garbage damage one record of the batch where it rests, through the store's `raw()`: just
    before it is read, or just after it was written. The store's own check is what must find it. Were the
    buffers of a hit damaged up here, above that check, they would be served, and no store could help it; so
    nothing here ever touches them. FalseMiss turns one hit of the batch into a miss.

    With no faults, and with those that break no promise of `Store` (Delay, Hang, DirtyMiss), it keeps every
    law of `kvstore.testing.laws`. `faults` may be replaced at any time, by any thread: a call keeps those with
    which it began.
    """

    def __init__(
        self,
        store: Store,
        faults: Iterable[Fault] = (),
        *,
        seed: int = 0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Takes over `store`: closing the layer closes it. A fault that names no error raises StoreFailed, a
        temporary one. Raises Unsupported for damage to a store that has no `raw()`.
        """
        self.store = store
        self._injector = Injector(
            _POSSIBLE,
            seed=seed,
            sleep=sleep,
            failed=lambda text: StoreFailed(text, temporary=True),
            closed=StoreClosed,
        )
        self.faults = tuple(faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force. Assigning others numbers the calls from one again; what hangs goes on hanging."""
        return self._injector.faults

    @faults.setter
    def faults(self, faults: Iterable[Fault]) -> None:
        faults = tuple(faults)
        if any(isinstance(fault, ShortData | Garbage) for fault in faults):
            self.raw()
        self._injector.replace(faults)

    def injected(self, kind: type[Fault] = Fault, on: str | None = None) -> int:
        """How often faults of this kind have acted since the layer was made, on one operation or on all."""
        return self._injector.injected(kind, on)

    # ---- the store -------------------------------------------------------------------------------------

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
        keys = [ref.key for ref in refs]
        strikes = self._before("read", keys)
        outcomes = self.store.get_many(refs, out)
        for strike in strikes:
            self._after_read(strike, outcomes, out)
        return outcomes

    def put_many(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> list[int]:
        strikes = self._before("write", ())
        stored_bytes = self.store.put_many(refs, data)
        self._after(strikes, [ref.key for ref in refs])
        return stored_bytes

    def delete_many(self, keys: Sequence[BlockKey]) -> None:
        strikes = self._before("delete", ())
        self.store.delete_many(keys)
        self._after(strikes, ())

    def touch_many(self, keys: Sequence[BlockKey], used_ns: Sequence[int]) -> None:
        strikes = self._before("touch", ())
        self.store.touch_many(keys, used_ns)
        self._after(strikes, ())

    def erase(self, owner: bytes) -> int:
        strikes = self._before("delete", ())
        num_erased = self.store.erase(owner)
        self._after(strikes, ())
        return num_erased

    def scan(self) -> Iterator[BlockMetas]:
        strikes = self._before("scan", ())
        return self._to_the_end(self.store.scan(), strikes)

    def sync(self) -> None:
        strikes = self._before("sync", ())
        self.store.sync()
        self._after(strikes, ())

    def stats(self) -> StoreStats:
        return self.store.stats()

    def check(self) -> None:
        self.store.check()

    def raw(self) -> RawRecords:
        """The wrapped store's records, below all faults. Raises Unsupported if it gives no access to them."""
        if not isinstance(self.store, HasRaw):
            raise Unsupported(f"{type(self.store).__name__} has no raw(): its records cannot be damaged")
        return self.store.raw()

    def namespaces(self) -> list[NamespaceInfo]:
        return self._others().namespaces()

    def others_with(self, tokens: Sequence[bytes]) -> list[Elsewhere]:
        return self._others().others_with(tokens)

    def _others(self) -> KnowsOthers:
        if not isinstance(self.store, KnowsOthers):
            raise Unsupported(f"{type(self.store).__name__} does not tell of other namespaces")
        return self.store

    def names(self) -> list[StoredName]:
        return self._retaining().names()

    def put_name(self, name: StoredName) -> None:
        self._retaining().put_name(name)

    def delete_name(self, key: bytes) -> None:
        self._retaining().delete_name(key)

    def settings(self) -> bytes | None:
        return self._retaining().settings()

    def put_settings(self, content: bytes | None) -> None:
        self._retaining().put_settings(content)

    def put_terms(self, terms: Mapping[BlockKey, StoredTerm]) -> None:
        self._retaining().put_terms(terms)

    def terms(self, keys: Sequence[BlockKey]) -> dict[BlockKey, StoredTerm]:
        return self._retaining().terms(keys)

    def _retaining(self) -> Retains:
        if not isinstance(self.store, Retains):
            raise Unsupported(f"{type(self.store).__name__} does not keep names and terms")
        return self.store

    def change(
        self,
        *,
        capacity_bytes: int | None = None,
        min_free_bytes: int | None = None,
        ttl_s: float | Unchanged | None = UNCHANGED,
    ) -> None:
        if not isinstance(self.store, Changeable):
            raise Unsupported(f"{type(self.store).__name__} has limits that cannot be changed")
        self.store.change(capacity_bytes=capacity_bytes, min_free_bytes=min_free_bytes, ttl_s=ttl_s)

    def close(self) -> None:
        """Close the store. First, calls that hang are let go: they raise StoreClosed, their work undone."""
        self._injector.close()
        self.store.close()

    # ---- the faults ------------------------------------------------------------------------------------

    def _before(self, operation: str, damageable: Sequence[BlockKey]) -> list[Strike]:
        """Number a call and let strike what strikes before the work. Answers all that are due at it."""
        strikes = self._injector.draw(operation)
        for strike in strikes:
            self._injector.before(strike)
            self._damage(strike, damageable)
        return strikes

    def _after(self, strikes: Sequence[Strike], damageable: Sequence[BlockKey]) -> None:
        for strike in strikes:
            self._damage(strike, damageable)
            if isinstance(strike.fault, ErrorAfter):
                self._injector.count(strike)
                raise self._injector.error(strike)

    def _after_read(self, strike: Strike, outcomes: list[ReadOutcome], out: "Sequence[Writable]") -> None:
        match strike.fault:
            case FalseMiss() if hits := [i for i, outcome in enumerate(outcomes) if outcome.hit]:
                self._injector.count(strike)
                outcomes[strike.random.choice(hits)] = ReadOutcome(MissReason.ABSENT)
            case DirtyMiss() if misses := [i for i, outcome in enumerate(outcomes) if not outcome.hit]:
                self._injector.count(strike)
                for i in misses:
                    _litter(strike.random, out[i])
        self._after([strike], ())

    def _to_the_end(self, pages: Iterator[BlockMetas], strikes: Sequence[Strike]) -> Iterator[BlockMetas]:
        yield from pages
        self._after(strikes, ())

    def _damage(self, strike: Strike, keys: Sequence[BlockKey]) -> None:
        """Damage the record of one of these keys, if that is what strikes and any of them has one."""
        if not isinstance(strike.fault, ShortData | Garbage):
            return
        damage = _shortened if isinstance(strike.fault, ShortData) else _garbled
        raw = self.raw()
        for key in strike.random.sample(list(keys), len(keys)):
            record = raw.read(key)
            if not record:
                continue
            try:
                raw.write(key, damage(strike.random, record))
            except KeyError:  # deleted since it was read
                continue
            self._injector.count(strike)
            return


def _shortened(random: Random, record: bytes) -> bytes:
    return record[: random.randrange(len(record))]


def _garbled(random: Random, record: bytes) -> bytes:
    """The record with a short run of other bytes in it: each one differs from what was there."""
    start = random.randrange(len(record))
    run = record[start : start + random.randint(1, _MAX_GARBAGE_BYTES)]
    return record[:start] + bytes(byte ^ random.randint(1, 255) for byte in run) + record[start + len(run) :]


def _litter(random: Random, buffer: "Writable") -> None:
    """Fill a buffer, or the first half of it, with junk."""
    view = as_bytes(buffer)
    size = random.choice((view.size, view.size // 2))
    view[:size] = bytearray(random.randbytes(size))
