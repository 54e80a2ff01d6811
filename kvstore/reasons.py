"""Why a block was not served."""

from enum import StrEnum


class MissReason(StrEnum):
    """Why a lookup of one block missed.

    A store says ABSENT, or one of the damage reasons: it cannot know whether an absent record was never written or was
    evicted. The cache above it remembers for a while what went, and says the rest.
    """

    ABSENT = "absent"
    """Nothing rests under the key."""

    NEVER_SEEN = "never_seen"
    """No prompt that began like this was computed here, as far as anybody remembers."""
    DIFFERS = "differs"
    """What is cached goes on with other tokens."""
    EVICTED = "evicted"
    """It went for want of room."""
    NOT_ADMITTED = "not_admitted"
    """It was thought not to be worth a place in the next tier."""
    OVER_QUOTA = "over_quota"
    """It went for want of room, as its tenant had more than its part."""
    EXPIRED = "expired"
    """Nobody had used it for the TTL."""
    REMOVED = "removed"
    """Somebody had it removed."""
    REPLY_NOT_INDEXED = "reply_not_indexed"
    """It was a reply, and the deterministic mode does not index what decoding has computed."""
    NOT_RESTORED = "not_restored"
    """What the disk holds was still being listed after the start: this may be among it."""
    NOT_A_WHOLE_BLOCK = "not_a_whole_block"
    """The end of a prompt: its last token is always computed, and only whole blocks are cached."""
    TOO_SHORT = "too_short"
    """The prompt is shorter than what is worth keeping, or what a lower tier has of it than what is worth loading."""
    OTHER_IDENTITY = "other_identity"
    """Another tenant, salt or model has it."""
    CACHE_OFF = "cache_off"
    """The request asked not to use the cache."""

    READ_FAILED = "read_failed"
    """The disk failed: the whole batch could not be read, or what was there had to be given up."""
    COPY_FAILED = "copy_failed"
    """The copy from host memory to the device failed."""
    OVERDUE = "overdue"
    """The read took too long, or could not be begun in time."""
    BEHIND_A_LOSS = "behind_a_loss"
    """A block before it was lost, and what follows that cannot be used until it is computed again."""
    TIER_OFF = "tier_off"
    """The tier stopped working, and is left alone for a while, before the block was read."""
    LOADS_OFF = "loads_off"
    """A lower tier has it, and the configuration says to compute rather than load."""
    COMPUTED_SOONER = "computed_sooner"
    """A lower tier has it, and computing was thought to be faster than loading."""
    LATE = "late"
    """It had not come from disk when it was sooner done to compute it than to wait on; it is kept when it comes."""
    DAMAGED_LENGTH = "damaged_length"
    """The record is not as long as it says."""
    DAMAGED_HEADER = "damaged_header"
    """The magic or the header's checksum is wrong."""
    DAMAGED_CHECKSUM = "damaged_checksum"
    """The payload is not what was written, or does not decode to what was encoded."""
    WRONG_IDENTITY = "wrong_identity"
    """A sound record of something else: other namespace, key, parent, tokens or size."""
    UNKNOWN_FORMAT = "unknown_format"
    """A sound record of a version or codec that this program does not know."""
    MISSING_BASELINE = "missing_baseline"
    """A sound record that cannot be decoded, because the baseline that it names is lost or damaged."""

    @property
    def damaged(self) -> bool:
        """Whether there was a record and it must not be trusted: stores count such records and take them out of use."""
        return self in _DAMAGE


_DAMAGE = frozenset(
    {
        MissReason.DAMAGED_LENGTH,
        MissReason.DAMAGED_HEADER,
        MissReason.DAMAGED_CHECKSUM,
        MissReason.WRONG_IDENTITY,
        MissReason.UNKNOWN_FORMAT,
        MissReason.MISSING_BASELINE,
    }
)
