"""How much a disk store may take, and for how long it keeps what others have."""

from dataclasses import dataclass, replace
from typing import Final

from kvstore.errors import StoreFull
from kvstore.steering import Unchanged

MAX_CAPACITY_BYTES: Final = 1 << 56
"""Far beyond any disk: the size of a map must be a number that there is."""
MAX_TTL_S: Final = 1e12
"""Some 30,000 years: likewise of a time in nanoseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """See LmdbStore. Raises ValueError for what cannot be meant."""

    capacity_bytes: int
    min_free_bytes: int
    ttl_s: float | None

    def __post_init__(self) -> None:
        if self.capacity_bytes < 0 or self.min_free_bytes < 0:
            limits = f"capacity_bytes={self.capacity_bytes}, min_free_bytes={self.min_free_bytes}"
            raise ValueError(f"limits must not be negative: {limits}")
        if self.capacity_bytes > MAX_CAPACITY_BYTES:
            raise ValueError(
                f"capacity_bytes must be at most {MAX_CAPACITY_BYTES}, which no disk has, got {self.capacity_bytes}"
            )
        if self.ttl_s is not None and not 0 < self.ttl_s <= MAX_TTL_S:
            raise ValueError(f"ttl_s must be above 0 and at most {MAX_TTL_S:g}, or None, got {self.ttl_s}")

    @property
    def ttl_ns(self) -> int | None:
        return None if self.ttl_s is None else int(self.ttl_s * 1e9)

    def changed(
        self, capacity_bytes: int | None, min_free_bytes: int | None, ttl_s: float | Unchanged | None
    ) -> "Limits":
        """See Changeable.change."""
        return replace(
            self,
            capacity_bytes=self.capacity_bytes if capacity_bytes is None else capacity_bytes,
            min_free_bytes=self.min_free_bytes if min_free_bytes is None else min_free_bytes,
            ttl_s=self.ttl_s if isinstance(ttl_s, Unchanged) else ttl_s,
        )

    def check_capacity(self, needed_bytes: int, used_bytes: int) -> None:
        """Raise StoreFull if a batch does not fit beside what else there is."""
        room = self.capacity_bytes - used_bytes
        if needed_bytes > room:
            raise StoreFull(f"the batch needs {needed_bytes} bytes, {room} of {self.capacity_bytes} are left")

    def leave_room(self, needed_bytes: int, free_bytes: int) -> bool:
        """Whether enough of the file system stays free when so much is taken of it."""
        return free_bytes - needed_bytes >= self.min_free_bytes
