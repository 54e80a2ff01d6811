"""Whether something may still be written: what a disk store may take, and what its file system has."""

from collections.abc import Callable

from kvstore.disk.environment import lmdb_errors
from kvstore.disk.limits import Limits
from kvstore.errors import StoreFull


class Room:
    """Used by the writer's thread, save `limits`, which any thread may read."""

    def __init__(self, limits: Limits, free_bytes: Callable[[], int]) -> None:
        self.limits = limits
        """Replaced, never changed."""
        self.free_bytes = free_bytes

    def has(self, num_bytes: int) -> bool:
        """Whether so much may be taken of the file system. Raises StoreFailed where it does not answer."""
        return self.limits.leave_room(num_bytes, self._free())

    def check(self, what: str, num_bytes: int) -> None:
        """Raise StoreFull unless so much may be taken of the file system for this."""
        if not self.limits.leave_room(num_bytes, free := self._free()):
            floor = self.limits.min_free_bytes
            raise StoreFull(f"{what} needs {num_bytes} of {free} free bytes, {floor} must remain")

    def _free(self) -> int:
        with lmdb_errors("asking for free space"):
            return self.free_bytes()
