"""What users have a cache keep, asked for from any thread: prefixes held in a tier, and caches that have a name."""

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from kvstore.errors import StoreError, Unsupported
from kvstore.steering import Retains, StoredName
from kvstore.store import Store
from tiering.errands import Steps, at_once
from tiering.index import Index
from tiering.owners import Ownership
from tiering.radix import Tokens
from tiering.residency import Tier
from tiering.retention import NameNow

_log = logging.getLogger(__name__)
Answered = TypeVar("Answered")


class Cached(NamedTuple):
    """Tokens of a prompt."""

    cached: int
    below: int


class AnswerTo(Protocol):
    """Has the core's own thread do something, and waits for it."""

    def __call__(self, begin: Callable[[], Steps[Answered]]) -> Answered: ...


class Retaining:
    """Names are held by the core and written down by the thread that asks: blocks first, then the name, then it is told so.

    What ends in between leaves blocks that nobody holds. Any thread may call all of it, and waits.
    """

    def __init__(
        self,
        index: Index,
        store: Store | None,
        answer_to: AnswerTo,
        clock: Callable[[], float],
        now_ns: Callable[[], int],
    ) -> None:
        """`clock`, `now_ns`: as of the cache."""
        self._index, self._answer_to = index, answer_to
        self._store = store
        self._clock, self._now_ns = clock, now_ns
        self.restored: tuple[StoredName, ...] = ()
        """The names that the store had at the start."""

    def restore(self) -> None:
        """Take up the names of the store, before anything else of it is. To be called by the thread that owns the core."""
        if not isinstance(self._store, Retains):
            return
        try:
            names = self._store.names()
        except Unsupported:
            return
        except StoreError as error:
            _log.error("named caches cannot be read, and are not held: %s", error, extra={"error": error})
            return
        self._index.at(self._clock())
        block_bytes = 4 * self._index.config.block_tokens
        self.restored = tuple(name for name in names if name.tokens and name.block_bytes == block_bytes)
        now_ns = self._now_ns()
        for name in self.restored:
            self._index.retention.restore_name(
                name.key, name.tokens, _ownership(name), _ttl_s(name), max(0, now_ns - name.since_ns) / 1e9
            )

    # --- prefixes -------------------------------------------------------------------------------------------------

    def num_cached(self, tokens: Tokens, tier: Tier) -> "Cached":
        """How many tokens of a prompt are cached, and how many of them below a tier."""
        # a token more, or the last block would not count: one is always computed
        found = self._now(lambda: self._index.lookup(np.append(tokens, tokens[-1:])))
        below = sum(found[lower.label] for lower in Tier if lower > tier)
        return Cached(sum(found.values()), below)

    def keep(self, tokens: Tokens, tier: Tier) -> int:
        """See Keep.prefix."""
        return self._now(lambda: self._index.keep.prefix(tokens, tier))

    def release(self, tokens: Tokens) -> int:
        """Let go of what `keep` holds of this prompt. How many tokens it were."""
        block_tokens = self._index.config.block_tokens
        return self._now(lambda: self._index.retention.release(tokens.tobytes()) * block_tokens)

    # --- names ----------------------------------------------------------------------------------------------------

    def name(self, tokens: Tokens, name: StoredName) -> NameNow | None:
        """Hold a prompt's whole blocks under a name: they and it are on disk when this returns, where there is a disk.

        None if they are not all cached. Raises as Keep.name does, and StoreError if the name cannot be written: then
        nothing is held.
        """

        def begin() -> Steps[NameNow | None]:
            self._index.at(self._clock())
            return self._index.keep.name(name.key, tokens, _ownership(name), _ttl_s(name))

        now = self._answer_to(begin)
        if now is not None:
            try:
                self._write(name)
            except BaseException:
                self._drop(name.key)
                raise
        return now

    def _write(self, name: StoredName) -> None:
        if isinstance(self._store, Retains):
            self._store.sync()  # a name must not outlive its blocks where power is lost
            self._store.put_name(name)

    def _drop(self, key: bytes) -> None:
        self._now(lambda: self._index.retention.drop(key))

    def look(self, key: bytes) -> NameNow:
        """How a name is now; KeyError if there is none, or it is over."""
        return self._now(lambda: self._index.retention.look(key))

    def extend(self, name: StoredName) -> NameNow:
        """Give a name another time, from now on; KeyError if there is none. StoreError, and no change, if it cannot be written."""
        self.look(name.key)
        if isinstance(self._store, Retains):
            self._store.put_name(name)
        self._now(lambda: self._index.retention.extend(name.key, _ttl_s(name)))
        return self.look(name.key)

    def delete(self, key: bytes) -> None:
        """Forget a name; its blocks stay until somebody needs their places. KeyError if there is none.

        StoreError if the disk cannot forget it: it is held still.
        """
        self.look(key)
        if isinstance(self._store, Retains):
            self._store.delete_name(key)
        self._drop(key)

    def _now(self, function: Callable[[], Answered]) -> Answered:
        def timely() -> Answered:
            self._index.at(self._clock())
            return function()

        return self._answer_to(at_once(timely))


def _ownership(name: StoredName) -> Ownership:
    return Ownership(name.owner, name.first_block)


def _ttl_s(name: StoredName) -> float | None:
    return None if name.ttl_ns is None else name.ttl_ns / 1e9
