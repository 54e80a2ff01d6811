"""What admitted requests asked for, and what of it they found."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiering.residency import Tier


class Lookups:
    """Counts admissions, one that follows a preemption among them. One thread counts, any may read."""

    def __init__(self) -> None:
        self._requests = self._blocks = 0
        self.hits: NDArray[np.int64] = np.zeros(len(Tier) + 1, dtype=np.int64)
        """Blocks that were found, by the nearest tier, and those on their way to the device: what looks for them counts here."""

    def note(self, num_blocks: int) -> None:
        """A request that asked for so many whole blocks was admitted."""
        self._requests += 1
        self._blocks += num_blocks

    def stats(self) -> dict[str, Any]:
        """Requests, blocks, and blocks that were found by the tier that was nearest."""
        return {
            "requests": self._requests,
            "blocks": self._blocks,
            "hit_blocks": {tier.label: hits for tier, hits in zip(Tier, self.hits.tolist(), strict=False)},
        }
