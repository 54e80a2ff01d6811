"""What a cache tells of itself: plain values, the same for Python, HTTP and the command line.

Times are seconds ago, not clock readings: what tells them and who reads them need not share a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from kvstore.reasons import MissReason

TierName = Literal["device", "host", "disk"]

# --- why a prompt missed --------------------------------------------------------------------------------------------


class DifferenceKind(StrEnum):
    """What the difference between two prompts looks like, from the most telling to the least."""

    BILLING_HEADER = "billing_header"
    """A line that a client writes anew for each request, such as Claude Code's `x-anthropic-billing-header`."""
    TIMESTAMP = "timestamp"
    UUID = "uuid"
    COUNTER = "counter"
    """A number that is near the other one."""
    REORDERED_KEYS = "reordered_keys"
    """JSON with the same members in another order."""
    REORDERED_DOCUMENTS = "reordered_documents"
    """The same paragraphs, documents or tools in another order."""
    WHITE_SPACE = "white_space"
    MERGE_AT_BOUNDARY = "merge_at_boundary"
    """The same text, cut into other tokens: at a boundary, what follows was merged with what came before."""
    REWRITTEN_TURN = "rewritten_turn"
    """The chat template wrote an earlier turn in another way."""
    TRUNCATED = "truncated"
    """One of them lacks the other's beginning of the conversation, as when old turns are dropped to save room."""
    OTHER_TEXT = "other_text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Where a prompt leaves the cached prefix that is most like it.

    at_token: the first position at which they differ; what lies before is equal, token by token.
    asked_ids, cached_ids: the tokens from there on, a few of each.
    before_ids: the last equal tokens, a few.
    before, asked, cached: the same as text, where text may be shown; else None.
    kind, advice: what the difference looks like and the sentence that says what to do; None where that is not known.
    also: other kinds that vary beside it, in the same stretch; moving the first alone would gain nothing.
    section: the part of the prompt that it lies in, such as "system message" or "message 3 (user)"; None if not known.
    same_after_tokens: how many tokens behind the part that differs are the same again, as far as the cached ones are
        known: what would be found if that part stood at the end. None if that was not looked at.
    """

    at_token: int
    before_ids: tuple[int, ...]
    asked_ids: tuple[int, ...]
    cached_ids: tuple[int, ...]
    before: str | None = None
    asked: str | None = None
    cached: str | None = None
    kind: DifferenceKind | None = None
    advice: str | None = None
    section: str | None = None
    same_after_tokens: int | None = None
    also: tuple[DifferenceKind, ...] = ()

    def without_text(self) -> "Difference":
        """The same without anything that a prompt could be read from: neither text nor token ids."""
        return replace(self, before_ids=(), asked_ids=(), cached_ids=(), before=None, asked=None, cached=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A run of a prompt's tokens [start_token, end_token) with one fate: served from a tier, or computed for a reason.

    tier: where its blocks lie; of what is computed, the tier that had it last, if it ever was in one.
    reason: None for what is served.   ago_s: when what is gone went, if that is remembered.
    detail: a sentence more, such as which facts of an identity differ.
    """

    start_token: int
    end_token: int
    tier: TierName | None = None
    reason: MissReason | None = None
    ago_s: float | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """How much of what lower tiers had of a prompt was to be used, and what that was thought to take.

    num_blocks: the first so many of the `of_blocks` that matched.   load_s, prefill_s, ttft_s: predicted; None as long as there
        is no curve of prefilling, and then all are used.   always_s, never_s: predicted with all, and with those on the device alone.
    deadline_s: what has not come from disk so long after it was asked for is computed; None for as long as any read may take.
    probes: a tier that was used only to see how fast it is.   queued_bytes: of KV, to be read from disk before these.
    took_s: loading and computing, once the prompt is computed.   error: by how much more that was than `ttft_s`, as a part of it.
    """

    num_blocks: int
    of_blocks: int
    load_s: float | None = None
    prefill_s: float | None = None
    ttft_s: float | None = None
    always_s: float | None = None
    never_s: float | None = None
    deadline_s: float | None = None
    probes: TierName | None = None
    queued_bytes: int = 0
    took_s: float | None = None
    error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What of a prompt is served from where, and why the rest is not.

    parts: in order, without gaps, from token 0 to `prompt_tokens`.
    difference: where the prompt leaves what is cached, if that is why it is not served further.
    notes: sentences that belong to no part.
    decision: of a request, how much of what matched it was to load; None where there was nothing to decide.
    """

    prompt_tokens: int
    block_tokens: int
    parts: tuple[Part, ...]
    difference: Difference | None = None
    notes: tuple[str, ...] = ()
    decision: Decision | None = None

    def without_text(self) -> "Explanation":
        """The same without anything that a prompt could be read from; notes may quote one."""
        difference = None if self.difference is None else self.difference.without_text()
        return replace(self, difference=difference, notes=())

    def by_blocks(self) -> "Explanation":
        """The same without text, and of a difference no more than the block in which it lies.

        For who must see no text and chooses the prompt: told the very token, or what the difference looks like, they could
        guess what is cached one token after the other. A block cannot be guessed at once.
        """
        if self.difference is None:
            return self.without_text()
        at_token = self.difference.at_token // self.block_tokens * self.block_tokens
        difference = Difference(at_token=at_token, before_ids=(), asked_ids=(), cached_ids=())
        return replace(self, difference=difference, notes=())

    @property
    def cached_tokens(self) -> int:
        """Tokens that are served."""
        return sum(part.end_token - part.start_token for part in self.parts if part.reason is None)

    @property
    def reasons(self) -> dict[MissReason, int]:
        """Computed tokens by reason."""
        counts: dict[MissReason, int] = {}
        for part in self.parts:
            if part.reason is not None:
                counts[part.reason] = counts.get(part.reason, 0) + part.end_token - part.start_token
        return counts


# --- what is cached -------------------------------------------------------------------------------------------------

PrefixOrder = Literal["recent", "oldest", "hits", "blocks", "size"]
MAX_PAGE_ROWS = 500
SEARCHED_RUNS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixQuery:
    """Which runs of blocks to list.

    under: the key of a run: those that follow it directly; None: those that prompts begin with.
    flat: all runs below it, whatever their depth.
    order: "blocks" is by a run's own blocks, most first; "size" by these and all that follow it.
    tier: only runs with a block in that tier.   min_hits, min_blocks: only runs with at least so many, each by itself.
    private: only runs that are a tenant's, or only those that are not; None: both.
    contains: only runs in whose text this stands, in any case of letters: in the part of it that rows show, and of the
        SEARCHED_RUNS runs that would come first. For who may see text.
    offset, limit: of the sorted list; at most MAX_PAGE_ROWS rows.
    text: whether rows are to have text; tokens are always given as counts only.
    """

    under: str | None = None
    flat: bool = False
    order: PrefixOrder = "recent"
    tier: TierName | None = None
    min_hits: int = 0
    min_blocks: int = 0
    private: bool | None = None
    contains: str | None = None
    offset: int = 0
    limit: int = 50
    text: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixRun:
    """A run of blocks without a branch: what all prompts share that come this way.

    key: the block key of its last block, in hexadecimal.   parent: that of the run before it; None at a beginning.
    start_token, end_token: its place in the prompts that hold it.
    blocks: how many.   blocks_by_tier: how many of them each tier holds whole; exactly "device", "host" and "disk".
    hits: how often requests found its first block, since the start.   last_used_ago_s: None if never since then.
    ttl_s: how long it will be kept if nobody uses it; None for as long as there is room.   held: whether a user has its first
        block kept, by `keep` or a named cache.
    leases: requests that hold its first block.   private: whether it is a tenant's.
    children: runs that follow it directly.   blocks_below: blocks of all runs that follow it, at any depth.
    text: the beginning of its text, where that was asked for and may be shown; else None.
    """

    key: str
    parent: str | None
    start_token: int
    end_token: int
    blocks: int
    blocks_by_tier: dict[TierName, int]
    hits: int
    last_used_ago_s: float | None
    ttl_s: float | None
    leases: int
    private: bool
    children: int
    blocks_below: int
    text: str | None = None
    held: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixPage:
    """Some of the runs that a query meets, and how many there are.

    taken_ago_s: how old the list is.
    blocks: of all runs that the query meets, with all that follow these; None where that was not summed up.
    """

    rows: tuple[PrefixRun, ...]
    total: int
    taken_ago_s: float
    blocks: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixDetail:
    """One run, with the runs that lead to it, from the beginning on, and its token ids, as many as fit."""

    run: PrefixRun
    above: tuple[PrefixRun, ...]
    token_ids: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedCache:
    """A prompt whose blocks are held under a name, as it is now.

    tokens, blocks: held.   bytes: of them, what is on disk takes there.   created_s, expires_s: seconds since the epoch; a use
    moves the latter; None for never.   tiers: blocks by the nearest tier that has each.   lost_blocks: those that no tier has
    any more, as after damage: it can be created again.   held: false once it had to give way to a request.
    """

    name: str
    tenant: str | None
    tokens: int
    blocks: int
    bytes: int
    created_s: float
    expires_s: float | None
    tiers: Mapping[str, int]
    lost_blocks: int
    held: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """What became of a run with all that follows it: blocks that went, or were moved, and those that were in use."""

    blocks: int
    in_use_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceInfo:
    """A namespace with blocks in the cache.   facts: what is in it, where that is known."""

    digest: str
    own: bool
    facts: dict[str, str] | None
    blocks: int
    stored_bytes: int


# --- what happens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened. Numbers grow by one: who has missed some can tell.

    at_s: seconds since the epoch.   kind: such as "demoted", "evicted", "expired", "read", "written", "request".
    facts: numbers and names, whose keys depend on the kind; never text of a prompt.
    """

    number: int
    at_s: float
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


