"""What has happened, numbered and bounded: for whoever watches."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from kvstore.reports import Event

KEPT_EVENTS: Final = 4096


class EventLog:
    """The last events. Any thread may call all of it; nothing blocks.

    One is noted for a batch of blocks, never for each block. Kinds that the core notes, with their facts:

        demoted, promoted, swapped_out, swapped_in   blocks, seconds
        read, written                                blocks, bytes (on disk), seconds
        failed                                       move (as in `Transfers`), blocks, and error or reasons
        evicted, dropped                             tier, blocks: since the core last planned
        expired, overdue, late                       blocks; moves or loads; loads: likewise
        names_expired                                names that were over
        kept, released                               blocks (and tier) of a prefix that a user has kept
        gave_way                                     holds and their blocks, let go so that a request could run
        removed, moved_down                          blocks and in_use_blocks of a prefix, by hand
        disk_rests, disk_works                       what: "reads" or "writes"
        fresh_start                                  blocks that the disk had
        host_grew                                    slots
        changed                                      the settings, as they are now
    """

    are_kept = True
    """Whether anything is noted: where it is not, nobody need say what has happened."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        """`now_s`: seconds since the epoch."""
        self._now_s = now_s
        self._ring: list[tuple[int, float, str, dict[str, Any]] | None] = [None] * KEPT_EVENTS
        self._last = 0
        self._appending = threading.Lock()

    @property
    def last(self) -> int:
        """The number of the latest event, 0 before the first."""
        return self._last

    def append(self, kind: str, **facts: Any) -> None:
        """Something has happened. `facts` must not be changed afterwards."""
        with self._appending:  # or two threads might give out one number
            number = self._last + 1
            self._ring[number % KEPT_EVENTS] = (number, self._now_s(), kind, facts)
            self._last = number  # after the entry: who sees the number finds it

    def after(self, number: int) -> Sequence[Event]:
        """The events behind that number, oldest first; of those that are too many the last `KEPT_EVENTS`."""
        last, ring = self._last, self._ring
        found = []
        for wanted in range(max(number, last - KEPT_EVENTS) + 1, last + 1):
            entry = ring[wanted % KEPT_EVENTS]
            if entry is not None and entry[0] == wanted:  # else a newer one has taken its place just now
                _, at_s, kind, facts = entry
                found.append(Event(number=wanted, at_s=at_s, kind=kind, facts=facts))
        return found


class NoEvents(EventLog):
    """Nobody watches: nothing is noted."""

    are_kept = False

    def append(self, kind: str, **facts: Any) -> None:
        """Nothing."""


class Growth:
    """Counts that only grow, as events: one for each that has grown since it last looked."""

    def __init__(self, events: EventLog, *what: tuple[str, str, dict[str, Any]]) -> None:
        """`what`: for each count the kind of its events, the name of the fact that says by how much, and other facts."""
        self._events, self._what = events, what
        self._seen = [0] * len(what)

    def look(self, counts: list[int]) -> None:
        """The counts as they are now, in the order of `what`."""
        if counts == self._seen:
            return
        for (kind, name, facts), count, seen in zip(self._what, counts, self._seen, strict=True):
            if count != seen:
                self._events.append(kind, **facts, **{name: count - seen})
        self._seen = counts
