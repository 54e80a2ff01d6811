"""Sizes of the tiers, and of the work that may be in flight."""

import math
from dataclasses import dataclass
from typing import Final

from tiering.expiry import ROUNDS
from tiering.keeping import admission_named
from tiering.policies import policy_named
from tiering.quotas import Quotas

_READ_BUDGET_BYTES: Final = 128 << 20
"""What is on its way from the disk waits for all that was asked for before: of a slow one, at 100 MB/s, this comes in well
below io_deadline_s, after which a disk is thought to hang."""

_WRITE_BATCH_BYTES: Final = 16 << 20
"""Large blocks are written fewer at a time: what is in a write that fails is left in host memory as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Sizes of the tiers and of the work that may be in flight. Raises ValueError for what cannot work."""

    block_tokens: int
    device_slots: int
    host_slots: int
    later_host_slots: int = 0
    """Of the host slots, those that are not ready yet: `host_grows` tells when they are."""
    disk_bytes: int = 0
    """The most that this namespace may take on disk; 0 for no disk tier."""
    record_bytes: int = 0
    """The most that one block may take on disk."""
    policy: str = "lru"
    """Which order device and host memory give up their blocks in: a name of tiering.policies, or package.module:Class."""
    admission: str = "all"
    """Who says which blocks go first from the device, with the policy "lru", and which may go down: a name of tiering.keeping,
    or package.module:Class; with "all" nobody."""
    disk_bytes_a_day: int | None = None
    """The most that is written to disk unasked, of which an hour's worth may be saved up; None for no limit."""
    loads: bool = True
    """Whether blocks below the device are brought back; otherwise they are computed again."""
    explains: bool = True
    """Whether it is noted what could explain a match, at each admission and of blocks that went: nobody asks what became of a
    simulated request."""
    mark_shift: int = 31
    """Bits of token ids from this one up are no tokens but keep prompts apart: explanations look below them."""
    read_threads: int = 2
    """How many reads the driver makes side by side."""
    read_batch_blocks: int = 16
    """The fewest in a read of a load that has more: small, so that threads that share one request's blocks end together. As long
    as many are left a read has a thread's part of those that may be on their way: each that ends takes a turn of the loop."""
    read_budget_blocks: int = 256
    """The most on their way: many, so that the threads that read do not wait for the one that computes, which asks for more
    between two steps only. Of large blocks it is fewer: see `blocks_in_reads`."""
    write_batch_blocks: int = 64
    """One move, one making of room and one commit a batch (docs/adr/0025), of at most so many ..."""
    write_batch_share: float = 0.005
    """... of at most such a share of the disk: with larger ones its files outgrow what is in them (docs/adr/0004) ..."""
    write_host_share: float = 0.125
    """... and of the host slots, or of an owner's part of them: those that are written from cannot be given to what comes down or is
    read ..."""
    write_least_blocks: int = 16
    """... of which so many may be all the same: of what comes down at once more would find no place otherwise, and be lost."""
    write_budget_blocks: int = 128
    """The most on their way to the disk, of which a batch is at most half, so that one waits while another is written."""
    clean_share: float = 0.5
    """Of the host slots, those kept free or on disk as well, so that demotion finds a place without waiting."""
    quotas: Quotas | None = None
    """How much of each tier owners keep when there is not enough for all; None: the least recently used goes first, whoever's."""
    high_s: float = 600.0
    """How long what is to be kept longer than other things is, after its last use."""
    min_prefix_tokens: int = 0
    """Prompts of fewer tokens in whole blocks are not indexed, and fewer are not loaded."""
    ttl_s: float | None = None
    """A block that nobody has used for so long is forgotten in every tier; None: only for want of room."""
    held_share: float = 0.5
    """Of each tier, what named caches and `keep` may hold."""
    hole_ttl_s: float = 300.0
    """How long the blocks below a lost one wait for it to be computed again before they are dropped."""
    disk_failures: int = 3
    """Failed reads in a row after which blocks on disk are computed rather than read; failed writes, none written ..."""
    disk_rest_s: float = 30.0
    """... for so long."""
    io_deadline_s: float = 10.0
    """A read that takes longer is waited for no more: its requests compute. Nor does a sweep wait for such a write."""
    max_overdue_reads: int = 2
    """With so many reads that hang, as many as threads read by default, the disk is left alone until they end."""

    def __post_init__(self) -> None:
        if self.device_slots < 1:
            raise ValueError(f"the device must hold at least one block, not {self.device_slots}")
        if not 0 <= self.later_host_slots <= self.host_slots:
            raise ValueError(f"of {self.host_slots} host slots {self.later_host_slots} cannot come later")
        if self.disk_bytes and not self.host_slots - self.later_host_slots:
            raise ValueError("a disk tier needs host memory to read into: host_slots is 0, or all come later")
        if self.disk_bytes and self.record_bytes < 1:
            raise ValueError(f"record_bytes must be given with a disk tier, not {self.record_bytes}")
        if self.read_threads < 1:
            raise ValueError(f"read_threads must be at least 1, not {self.read_threads}")
        if self.record_bytes >= 1 << 31:
            raise ValueError(f"record_bytes must be below 2 GiB, not {self.record_bytes}")
        policy_named(self.policy)
        admission_named(self.admission)
        if self.disk_bytes_a_day is not None and self.disk_bytes_a_day < 1:
            raise ValueError(f"disk_bytes_a_day must be at least 1, or None, not {self.disk_bytes_a_day}")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share must be between 0 and 1, not {self.clean_share}")
        if self.write_budget_blocks < 1:
            raise ValueError(f"write_budget_blocks must be at least 1, not {self.write_budget_blocks}")
        if not 0 < self.io_deadline_s < math.inf:
            raise ValueError(f"io_deadline_s must be a time above 0, not {self.io_deadline_s}")
        if not 0 < self.high_s < math.inf:
            raise ValueError(f"high_s must be a time above 0, not {self.high_s}")
        if self.min_prefix_tokens < 0:
            raise ValueError(f"min_prefix_tokens must be at least 0, not {self.min_prefix_tokens}")
        if not 0 <= self.held_share <= 1:
            raise ValueError(f"held_share must be between 0 and 1, not {self.held_share}")
        if self.ttl_s is not None and not 0 < self.ttl_s < math.inf:
            raise ValueError(f"ttl_s must be a time above 0, or None, not {self.ttl_s}")

    @property
    def uses_told_within_s(self) -> float | None:
        """How soon the disk is to know of a use: a part of the TTL; None for at the end only."""
        return uses_told_within_s(math.inf if self.ttl_s is None else self.ttl_s)

    @property
    def blocks_in_reads(self) -> int:
        """The most that may be on their way from the disk: one batch always may."""
        within = _READ_BUDGET_BYTES // max(1, self.record_bytes)
        return min(self.read_budget_blocks, max(self.read_batch_blocks, within))

    @property
    def blocks_per_write(self) -> int:
        """The most that go into one batch."""
        return self.blocks_written_from(self.host_slots)

    def blocks_written_from(self, host_slots: int) -> int:
        """Likewise, of what lies in so many host slots."""
        most_bytes = min(_WRITE_BATCH_BYTES, int(self.disk_bytes * self.write_batch_share))
        of_host = min(host_slots, max(self.write_least_blocks, int(host_slots * self.write_host_share)))
        within = min(
            most_bytes // max(1, self.record_bytes), of_host, math.ceil(self.write_budget_blocks / 2)
        )
        return max(1, min(self.write_batch_blocks, within))


def uses_told_within_s(shortest_s: float) -> float | None:
    """The same, of the shortest time that anything lives."""
    return None if shortest_s == math.inf else shortest_s / ROUNDS


LIVE: Final = frozenset(
    {
        "host_slots",
        "disk_bytes",
        "ttl_s",
        "clean_share",
        "write_budget_blocks",
        "io_deadline_s",
        "quotas",
        "min_prefix_tokens",
    }
)
"""Fields of the configuration that may change while requests go on."""
