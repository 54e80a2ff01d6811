"""What the endpoint's answers hold, beyond `kvstore.reports`."""

from typing import Any, Literal

from msgspec import Struct

from kvstore.reasons import MissReason
from kvstore.reports import (
    Advice,
    Decision,
    Difference,
    Explanation,
    NamedCache,
    NamespaceInfo,
    Part,
    RequestReport,
    TenantReport,
    TierName,
)

# --- answers: whether it is there -----------------------------------------------------------------------------------


class Health(Struct, frozen=True, kw_only=True):
    """The endpoint answers."""

    status: Literal["ok"] = "ok"


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether requests are served, and if not, why."""

    status: Literal["ready", "not ready"]
    reasons: tuple[str, ...] = ()


class Version(Struct, frozen=True, kw_only=True):
    """What runs."""

    name: str
    version: str
    python: str


class Session(Struct, frozen=True, kw_only=True):
    """What whoever asks may do, and what there is to be done.

    text: whether text of what is cached may be shown to them.   can: what the cache has, as methods of its Subject.
    """

    role: Literal["read", "full"]
    text: bool
    can: tuple[str, ...]


# --- answers: figures -----------------------------------------------------------------------------------------------

ByWindow = dict[str, float | None]


class WindowFigures(Struct, frozen=True, kw_only=True):
    """What was asked for over the last seconds, and what of it came from where. `hit_rate`: None if nothing was asked."""

    seconds: int
    prompt_tokens: int
    cached_tokens_by_tier: dict[TierName, int]
    hit_rate: float | None


class TierFigures(Struct, frozen=True, kw_only=True):
    """One tier.

    on: whether the engine has it.   ready: whether it works now.
    capacity: what there is of it, save slots out of service.   used: what is taken of it, for whatever.
    live: what holds blocks that can be found.
    in_flight: what is being filled now.   Each in bytes and in blocks; None where it is not known.
    reason: why it is off or not ready; None while it works.
    hit_rate: cached tokens from this tier by prompt tokens, by window in seconds; None if nothing was asked.
    evicted_blocks: copies that left to make room.   dropped_blocks: those of them that were the last copy.
    """

    name: TierName
    on: bool
    ready: bool
    capacity_bytes: int | None
    used_bytes: int | None
    live_bytes: int | None
    in_flight_bytes: int | None
    capacity_blocks: int | None
    used_blocks: int | None
    live_blocks: int | None
    in_flight_blocks: int | None
    hit_rate: ByWindow
    evicted_blocks: int
    dropped_blocks: int
    reason: str | None


TransferName = Literal["demote", "promote", "swap_out", "swap_in", "read", "write"]


class TransferFigures(Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """What moved between two tiers. Counts are since the start.

    bytes_per_s: by window in seconds; None without samples.   busy_share: seconds that moves took, from asked to ended, by
        seconds that passed; above 1 where several run at once.
    """

    name: TransferName
    source: TierName
    target: TierName
    bytes: int
    blocks: int
    failed_blocks: int
    in_flight_blocks: int
    bytes_per_s: ByWindow
    busy_share: ByWindow


class DiskFigures(Struct, frozen=True, kw_only=True):
    """The disk tier. Bytes are after compression, save `raw_bytes`.

    compression_ratio: raw by stored bytes; None if nothing is stored.   written_by_read: bytes written by bytes read for
    hits; None if nothing was read.   damaged: records that failed a check, by reason.
    """

    compression_ratio: float | None
    stored_bytes: int
    raw_bytes: int
    written_bytes: int
    read_bytes: int
    written_by_read: float | None
    damaged: dict[str, int]
    other_namespaces_bytes: int


class Queue(Struct, frozen=True, kw_only=True):
    """Replies that wait, and that are being computed."""

    waiting: int
    running: int


HistoryPoint = tuple[float, float | None, float | None, float | None, int]


class Tiers(Struct, frozen=True, kw_only=True):
    """What the tiers hold, how often they serve, and what moves between them.

    history: points of about five seconds for the last hour, each [seconds since the epoch, hit rate of device, of host,
    of disk, prompt tokens].   missed_tokens: prompt tokens that were computed, by reason.
    """

    windows: tuple[WindowFigures, ...]
    tiers: tuple[TierFigures, ...]
    transfers: tuple[TransferFigures, ...]
    disk: DiskFigures | None
    queue: Queue | None
    history: tuple[HistoryPoint, ...]
    missed_tokens: dict[str, int]
    gpu: dict[str, Any] | None


# --- answers: what is asked for -------------------------------------------------------------------------------------


class Namespaces(Struct, frozen=True, kw_only=True):
    """What the tiers hold, by namespace; the own first."""

    namespaces: tuple[NamespaceInfo, ...]


class Explained(Struct, frozen=True, kw_only=True):
    """What of a prompt would be served from where, and why the rest would not: an Explanation with its sums.

    cached_tokens: tokens that would be served.   reasons: tokens that would be computed, by reason.
    """

    prompt_tokens: int
    block_tokens: int
    parts: tuple[Part, ...]
    difference: Difference | None
    notes: tuple[str, ...]
    decision: Decision | None
    cached_tokens: int
    reasons: dict[MissReason, int]

    @classmethod
    def of(cls, found: Explanation) -> "Explained":
        """With the sums of an explanation."""
        return cls(
            prompt_tokens=found.prompt_tokens,
            block_tokens=found.block_tokens,
            parts=found.parts,
            difference=found.difference,
            notes=found.notes,
            decision=found.decision,
            cached_tokens=found.cached_tokens,
            reasons=found.reasons,
        )


class Caches(Struct, frozen=True, kw_only=True):
    """Named caches, by name."""

    caches: tuple[NamedCache, ...]


class Released(Struct, frozen=True, kw_only=True):
    """How many tokens of the prompt were kept, and are no longer."""

    tokens: int


class Deleted(Struct, frozen=True, kw_only=True):
    """It is held no longer; its blocks stay as others do."""

    deleted: Literal[True] = True


class Resumed(Struct, frozen=True, kw_only=True):
    """Requests are taken again."""

    draining: Literal[False] = False


JobKind = Literal["warm", "cache", "keep", "demote", "flush", "drain", "verify"]


class Job(Struct, frozen=True, kw_only=True):
    """A long action. `result`: of one that is done; `error`: the sentence of one that failed."""

    id: str
    kind: JobKind
    state: Literal["running", "done", "failed"]
    started_ago_s: float
    ended_ago_s: float | None
    result: Any
    error: str | None


class Jobs(Struct, frozen=True, kw_only=True):
    """The last long actions, the latest first."""

    jobs: tuple[Job, ...]


class Settings(Struct, frozen=True, kw_only=True):
    """The configuration as it is now, sizes in bytes, and the names of what can be changed while requests run."""

    settings: dict[str, Any]
    changeable: tuple[str, ...]


class Requests(Struct, frozen=True, kw_only=True):
    """The last requests, the latest first."""

    requests: tuple[RequestReport, ...]


class Advices(Struct, frozen=True, kw_only=True):
    """Where prompts leave what is cached at the highest cost, the costliest first."""

    advice: tuple[Advice, ...]


class Tenants(Struct, frozen=True, kw_only=True):
    """What each tenant has, who has most first."""

    tenants: tuple[TenantReport, ...]


class QuotaSet(Struct, frozen=True, kw_only=True):
    """The tenant's quota from now on; None where it has none of its own any more."""

    tenant: str
    quota: dict[str, int | float | str] | None


class Gap(Struct, frozen=True, kw_only=True):
    """Events that happened, and that it is too late to tell of: numbers from `first` to `last`."""

    first: int
    last: int
