"""Named caches and kept prefixes: what a user asks an engine to have ready. See docs/retention.md."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.block import TOKEN_ID_BYTES
from kvstore.reports import NamedCache, TierName
from kvstore.steering import StoredName
from tiering.residency import Tier
from tiering.retaining import Retaining
from tiering.retention import NameNow

from .params import RequestOptions, seconds_of
from .salt import Salt

_MOST_NAME: Final = 200
_TRIES: Final = 3
"""Times that a prompt is computed whose blocks have left before they could be held: in full tiers they may."""

Tokens = NDArray[np.int32]
Warm = Callable[[Any, RequestOptions], Any]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A name that was made: what the store was given, and what its content says."""

    stored: StoredName
    name: str
    tenant: str | None
    created_s: float
    num_tokens: int


class Caches:
    """The named caches of one engine: `engine.caches`. Any thread may call all of it, and waits.

    A name belongs to the model, with all that its KV depends on, and to a tenant, or to nobody: others may have another of
    the same name, and see nothing of it.
    """

    def __init__(
        self,
        retaining: Retaining,
        *,
        block_tokens: int,
        encode: Callable[[Any], Tokens],
        warm: Warm,
        check_open: Callable[[], None],
        most: int,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`encode` makes tokens of a prompt, and `warm` computes it; both raise as `Engine.generate` does. `most`: names, at a time."""
        self._retaining, self._block_tokens = retaining, block_tokens
        self._encode, self._warm = encode, warm
        self._check_open, self._most, self._now_ns = check_open, most, now_ns
        self._lock = threading.Lock()
        self._making: set[bytes] = set()
        self._entries = {stored.key: _entry(stored) for stored in retaining.restored}

    def create(
        self, name: str, prompt: Any, ttl: str | float | None = None, options: RequestOptions | None = None
    ) -> NamedCache:
        """Compute a prompt and hold its whole blocks under a name. When this returns they are on disk, and so is the name.

        `ttl`: for how long after its last use it is held, as RequestOptions.ttl; None for until it is deleted. Of `options`
        tenant and salt say whose it is. A name that has lost blocks, or had to give way, may be made again. Raises ValueError
        for one that is there and whole, for a prompt without a whole block, where more would be held than may be
        (EngineConfig.held_share, max_names), and as `generate` does; StoreError, and nothing is held, if the disk does not take it.
        """
        self._check_open()
        options, ttl_s = options or RequestOptions(), seconds_of(ttl)
        key = _key(name, options.tenant)
        tokens = self._encode(prompt)
        tokens = tokens[: len(tokens) // self._block_tokens * self._block_tokens]
        if not len(tokens):
            raise ValueError(f"the prompt has no whole block of {self._block_tokens} tokens to hold")
        with self._lock:
            if key in self._making:
                raise ValueError(f"the cache {name!r} is being made already")
            self._making.add(key)
        try:
            self._make_way(name, options.tenant)
            self._check_number()
            entry = self._entry(name, key, tokens, options, ttl_s)
            now = self._made(tokens, options, entry)
            with self._lock:
                self._entries[key] = entry
            return self._record(entry, now)
        finally:
            with self._lock:
                self._making.discard(key)

    def _make_way(self, name: str, tenant: str | None) -> None:
        try:
            before = self.get(name, tenant)
        except KeyError:
            return
        if before.held and not before.lost_blocks:
            raise ValueError(f"there is a cache {name!r} already: extend it, or delete it first")
        self.delete(name, tenant)

    def _check_number(self) -> None:
        """Of names, this one that is being made included. Raises ValueError for too many; those that are over do not count."""
        if self._number() > self._most:
            with self._lock:
                entries = [*self._entries.values()]
            for entry in entries:
                self._forget_what_is_over(entry)
        if (number := self._number()) > self._most:
            raise ValueError(
                f"there are {number - 1} named caches, and may be {self._most}: delete others, or raise max_names"
            )

    def _number(self) -> int:
        with self._lock:
            return len(self._entries.keys() | self._making)

    def _entry(
        self, name: str, key: bytes, tokens: Tokens, options: RequestOptions, ttl_s: float | None
    ) -> _Entry:
        salt, now_ns = Salt(options, len(tokens), self._block_tokens), self._now_ns()
        content = {"name": name, "tenant": options.tenant, "created_ns": now_ns}
        stored = StoredName(
            key=key,
            owner=salt.ownership.owner,
            first_block=salt.ownership.first_block,
            tokens=salt(tokens).tobytes(),
            block_bytes=TOKEN_ID_BYTES * self._block_tokens,
            since_ns=now_ns,
            ttl_ns=_ttl_ns(ttl_s),
            content=json.dumps(content).encode(),
        )
        return _entry(stored)

    def _made(self, tokens: Tokens, options: RequestOptions, entry: _Entry) -> NameNow:
        for _ in range(_TRIES):
            self._warm(tokens.tolist(), options)
            now = self._retaining.name(np.frombuffer(entry.stored.tokens, dtype="<i4"), entry.stored)
            if now is not None:
                return now
        raise RuntimeError(
            "the prompt's blocks leave before they can be held: the tiers are too small, or too busy"
        )

    def get(self, name: str, tenant: str | None = None) -> NamedCache:
        """A cache as it is now. KeyError if the tenant has none of that name, or it is over."""
        self._check_open()
        return self._looked(self._known(name, tenant))

    def list(self, tenant: str | None = None) -> tuple[NamedCache, ...]:
        """The tenant's caches, or those of nobody, by name."""
        self._check_open()
        found = []
        with self._lock:
            entries = [entry for entry in self._entries.values() if entry.tenant == tenant]
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                found.append(self._looked(entry))
            except KeyError:  # over
                continue
        return tuple(found)

    def extend(self, name: str, ttl: str | float | None, tenant: str | None = None) -> NamedCache:
        """Give a cache another time from now on. KeyError if there is none; StoreError, and no change, if the disk does not take it."""
        self._check_open()
        entry = self._known(name, tenant)
        stored = entry.stored._replace(since_ns=self._now_ns(), ttl_ns=_ttl_ns(seconds_of(ttl)))
        entry = replace(entry, stored=stored)
        now = self._retaining.extend(stored)
        with self._lock:
            self._entries[stored.key] = entry
        return self._record(entry, now)

    def delete(self, name: str, tenant: str | None = None) -> None:
        """Hold a cache no longer. Its blocks stay cached as others do. KeyError if there is none; StoreError if it is there still."""
        self._check_open()
        entry = self._known(name, tenant)
        try:
            self._retaining.delete(entry.stored.key)
        finally:
            self._forget_what_is_over(entry)

    def erase(self, tenant: str) -> None:
        """The tenant's are gone: see Engine.erase."""
        with self._lock:
            self._entries = {key: entry for key, entry in self._entries.items() if entry.tenant != tenant}

    def _known(self, name: str, tenant: str | None) -> _Entry:
        with self._lock:
            entry = self._entries.get(_key(name, tenant))
        if entry is None:
            raise KeyError(f"there is no cache {name!r}")
        return entry

    def _looked(self, entry: _Entry) -> NamedCache:
        try:
            return self._record(entry, self._retaining.look(entry.stored.key))
        except KeyError:
            self._forget_what_is_over(entry)
            raise KeyError(f"there is no cache {entry.name!r}") from None

    def _forget_what_is_over(self, entry: _Entry) -> None:
        try:
            self._retaining.look(entry.stored.key)
        except KeyError:
            with self._lock:
                self._entries.pop(entry.stored.key, None)

    def _record(self, entry: _Entry, now: NameNow) -> NamedCache:
        return NamedCache(
            name=entry.name,
            tenant=entry.tenant,
            tokens=entry.num_tokens,
            blocks=now.blocks,
            bytes=now.bytes,
            created_s=entry.created_s,
            expires_s=None if now.left_s is None else self._now_ns() / 1e9 + now.left_s,
            tiers=now.tiers,
            lost_blocks=now.lost_blocks,
            held=now.held,
        )

    # --- prefixes -------------------------------------------------------------------------------------------------

    def keep(self, prompt: Any, tier: TierName, options: RequestOptions | None) -> int:
        """See Engine.keep."""
        self._check_open()
        wanted, options = _tier(tier), options or RequestOptions()
        tokens = self._encode(prompt)
        tokens = tokens[: len(tokens) // self._block_tokens * self._block_tokens]
        salted = Salt(options, len(tokens), self._block_tokens)(tokens)
        num_tokens = self._retaining.num_cached(salted, wanted)
        if num_tokens.below:  # what lies below comes up as for a request
            self._warm(tokens[: num_tokens.cached].tolist(), replace(options, cache="readwrite"))
        return self._retaining.keep(salted, wanted)

    def release(self, prompt: Any, options: RequestOptions | None) -> int:
        """See Engine.release."""
        self._check_open()
        tokens = self._encode(prompt)
        tokens = tokens[: len(tokens) // self._block_tokens * self._block_tokens]
        return self._retaining.release(
            Salt(options or RequestOptions(), len(tokens), self._block_tokens)(tokens)
        )


def _entry(stored: StoredName) -> _Entry:
    told = json.loads(stored.content)
    num_tokens = len(stored.tokens) // TOKEN_ID_BYTES
    return _Entry(stored, told["name"], told["tenant"], told["created_ns"] / 1e9, num_tokens)


def _key(name: object, tenant: str | None) -> bytes:
    """What the store knows a tenant's name by. Raises ValueError for what is no name."""
    if not (isinstance(name, str) and name and name.isprintable() and len(name) <= _MOST_NAME):
        raise ValueError(f"a name must be 1 to {_MOST_NAME} printable characters, got {name!r}")
    RequestOptions(tenant=tenant)  # or no request can have it
    whose = json.dumps([tenant, name]).encode()
    return hashlib.blake2b(whose, digest_size=32, person=b"kvtide-name").digest()


def _tier(tier: str) -> Tier:
    tiers: dict[str, Tier] = {each.label: each for each in Tier}
    if tier not in tiers:
        raise ValueError(f"tier must be one of {', '.join(tiers)}, got {tier!r}")
    return tiers[tier]


def _ttl_ns(ttl_s: float | None) -> int | None:
    return None if ttl_s is None else int(ttl_s * 1e9)
