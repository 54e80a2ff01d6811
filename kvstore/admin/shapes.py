"""What requests to the endpoint may hold, and what its answers do, beyond `kvstore.reports`."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kvstore.reasons import MissReason
from kvstore.reports import (
    MAX_PAGE_ROWS,
    Advice,
    Decision,
    Difference,
    Explanation,
    NamedCache,
    NamespaceInfo,
    Part,
    PrefixOrder,
    RequestReport,
    TenantReport,
    TierName,
)

Key = Annotated[
    str,
    Meta(
        pattern="^[0-9a-f]{64}$",
        max_length=64,  # to Python, "$" also stands before a line feed at the end
        description="A block key: 64 hexadecimal digits.",
    ),
]
Count = Annotated[int, Meta(ge=0, le=2**53)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Text = Annotated[bool, Meta(description="Whether to show text, which must be allowed.")]
Name = Annotated[
    str, Meta(min_length=1, max_length=200, description="Of a named cache: printable characters.")
]
Ttl = Literal["5m", "30m", "1h"] | Annotated[float, Meta(ge=1, le=1e9)] | None
LowerTier = Literal["host", "disk"]


class Sent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client sends: anything that is not named is an error."""


# --- query parameters -----------------------------------------------------------------------------------------------


class NoParams(Sent, frozen=True, kw_only=True):
    """None."""


class TenantParams(Sent, frozen=True, kw_only=True):
    """Whose."""

    tenant: Annotated[str, Meta(min_length=1, description="The tenant; without it nobody's.")] | UnsetType = (
        UNSET
    )


class PrefixParams(Sent, frozen=True, kw_only=True):
    """See PrefixQuery."""

    under: Annotated[Key, Meta(description="Only runs that follow the run with this key.")] | UnsetType = (
        UNSET
    )
    flat: Annotated[bool, Meta(description="All runs, whatever their depth.")] = False
    order: Annotated[PrefixOrder, Meta(description="How rows are sorted.")] = "recent"
    tier: Annotated[TierName, Meta(description="Only runs with a block in this tier.")] | UnsetType = UNSET
    min_hits: Annotated[Count, Meta(description="Only runs with so many hits.")] = 0
    min_blocks: Annotated[Count, Meta(description="Only runs of so many blocks.")] = 0
    private: Annotated[bool, Meta(description="Only tenants' runs, or only others.")] | UnsetType = UNSET
    contains: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=200,
                description="Only runs whose text begins with something that holds this; for who may see text.",
            ),
        ]
        | UnsetType
    ) = UNSET
    offset: Annotated[Count, Meta(description="How many rows to leave out at the beginning.")] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE_ROWS, description="How many rows at most.")] = 50
    text: Text = False


class TextParams(Sent, frozen=True, kw_only=True):
    """Whether text is wanted."""

    text: Text = False


class EventParams(Sent, frozen=True, kw_only=True):
    """From where on to tell of events."""

    after: (
        Annotated[Count, Meta(description="The number of the last event that is known already.")] | UnsetType
    ) = UNSET


class RecordingParams(Sent, frozen=True, kw_only=True):
    """When a recording ends by itself."""

    for_s: Annotated[float, Meta(gt=0, le=1e6, description="After so many seconds.")] | UnsetType = UNSET
    max_bytes: (
        Annotated[int, Meta(ge=4096, le=2**53, description="Once it has so many bytes.")] | UnsetType
    ) = UNSET


class RequestParams(Sent, frozen=True, kw_only=True):
    """How many requests to list."""

    limit: Annotated[int, Meta(ge=1, le=500, description="How many at most.")] = 50


# --- bodies ---------------------------------------------------------------------------------------------------------


class Message(Sent, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str


class Prompt(Sent, frozen=True, kw_only=True):
    """A prompt, as exactly one of text, messages and token ids, and whose it is."""

    text: str | UnsetType = UNSET
    messages: Annotated[list[Message], Meta(min_length=1)] | UnsetType = UNSET
    token_ids: Annotated[list[TokenId], Meta(min_length=1)] | UnsetType = UNSET
    tenant: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    cache_salt: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    salt_offset: Count = 0

    def __post_init__(self) -> None:
        given = [name for name in PROMPT_FORMS if getattr(self, name) is not UNSET]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(f"Expected exactly one of `text`, `messages` and `token_ids`, got {what}")

    @property
    def prompt(self) -> str | list[int] | list[dict[str, str]]:
        """The prompt as an engine takes it."""
        if self.messages is not UNSET:
            return [{"role": each.role, "content": each.content} for each in self.messages]
        if self.token_ids is not UNSET:
            return self.token_ids
        assert self.text is not UNSET, "exactly one is given"
        return self.text

    @property
    def options(self) -> dict[str, Any]:
        """Whose it is, as plain values; empty for everybody's."""
        named = {"tenant": self.tenant, "cache_salt": self.cache_salt, "salt_offset": self.salt_offset}
        return {name: value for name, value in named.items() if value is not UNSET and value != 0}


class Warm(Prompt, frozen=True, kw_only=True):
    """A prompt that is to be computed, and for how long its blocks are to live after each use; without `ttl` as settings say."""

    ttl: Ttl = None

    @property
    def options(self) -> dict[str, Any]:
        """Likewise, with the time to live."""
        given = super().options
        return given if self.ttl is None else {**given, "ttl": self.ttl}


PROMPT_FORMS = ("text", "messages", "token_ids")


class Cache(Prompt, frozen=True, kw_only=True):
    """A prompt that is to be held under a name, and for how long after its last use; without `ttl` until it is deleted."""

    name: Name
    ttl: Ttl = None


class Extension(Sent, frozen=True, kw_only=True):
    """For how long after its last use a cache is held from now on; null for until it is deleted."""

    ttl: Ttl


class Kept(Prompt, frozen=True, kw_only=True):
    """A prompt, and the tier in which, or nearer to the model, what is cached of it is to stay."""

    tier: TierName = "device"


class Demote(Sent, frozen=True, kw_only=True):
    """Where to, and of what: of everything that is idle, or of one run with all that follows it."""

    to: LowerTier
    key: Key | UnsetType = UNSET


class Drain(Sent, frozen=True, kw_only=True):
    """For how long to wait until the requests there are have ended; without it, as long as they take."""

    timeout_s: Annotated[float, Meta(ge=0, le=1e6)] | UnsetType = UNSET


class Nothing(Sent, frozen=True, kw_only=True):
    """An empty object."""


Changes = Annotated[
    dict[str, int | float | str | bool | None],
    Meta(min_length=1, description="Settings by name, and what they shall be."),
]

_QuotaSize = Annotated[
    int | float | str,
    Meta(description='Bytes, a text such as "2GiB", or a share of the tier: a fraction up to 1.0, or "25%".'),
]


class TenantQuota(Sent, frozen=True, kw_only=True, omit_defaults=True):
    """What a tenant may keep in each tier when there is not room for all; where nothing is said, a part by weight."""

    device: _QuotaSize | UnsetType = UNSET
    host: _QuotaSize | UnsetType = UNSET
    disk: _QuotaSize | UnsetType = UNSET
    weight: Annotated[float, Meta(gt=0)] | UnsetType = UNSET


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
