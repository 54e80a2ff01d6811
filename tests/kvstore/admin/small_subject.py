"""A subject of a few runs of blocks in memory, for what is about HTTP and not about caches."""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import IO, Any

from kvstore.errors import StoreFailed
from kvstore.reasons import MissReason
from kvstore.reports import (
    Advice,
    DifferenceKind,
    Event,
    Explanation,
    NamedCache,
    NamespaceInfo,
    Part,
    PrefixDetail,
    PrefixPage,
    PrefixQuery,
    PrefixRun,
    Removed,
    RequestReport,
    TenantReport,
    TierName,
    Verified,
)

BLOCK = 16
PROMPT_TEXT = "you are the captain of a ship"


def key(number: int) -> str:
    return f"{number:064x}"


def run(number: int, parent: str | None = None, **changed: Any) -> PrefixRun:
    facts = {
        "key": key(number),
        "parent": parent,
        "start_token": 0,
        "end_token": 2 * BLOCK,
        "blocks": 2,
        "blocks_by_tier": {"device": 2, "host": 0, "disk": 1},
        "hits": number,
        "last_used_ago_s": 1.5,
        "ttl_s": None,
        "leases": 0,
        "private": False,
        "children": 0,
        "blocks_below": 0,
    }
    return PrefixRun(**{**facts, **changed})


@dataclass
class SmallResult:
    """What of an engine's result the endpoint looks at."""

    prompt_tokens: int
    error: str | None = None
    finish_reason: str = "length"

    @property
    def usage(self) -> Any:
        return _Usage(self.prompt_tokens, {"device": 0, "host": 0, "disk": 0}, self.prompt_tokens)


@dataclass
class _Usage:
    prompt_tokens: int
    cached_by_tier: dict[str, int]
    prefilled_tokens: int


