"""What follows from moves that are over: for those whose blocks they carried, for the figures, and for who is told of events."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tiering.choosing import Choosing
from tiering.disk_health import DiskHealth
from tiering.events import EventLog
from tiering.eviction import Eviction
from tiering.holes import Holes
from tiering.loads import Loads
from tiering.moves import (
    Answer,
    Copied,
    Demote,
    HasRead,
    Promote,
    Read,
    SwapIn,
    SwapOut,
    Write,
    Written,
)
from tiering.outbox import Outbox
from tiering.retention import Retention
from tiering.swaps import Swaps
from tiering.transfers import NAMES, Transfer
from tiering.uses import Uses
from tiering.writes import Writes

_KINDS: Final[dict[type, str]] = {
    Demote: "demoted",
    Promote: "promoted",
    SwapOut: "swapped_out",
    SwapIn: "swapped_in",
    Read: "read",
    Write: "written",
}
"""What events call moves that have ended."""

_End = tuple[int, int]
"""How many blocks did not arrive, and the bytes of those that did: on disk, as they lie there."""


class Endings:
    """Tells each part of the core what a move has brought. The core's thread calls it."""

    def __init__(
        self,
        eviction: Eviction,
        holes: Holes,
        loads: Loads,
        writes: Writes,
        swaps: Swaps,
        uses: Uses,
        retention: Retention,
        disk: DiskHealth,
        outbox: Outbox,
        events: EventLog,
        choosing: Choosing | None,
        *,
        block_bytes: int,
    ) -> None:
        """`block_bytes`: what a block takes in memory, for figures."""
        self._eviction, self._holes, self._loads, self._writes = eviction, holes, loads, writes
        self._swaps, self._uses, self._retention, self._disk = swaps, uses, retention, disk
        self._outbox, self._events, self._choosing = outbox, events, choosing
        self._block_bytes = block_bytes
        self._ends: dict[type, tuple[type, Callable[[Any, Any], _End]]] = {
            Demote: (Copied, self._demoted),
            Promote: (Copied, self._promoted),
            Write: (Written, self._written),
            Read: (HasRead, self._read),
            SwapOut: (Copied, self._swapped_out),
            SwapIn: (Copied, self._swapped_in),
        }

    def answer(self, answer: Answer) -> None:
        """See Index.answer."""
        move, took_s = self._outbox.answered(answer.number)
        kind, end = self._ends[type(move)]
        assert type(answer) is kind, f"{type(answer).__name__} does not answer {type(move).__name__}"
        if isinstance(answer, HasRead):
            answer = self._disk.has_read(answer, len(move.host_slots))
        num_failed, num_bytes = end(move, answer)
        self._outbox.transfers.ended(move, took_s, num_failed, num_bytes)
        if self._events.are_kept:
            self._tell(move, answer, took_s, num_failed, num_bytes)

    def _demoted(self, move: Demote, answer: Copied) -> _End:
        self._eviction.demoted(move, answer.error)
        if answer.error is not None:
            self._writes.not_demoted(move.ids)
        return self._copied(move, answer)

    def _promoted(self, move: Promote, answer: Copied) -> _End:
        self._loads.promoted(move, answer.error)
        return self._copied(move, answer)

    def _swapped_out(self, move: SwapOut, answer: Copied) -> _End:
        self._swaps.swapped_out(move, answer.error)
        return self._copied(move, answer)

    def _swapped_in(self, move: SwapIn, answer: Copied) -> _End:
        self._swaps.swapped_in(move, answer.error)
        return self._copied(move, answer)

    def _copied(self, move: Transfer, answer: Copied) -> _End:
        num_blocks = len(move.host_slots)
        return (0, num_blocks * self._block_bytes) if answer.error is None else (num_blocks, 0)

    def _written(self, move: Write, answer: Written) -> _End:
        before = self._writes.num_bytes
        if self._disk.has_written(answer):
            self._writes.refused()
        self._writes.written(move, answer)
        self._uses.was_written(self._outbox.now_s)
        num_bytes = self._writes.num_bytes - before
        if answer.error is not None:
            return len(move.host_slots), num_bytes
        self._retention.was_written(move.ids)
        return 0, num_bytes

    def _read(self, move: Read, answer: HasRead) -> _End:
        before = self._loads.num_bytes
        lost = self._loads.was_read(move, answer)
        if len(lost):
            self._holes.prune(lost)
        if self._choosing is not None:
            self._choosing.learn_of_late()
        return len(lost), self._loads.num_bytes - before

    def _tell(self, move: Transfer, answer: Answer, took_s: float, num_failed: int, num_bytes: int) -> None:
        num_arrived = len(move.host_slots) - num_failed
        if num_arrived:
            facts: dict[str, Any] = {"bytes": num_bytes} if isinstance(move, (Read, Write)) else {}
            self._events.append(_KINDS[type(move)], blocks=num_arrived, **facts, seconds=took_s)
        if num_failed:
            if answer.error is not None:
                why: dict[str, Any] = {"error": type(answer.error).__name__}
            else:
                outcomes = answer.outcomes if isinstance(answer, HasRead) else ()
                reasons = Counter(each.reason.value for each in outcomes if each.reason is not None)
                why = {"reasons": dict(reasons)}
            self._events.append("failed", move=NAMES[type(move)], blocks=num_failed, **why)
