"""Making host memory ready while it is already in use: page-locking gigabytes takes seconds that no start should wait for."""

import logging
import threading
from collections.abc import Callable

from kvstore.closing import Closing
from kvstore.host import HostSlab

_log = logging.getLogger(__name__)


class HostOpening(Closing):
    """Takes the pages of a slab from the system and page-locks them, a piece at a time, the first ones at once.

    Closing it stops it after the piece at hand. What is locked stays so: that is for who gave `lock` to undo.
    """

    def __init__(self, slab: HostSlab, least_slots: int, lock: Callable[[int, int], None] | None) -> None:
        """Make pieces ready until `least_slots` slots are; `lock` page-locks by address and length, None does without.

        Where locking the very first piece fails, nothing is locked, and `is_locked` says so.
        """
        self._slab, self._lock = slab, lock
        self._num_done = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.refused: str | None = None
        """What page-locking a piece failed with; None if it has not."""
        while self.num_slots < min(least_slots, slab.num_slots) and self._make_ready():
            pass

    @property
    def all_slots(self) -> int:
        """Slots that there will be, if no piece is refused."""
        return self._slab.num_slots

    @property
    def num_slots(self) -> int:
        """Slots that are ready, from the first on."""
        return min(self._num_done * self._slab.piece_slots, self._slab.num_slots)

    @property
    def is_locked(self) -> bool:
        """Whether what is ready is page-locked."""
        return self._lock is not None

    def start(self, ready: Callable[[int], None], after: Callable[[], None] = lambda: None) -> None:
        """Go on on a thread. `ready` is told there how many slots are ready, each time that there are more. `after` returns when
        memory is there that is needed sooner.
        """
        self._thread = threading.Thread(
            target=self._run, args=(ready, after), name="kvtide-opening", daemon=True
        )
        self._thread.start()

    def _run(self, ready: Callable[[int], None], after: Callable[[], None]) -> None:
        try:
            after()
            while (
                not self._stopping.is_set() and self._num_done < self._slab.num_pieces and self._make_ready()
            ):
                ready(self.num_slots)
        except Exception:  # noqa: BLE001 - the thread's top: the cache goes on with what it was told of
            _log.exception(
                "host memory stays at %d of %d blocks",
                self.num_slots,
                self.all_slots,
                extra={"slots": self.num_slots, "all_slots": self.all_slots},
            )

    def _make_ready(self) -> bool:
        """The next piece. False if it cannot be locked although those before it are: then they are all that there is."""
        number = self._num_done
        self._slab.prefault(number)
        if self._lock is not None:
            first, end = self._slab.piece(number)
            try:
                self._lock(
                    self._slab.address + first * self._slab.block_bytes,
                    (end - first) * self._slab.block_bytes,
                )
            except RuntimeError as error:
                self.refused = str(error)
                if number:
                    _log.warning(
                        "host memory stays at %d of %d blocks: no more could be page-locked (%s)",
                        first,
                        self._slab.num_slots,
                        error,
                        extra={"slots": first, "all_slots": self._slab.num_slots, "error": error},
                    )
                    return False
                self._lock = None
        self._num_done += 1
        return True

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