# --- what was asked, and what it cost -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestReport:
    """What is known of one request.

    number: the id of its handle.   state: "waiting", "running", or what it ended with: "stop", "length", "cancelled",
        "timeout", "error".   submitted_ago_s: how long ago it came.
    prompt_tokens, cached_by_tier, prefilled_tokens, completion_tokens: as in Usage; 0 while not known.
    queue_s, load_s, prefill_s, ttft_s: as in Timings; None while not known.
    private: whether it had a tenant or a salt.   error: the sentence that goes with "error".
    decision: how much of what lower tiers had was to be loaded; None where there was nothing to decide, or as long as it is not computed.
    explanation: why its prompt was not served further; None in lists, and while it waits.
    """

    number: int
    state: str
    submitted_ago_s: float
    prompt_tokens: int
    cached_by_tier: dict[TierName, int]
    prefilled_tokens: int
    completion_tokens: int
    queue_s: float | None
    load_s: float | None
    prefill_s: float | None
    ttft_s: float | None
    private: bool
    error: str | None = None
    decision: Decision | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """A place where prompts of live traffic leave what is cached, again and again, and what that costs.

    kind, sentence: what the differences look like, and what to do.   at_token: the first position that differs.
    requests: how many left there; where many requests come, some are looked at and stand for all.   lost_tokens: tokens behind the differing part that were computed although
        the same tokens lay in the prompt they left.   lost_s: the prefill seconds these took, at the rate measured.
    example: a difference, as text where that may be shown.
    """

    kind: DifferenceKind
    sentence: str
    at_token: int
    requests: int
    lost_tokens: int
    lost_s: float
    example: Difference | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantReport:
    """What one tenant has in the tiers.

    tenant: its name; "" for what is no tenant's, None for a tenant that has asked for nothing since the start, of which only
        `owner` is known.   owner: what the cache knows it by, in hexadecimal.
    used_bytes: by tier; copies on their way count.   part_bytes: by tier, what it is entitled to now; None without quotas.
    quota: as it was set, for it or for every tenant; None for none.
    evicted_copies: copies of its blocks that left a tier to make room there.   evictions_asked: copies, of whomever, that left
        while room was made for it.
    """

    tenant: str | None
    owner: str
    used_bytes: dict[TierName, int]
    part_bytes: dict[TierName, int] | None
    quota: dict[str, int | float] | None
    evicted_copies: int
    evictions_asked: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What reading all records of a disk tier found: how many there are, and those that failed a check, by reason."""

    records: int
    damaged: dict[MissReason, int] = field(default_factory=dict)
    seconds: float = 0.0
