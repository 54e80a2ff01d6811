"""What the core counts: for whoever asks, and in each plan for who is told of events."""

from typing import Any, Final

from tiering.by_hand import ByHand
from tiering.choosing import Choosing
from tiering.disk_health import DiskHealth
from tiering.entry import Entry
from tiering.events import EventLog, Growth
from tiering.eviction import Eviction
from tiering.expiry import Expiry
from tiering.holdings import Holdings
from tiering.leases import Leases
from tiering.loads import Loads
from tiering.lookups import Lookups
from tiering.moves import Read, Write
from tiering.outbox import Outbox
from tiering.residency import DISK, Tier
from tiering.restore import Restore
from tiering.retention import Retention
from tiering.swaps import Swaps
from tiering.writes import Writes

_GROWING: Final = (
    *(("evicted", "blocks", {"tier": tier.label}) for tier in Tier),
    *(("dropped", "blocks", {"tier": tier.label}) for tier in Tier),
    ("expired", "blocks", {}),
    ("overdue", "moves", {}),
    ("overdue", "loads", {}),
    ("late", "loads", {}),
)
"""Counts that events tell the growth of."""


class Figures:
    """Reads what the parts of the core have counted. Changes nothing of theirs."""

    def __init__(
        self,
        holdings: Holdings,
        lookups: Lookups,
        leases: Leases,
        eviction: Eviction,
        entry: Entry,
        loads: Loads,
        writes: Writes,
        swaps: Swaps,
        expiry: Expiry,
        retention: Retention,
        restore: Restore,
        by_hand: ByHand,
        disk: DiskHealth,
        outbox: Outbox,
        events: EventLog,
        choosing: Choosing | None,
        *,
        block_bytes: int,
    ) -> None:
        """`block_bytes`: what a block takes in memory."""
        self._holdings, self._lookups, self._leases = holdings, lookups, leases
        self._eviction, self._entry, self._loads, self._writes = eviction, entry, loads, writes
        self._swaps, self._expiry, self._retention, self._restore = swaps, expiry, retention, restore
        self._by_hand, self._disk, self._outbox, self._events = by_hand, disk, outbox, events
        self._choosing, self._block_bytes = choosing, block_bytes
        self._growth = Growth(events, *_GROWING)

    def stats(self) -> dict[str, Any]:
        """See Index.stats."""
        tiers = self._holdings.stats()
        tiers[DISK.label]["ready"] = self._disk.can_read and self._disk.can_write
        tiers[DISK.label]["overdue_reads"] = self._outbox.num_overdue(Read)
        tiers[DISK.label] |= self._traffic() | self._restore.stats()
        for tier in Tier:
            tiers[tier.label]["evicted"] = self._eviction.evicted[tier]
            tiers[tier.label]["dropped"] = self._eviction.dropped[tier]
            tiers[tier.label]["not_admitted"] = self._eviction.not_admitted[tier]
        return {
            "tiers": tiers,
            "blocks": len(self._holdings.radix),
            "block_tokens": self._holdings.radix.block_tokens,
            "block_bytes": self._block_bytes,
            "lookups": self._lookups.stats(),
            "admission": self._entry.stats(),
            "load_or_compute": None if self._choosing is None else self._choosing.stats(),
            "transfers": self._outbox.stats(),
            "events": self._events.last,
            "leases": len(self._leases),
            "expired": self._expiry.num_expired,
            "retention": self._retention.stats(),
            "departed": len(self._eviction.departed),
            "owners": self._holdings.shares.stats(),
            "removed": self._by_hand.num_removed,
            "failed_loads": {reason.value: count for reason, count in dict(self._loads.misses).items()},
            "preempted": {
                "requests": self._leases.num_preempted,
                "swapped_out_blocks": self._swaps.num_swapped_out,
                "swapped_in_blocks": self._swaps.num_swapped_in,
            },
        }

    def _traffic(self) -> dict[str, Any]:
        """What went to the disk and what came from it, for requests."""
        written, read = self._writes.num_bytes, self._loads.num_bytes
        return {
            "writing_blocks": self._outbox.blocks[Write],
            "failed_writes": self._writes.num_failed,
            "written_bytes": written,
            "read_bytes": read,
            "written_by_read": written / read if read else None,
        }

    def tell(self) -> None:
        """Note what has left since the last call, and whether the disk is left alone, or works again."""
        self._growth.look(
            [
                *self._eviction.evicted,
                *self._eviction.dropped,
                self._expiry.num_expired,
                self._outbox.num_expired,
                self._loads.num_given_up,
                self._loads.num_late,
            ]
        )
        self._disk.tell(self._events)
