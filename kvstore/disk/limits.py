"""How much a disk store may take, and for how long it keeps what others have."""

import math
from dataclasses import dataclass, replace

from kvstore.errors import StoreFull
from kvstore.steering import Unchanged


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
        if self.ttl_s is not None and not 0 < self.ttl_s < math.inf:
            raise ValueError(f"ttl_s must be a time above 0, or None, got {self.ttl_s}")

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
