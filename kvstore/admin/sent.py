"""What requests to the endpoint may hold: their parameters and bodies."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kvstore.reports import (
    MAX_PAGE_ROWS,
    PrefixOrder,
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
    weight: Annotated[float, Meta(ge=1e-6, le=1e6)] | UnsetType = UNSET
