"""What the admin endpoint shows and steers, as it sees it."""

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Literal, Protocol

from kvstore.closing import Closing
from kvstore.reports import (
    Advice,
    Event,
    Explanation,
    NamedCache,
    NamespaceInfo,
    PrefixDetail,
    PrefixPage,
    PrefixQuery,
    Removed,
    RequestReport,
    TenantReport,
    TierName,
    Verified,
)


class NamedCaches(Protocol):
    """The named caches of a subject. KeyError for a name that nothing has."""

    def list(self, tenant: str | None = None) -> Sequence[NamedCache]:
        """A tenant's, or nobody's."""
        ...

    def get(self, name: str, tenant: str | None = None) -> NamedCache:
        """One as it is now."""
        ...

    def create(
        self, name: str, prompt: Any, ttl: str | float | None = None, options: Any = None
    ) -> NamedCache:
        """Compute a prompt and hold it under a name."""
        ...

    def extend(self, name: str, ttl: str | float | None, tenant: str | None = None) -> NamedCache:
        """Give one another time from now on."""
        ...

    def delete(self, name: str, tenant: str | None = None) -> None:
        """Hold one no longer."""
        ...


class Subject(Protocol):
    """A cache, or an engine around one. The endpoint answers 501 for what its subject does not have.

    Any thread may call all of it; everything but `stats` and `events` may block, and nothing makes the thread that
    computes wait. ValueError for what the caller gave wrongly, KeyError for a key or id that nothing has, StoreError and
    RuntimeError where the cache cannot.
    """

    # --- figures: a bare TieredCache has these ---

    def stats(self) -> dict[str, Any]:
        """Figures as of a moment ago: see docs/architecture.md."""
        ...

    def events(self, after: int) -> Sequence[Event]:
        """What has happened since the event of that number, oldest first; what is too long ago is missing."""
        ...

    def prefixes(self, query: PrefixQuery) -> PrefixPage:
        """List runs of blocks. Raises KeyError if there is no run `under` which to look."""
        ...

    def prefix(self, key: str, *, text: bool = False) -> PrefixDetail:
        """The run that ends with, or holds, the block of this key, in hexadecimal."""
        ...

    def demote_prefix(self, key: str, to: TierName) -> Removed:
        """Move what is idle of a run, and of all that follows it, down to "host" or "disk"; waits until that is done."""
        ...

    def remove_prefix(self, key: str) -> Removed:
        """Forget what is idle of a run and of all that follows it, in every tier."""
        ...

    # --- of an engine only ---

    def tell_of_change(self, tell: Callable[[], None]) -> None:
        """Have this called, once, when anything next happens by which the counts of `stats` may grow. Does not block.

        `tell` is called by the thread that computes: it must only post. Who watches an idle engine so need not wake it.
        """
        ...

    def options(self, values: Mapping[str, Any]) -> Any:
        """What `explain` and `warm` take as options, from plain values: `tenant`, `cache_salt`, `salt_offset`, of `warm` also `ttl`."""
        ...

    def explain(self, prompt: Any, options: Any = None, *, text: bool = True) -> Explanation:
        """See Engine.explain. `text`: whether it may show text of what is cached."""
        ...

    def warm(self, prompt: Any, options: Any = None) -> Any:
        """See Engine.warm."""
        ...

    @property
    def caches(self) -> NamedCaches:
        """See Engine.caches."""
        ...

    def keep(self, prompt: Any, tier: TierName = "device", options: Any = None) -> int:
        """See Engine.keep."""
        ...

    def release(self, prompt: Any, options: Any = None) -> int:
        """See Engine.release."""
        ...

    def demote(self, to: Literal["host", "disk"]) -> None:
        """See Engine.demote."""
        ...

    def flush(self) -> None:
        """See Engine.flush."""
        ...

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no new requests, and wait until those there are have ended. False if the time was not enough or somebody resumes."""
        ...

    def resume(self) -> None:
        """Take requests again."""
        ...

    def verify(self) -> Verified:
        """Read every record of the engine's own namespace and check it; what is damaged is put aside, as by a request."""
        ...

    def namespaces(self) -> Sequence[NamespaceInfo]:
        """What the tiers hold, by namespace; the engine's own first."""
        ...

    def settings(self) -> dict[str, Any]:
        """The configuration as it is now, sizes in bytes."""
        ...

    def change(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Change settings that can be changed while requests run; all of them or none. What `settings` says then."""
        ...

    def tenants(self) -> Sequence[TenantReport]:
        """What each tenant has in the tiers, who has most first."""
        ...

    def set_quota(self, tenant: str, quota: Mapping[str, Any]) -> None:
        """Set what a tenant may keep when there is not room for all."""
        ...

    def delete_quota(self, tenant: str) -> None:
        """Take that away. KeyError if there is none."""
        ...

    def request(self, number: int, *, text: bool = False) -> RequestReport:
        """What is known of one of the last requests, by the id of its handle."""
        ...

    def requests(self, limit: int = 50) -> Sequence[RequestReport]:
        """The last requests, the latest first, without explanations."""
        ...

    def advice(self, *, text: bool = False) -> Sequence[Advice]:
        """Where prompts of live traffic leave what is cached at the highest cost, the costliest first."""
        ...

    def record(
        self, target: IO[bytes], *, max_s: float | None = None, max_bytes: int | None = None
    ) -> Closing:
        """Write down what is asked from now on, as a trace, until that is closed, or closes the target: see Engine.record."""
        ...
