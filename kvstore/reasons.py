"""Why a block was not served."""

from enum import StrEnum


class MissReason(StrEnum):
    """Why a lookup of one block missed.

    A store says ABSENT, or one of the damage reasons. It cannot know whether an absent record was never
    written or was evicted: NEVER_STORED and EVICTED are for who keeps that history, which nobody does so far.
    """

    ABSENT = "absent"
    """Nothing rests under the key."""
    NEVER_STORED = "never_stored"
    EVICTED = "evicted"
    READ_FAILED = "read_failed"
    """The whole batch failed with a StoreError."""
    COPY_FAILED = "copy_failed"
    """The copy from host memory to the device failed."""
    OVERDUE = "overdue"
    """The read took too long, or could not be begun in time."""
    TIER_OFF = "tier_off"
    """The tier stopped working, and is left alone for a while, before the block was read."""
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
    }
)