@dataclass
class SmallCaches:
    """Named caches of nobody's."""

    made: dict[tuple[str | None, str], NamedCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.create("handbook", "x" * 2 * BLOCK)

    def list(self, tenant: str | None = None) -> list[NamedCache]:
        return [cache for (whose, _), cache in self.made.items() if whose == tenant]

    def get(self, name: str, tenant: str | None = None) -> NamedCache:
        return self.made[tenant, name]

    def create(
        self, name: str, prompt: Any, ttl: str | float | None = None, options: Any = None
    ) -> NamedCache:
        tenant = (options or {}).get("tenant")
        if (tenant, name) in self.made:
            raise ValueError(f"there is a cache {name!r} already")
        self.made[tenant, name] = NamedCache(
            name=name,
            tenant=tenant,
            tokens=len(prompt),
            blocks=2,
            bytes=1024,
            created_s=1.0,
            expires_s=None if ttl is None else 3601.0,
            tiers={"device": 2, "host": 0, "disk": 0},
            lost_blocks=0,
            held=True,
        )
        return self.made[tenant, name]

    def extend(self, name: str, ttl: str | float | None, tenant: str | None = None) -> NamedCache:
        self.made[tenant, name] = replace(self.made[tenant, name], expires_s=None if ttl is None else 301.0)
        return self.made[tenant, name]

    def delete(self, name: str, tenant: str | None = None) -> None:
        del self.made[tenant, name]


@dataclass
class SmallSubject:
    """Does what the Protocol says, at once, and holds what it does until `gate` is set."""

    runs: dict[str, PrefixRun] = field(default_factory=lambda: {key(n): run(n) for n in range(1, 6)})
    happened: list[Event] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    changed: dict[str, Any] = field(
        default_factory=lambda: {"host_bytes": 1024, "ttl_s": None, "disk_path": None, "block_tokens": BLOCK}
    )
    quotas: dict[str, dict[str, Any]] = field(default_factory=dict)
    draining: bool = False
    caches: SmallCaches = field(default_factory=SmallCaches)
    counts: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "device": 0})
    asked_text: list[bool] = field(default_factory=list)
    num_stats: int = 0
    recorded: "SmallRecording | None" = None

    def __post_init__(self) -> None:
        self.gate.set()

    def happen(self, kind: str, **facts: Any) -> None:
        number = self.happened[-1].number + 1 if self.happened else 1
        self.happened = [*self.happened, Event(number=number, at_s=time.time(), kind=kind, facts=facts)]

    def stats(self) -> dict[str, Any]:
        self.num_stats += 1
        return {
            "engine": {
                "requests": 1,
                "running": 0,
                "waiting": 2,
                "prompt_tokens": self.counts["prompt_tokens"],
                "cached_tokens_by_tier": {"device": self.counts["device"], "host": 0, "disk": 0},
                "missed_tokens": {"never_seen": 3},
                "draining": self.draining,
            },
            "cache": {
                "block_bytes": 1024,
                "block_tokens": BLOCK,
                "blocks": 10,
                "tiers": {
                    "device": {"slots": 8, "free": 2, "private": 1, "indexed": 4, "in_flight": 1},
                    "host": {"slots": 0, "free": 0, "private": 0, "indexed": 0, "in_flight": 0},
                    "disk": {"ready": False, "blocks": 0, "bytes": 0, "capacity_bytes": 0},
                },
            },
            "disk_off": None,
            "gpu": None,
        }

    def events(self, after: int) -> list[Event]:
        return [event for event in self.happened if event.number > after]

    def prefixes(self, query: PrefixQuery) -> PrefixPage:
        if query.under is not None and query.under not in self.runs:
            raise KeyError(query.under)
        rows = [
            each for each in self.runs.values() if each.parent == query.under and each.hits >= query.min_hits
        ]
        if query.text:
            rows = [replace(each, text=PROMPT_TEXT) for each in rows]
        return PrefixPage(rows=tuple(rows[query.offset :][: query.limit]), total=len(rows), taken_ago_s=0.0)

    def prefix(self, key: str, *, text: bool = False) -> PrefixDetail:
        return PrefixDetail(run=self.runs[key], above=(), token_ids=(1, 2, 3))

    def demote_prefix(self, key: str, to: str) -> Removed:
        self.gate.wait()
        self.runs[key]
        return Removed(blocks=2, in_use_blocks=0)

    def remove_prefix(self, key: str) -> Removed:
        self.happen("removed", key=key)
        return Removed(blocks=self.runs.pop(key).blocks, in_use_blocks=0)

    def options(self, values: dict[str, Any]) -> Any:
        if not values.get("tenant", "a").isprintable():
            raise ValueError("tenant must be a string of printable characters, or None")
        return dict(values)

    def explain(self, prompt: Any, options: Any = None, *, text: bool = True) -> Explanation:
        self.gate.wait()
        self.asked_text.append(text)
        missed = Part(start_token=0, end_token=len(prompt), reason=MissReason.NEVER_SEEN)
        return Explanation(prompt_tokens=len(prompt), block_tokens=BLOCK, parts=(missed,))

    def warm(self, prompt: Any, options: Any = None) -> SmallResult:
        self.gate.wait()
        return SmallResult(len(prompt), "no memory" if prompt == "too much" else None)

    def keep(self, prompt: Any, tier: str = "device", options: Any = None) -> int:
        return len(prompt) // BLOCK * BLOCK

    def release(self, prompt: Any, options: Any = None) -> int:
        return len(prompt) // BLOCK * BLOCK

    def demote(self, to: str) -> None:
        self.gate.wait()

    def flush(self) -> None:
        self.gate.wait()
        raise StoreFailed("3 cached blocks are not on disk: it is full")

    def drain(self, timeout_s: float | None = None) -> bool:
        self.draining = True
        self.gate.wait()
        return timeout_s is None or timeout_s > 0

    def resume(self) -> None:
        self.draining = False

    def verify(self) -> Verified:
        self.gate.wait()
        return Verified(records=4, damaged={MissReason.DAMAGED_CHECKSUM: 1}, seconds=0.1)

    def namespaces(self) -> list[NamespaceInfo]:
        return [NamespaceInfo(digest="ab", own=True, facts={"model": "tiny"}, blocks=3, stored_bytes=99)]

    def settings(self) -> dict[str, Any]:
        return dict(self.changed)

    def change(self, changes: dict[str, Any]) -> dict[str, Any]:
        for name in changes:
            if name not in ("host_bytes", "ttl_s"):
                raise ValueError(
                    f"{name} cannot be changed while the engine runs; changeable are host_bytes, ttl_s"
                )
        self.changed |= changes
        return self.settings()

    def tenants(self) -> list[TenantReport]:
        nothing: dict[TierName, int] = {"device": 0, "host": 0, "disk": 0}
        return [
            TenantReport(
                tenant=name,
                owner=name.encode().hex(),
                used_bytes=nothing,
                part_bytes=None,
                quota=quota,
                evicted_copies=0,
                evictions_asked=0,
            )
            for name, quota in self.quotas.items()
        ]

    def set_quota(self, tenant: str, quota: dict[str, Any]) -> None:
        self.quotas[tenant] = quota

    def delete_quota(self, tenant: str) -> None:
        del self.quotas[tenant]

    def request(self, number: int, *, text: bool = False) -> RequestReport:
        if number != 7:
            raise KeyError(number)
        return self.requests()[0]

    def requests(self, limit: int = 50) -> list[RequestReport]:
        report = RequestReport(
            number=7,
            state="stop",
            submitted_ago_s=1.0,
            prompt_tokens=20,
            cached_by_tier={"device": 16, "host": 0, "disk": 0},
            prefilled_tokens=4,
            completion_tokens=2,
            queue_s=0.1,
            load_s=0.0,
            prefill_s=0.2,
            ttft_s=0.3,
            private=False,
        )
        return [report][:limit]

    def advice(self, *, text: bool = False) -> list[Advice]:
        return [
            Advice(
                kind=DifferenceKind.TIMESTAMP,
                sentence="move the time to the end",
                at_token=12,
                requests=3,
                lost_tokens=300,
                lost_s=0.5,
            )
        ]

    def record(
        self, target: IO[bytes], *, max_s: float | None = None, max_bytes: int | None = None
    ) -> "SmallRecording":
        self.recorded = SmallRecording(target, max_s, max_bytes)
        target.write(b'{"format":"kvtide-trace","version":1,"block_tokens":16}\n')
        if self.gate.is_set():
            target.write(b'{"ended":"seconds","requests":0,"dropped":0}\n')
            target.close()
        return self.recorded


@dataclass
class SmallRecording:
    """Remembers what was asked for, and whether it was closed."""

    target: IO[bytes]
    max_s: float | None
    max_bytes: int | None
    closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.closed.set()
