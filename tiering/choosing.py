"""The core's side of a Chooser: what it is asked, and what is done with its answers."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from kvstore.reasons import MissReason
from kvstore.reports import Decision
from tiering.decision import Chooser, Match
from tiering.holdings import Holdings
from tiering.lease import Lease
from tiering.loads import Loads
from tiering.radix import Tokens
from tiering.residency import Ids, Tier


class Choosing:
    """Has a Chooser say how much of each match to use and how long to wait for it, and tells it how that went."""

    def __init__(self, chooser: Chooser, holdings: Holdings, loads: Loads, *, block_bytes: int) -> None:
        self._chooser, self._holdings, self._loads = chooser, holdings, loads
        self._block_tokens, self._block_bytes = holdings.radix.block_tokens, block_bytes

    def choose(self, tokens: Tokens, matched: Ids) -> tuple[Match, Decision] | None:
        """How much to use of what matches, none of which is on its way; None where all of it is on the device."""
        nearest = self._holdings.residency.nearest_tier(matched)
        if not nearest.any():
            return None
        ends = [*(np.flatnonzero(np.diff(nearest)) + 1).tolist(), len(nearest)]
        runs = [(Tier(nearest.item(end - 1)).label, end - start) for start, end in pairwise([0, *ends])]
        match = Match(
            runs=tuple(runs),
            prompt_tokens=len(tokens),
            block_tokens=self._block_tokens,
            block_bytes=self._block_bytes,
            queued_bytes={"disk": self._loads.queued_blocks * self._block_bytes},
        )
        return match, self._chooser.choose(match)

    def taken(self, lease: Lease, match: Match, decision: Decision) -> None:
        """The lease was granted with the decision's part of the match, and its loads have been started."""
        self._chooser.taken(match, decision)
        lease.decision = decision
        if decision.deadline_s is not None:
            self._loads.wait_for(lease, decision.deadline_s)
        if decision.num_blocks < decision.of_blocks and lease.observed is not None:
            lease.observed = replace(lease.observed, stop=MissReason.COMPUTED_SOONER)

    def computed(self, lease: Lease, num_tokens: int, *, load_s: float, prefill_s: float) -> None:
        """See Index.computed."""
        blocks = lease.cached_blocks_by_tier()
        start = sum(blocks.values()) * self._block_tokens
        loaded = {} if lease.num_lost else {tier: num * self._block_bytes for tier, num in blocks.items()}
        lease.decision = self._chooser.took(
            lease.decision, start, num_tokens - start, prefill_s, loaded, load_s
        )

    def learn_of_late(self) -> None:
        """What came late says how fast the disk is, too: or it would be waited for in vain again and again."""
        for late in self._loads.take_late():
            num_bytes, queued = late.num_blocks * self._block_bytes, late.queued_blocks * self._block_bytes
            self._chooser.came_late(num_bytes, queued, late.took_s)

    def stats(self) -> dict[str, Any]:
        """See Chooser.stats."""
        return self._chooser.stats()

    def check(self) -> None:
        """See Chooser.check."""
        self._chooser.check()
