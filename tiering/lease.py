"""What one request holds: its path in the index and its slots on the device."""

import numpy as np
from numpy.typing import NDArray

from kvstore.reasons import MissReason
from kvstore.reports import Decision, TierName
from tiering.claim import NO_CLAIM, Claim
from tiering.observation import Observed
from tiering.radix import Tokens
from tiering.residency import FLAG, Ids, Tier

NOT_CACHED = -1
_NO_TOKENS: Tokens = np.empty(0, dtype=np.int32)


class Lease:
    """A request's hold on blocks, from admission to release. Made and changed by the core only; read by the engine.

    Positions count blocks from the start of the prompt::

        position     0   1   2   3   4   5   6   7
        ids          a   b   c   d   e   f            indexed blocks of the path; grows as the reply does
        slots        7   3   9   4   8                the block table: a device slot for each position, as far as it got
        found_in     D   D   K   K   -   -   -   -    the tier that had the block at admission
        ready        x   x   .   .   .   .   .   .    its bytes are on the device
        arriving     .   .   .   x   .   .   .   .    of its bytes no more than the first layers are
        filling      .   .   .   .   x   x   .   .    this request computes the block for all

    The path holds no block that another request is bringing to the device. Slots behind it are private.
    """

    def __init__(
        self,
        ids: Ids,
        slots: Ids,
        found_in: NDArray[np.int8],
        max_blocks: int,
        claim: Claim = NO_CLAIM,
    ) -> None:
        """What a request starts with.

        `ids`: the path, [P] intp; `slots`: the block table, [S] intp; `found_in`: [max_blocks] int8, NOT_CACHED behind the
        blocks that were matched; `max_blocks`: how long the block table may become; `claim`: whose what it indexes is, and how
        long that is to be kept.
        """
        self.ids = ids
        self.slots = slots
        self.claim = claim
        self.found_in = found_in
        self.ready: NDArray[np.bool_] = np.zeros(max_blocks, dtype=FLAG)
        self.filling: NDArray[np.bool_] = np.zeros(max_blocks, dtype=FLAG)
        self.num_loading = 0
        """Blocks that are still on their way to the device ..."""
        self.arriving: NDArray[np.bool_] = np.zeros(max_blocks, dtype=FLAG)
        """... and those of them whose first layers are there."""
        self.num_lost = 0
        """Matched blocks that could not be loaded and must be computed after all ..."""
        self.lost: dict[int, MissReason] = {}
        """... and why, by position."""
        self.observed: Observed | None = None
        """What was seen of the prompt when the lease was granted; None for a fork, and once it was taken."""
        self.decision: Decision | None = None
        """How much of the match was to be loaded; None where there was nothing to choose, or nobody who does."""
        self.indexable: Tokens = _NO_TOKENS
        """Tokens from the first on whose blocks may be indexed, once they are computed; given with the last of them."""
        self.released = False

    def take_observed(self) -> Observed | None:
        """What was seen of the prompt, which the lease lets go of: it may be large, and leases are kept for long."""
        observed, self.observed = self.observed, None
        return observed

    @property
    def max_blocks(self) -> int:
        """How many positions there are."""
        return len(self.ready)

    def num_missing(self, num_blocks: int) -> int:
        """Slots that the block table lacks for so many blocks, or for `max_blocks` if those are fewer."""
        return max(0, min(num_blocks, self.max_blocks) - len(self.slots))

    @property
    def num_cached_blocks(self) -> int:
        """Matched blocks that were served, or still may be."""
        return int(np.count_nonzero(self.found_in != NOT_CACHED))

    def cached_blocks_by_tier(self) -> dict[TierName, int]:
        """Served blocks by the tier in which they lay at admission."""
        return {tier.label: int(np.count_nonzero(self.found_in == int(tier))) for tier in Tier}

    @property
    def is_arriving(self) -> bool:
        """Whether blocks are still on their way, and of all of them the first layers are there: computing may begin.

        What comes of it counts only when all have arrived: see `num_loading` and `num_lost` then.
        """
        return 0 < self.num_loading == np.count_nonzero(self.arriving)

    def gaps(self, num_blocks: int) -> list[tuple[int, int]]:
        """The runs of positions below `num_blocks` that must be computed, as [start, end) pairs, in order.

        To be asked when `num_loading` is 0 or `is_arriving`: any other block that is on its way counts as missing.
        """
        there = (self.ready[:num_blocks] | self.arriving[:num_blocks]).tobytes()
        first, last = there.find(0), there.rfind(0)
        if first < 0:
            return []
        if last - first + 1 == there.count(0):  # what follows the match, mostly
            return [(first, last + 1)]
        gaps = []
        while first >= 0:
            end = there.find(1, first)
            gaps.append((first, end if end >= 0 else len(there)))
            first = there.find(0, gaps[-1][1])
        return gaps
