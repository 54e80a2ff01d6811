"""Looking at what is there of a prompt, on the core's thread: some tens of microseconds."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvstore.reasons import MissReason
from tiering.departed import Departed
from tiering.expiry import Expiry
from tiering.holdings import Holdings
from tiering.kernels import kernels
from tiering.loads import Loads
from tiering.observation import Observed
from tiering.radix import Tokens
from tiering.residency import DISK, HOST, NO_BLOCK, PRESENT, Ids
from tiering.restore import Restore

_LEAST_ONWARDS_TOKENS: Final = 8192
_ONWARDS_BY_ASKED: Final = 2
"""What is cached instead is kept for so many tokens, or so many times what is left of the prompt if that is more: for as
long as somebody may want the explanation."""


class Observer:
    """Looks at what is there of a prompt. One thread calls it; changes nothing."""

    def __init__(
        self,
        holdings: Holdings,
        departed: Departed,
        loads: Loads,
        expiry: Expiry,
        restore: Restore,
        *,
        host_loads: bool,
        mark_shift: int,
    ) -> None:
        """`mark_shift`: bits of token ids from this one up only keep prompts apart; see IndexConfig."""
        self._holdings, self._departed = holdings, departed
        self._loads, self._expiry = loads, expiry
        self._restore = restore
        self._host_loads, self._found_in = host_loads, kernels().found_in
        self._same = (1 << mark_shift) - 1

    def observe(
        self, tokens: Tokens, matched: Ids, usable_blocks: int, *, off: bool, too_short: bool = False
    ) -> Observed:
        """What there is behind and beyond `matched`, which is the answer of `Leases.match` for the prompt.

        `off`: whether the request uses nothing of the cache; `too_short`: whether there is more, but not enough to load it.
        """
        radix = self._holdings.radix
        known, stop, onwards = matched, None, b""
        if off:
            stop = MissReason.CACHE_OFF
        elif len(matched) < usable_blocks:
            block_tokens = radix.block_tokens
            last = matched.item(-1) if len(matched) else NO_BLOCK
            rest = tokens[len(matched) * block_tokens : usable_blocks * block_tokens]
            known = np.concatenate([matched, radix.match_below(last, rest)])
            if len(known) > len(matched):
                stop = MissReason.TOO_SHORT if too_short else self._why_not(known.item(len(matched)))
            if len(known) < usable_blocks:
                wanted = tokens[len(known) * block_tokens : (len(known) + 1) * block_tokens]
                last = known.item(-1) if len(known) else NO_BLOCK
                left_blocks = usable_blocks - len(known)
                most_blocks = max(_LEAST_ONWARDS_TOKENS // block_tokens, _ONWARDS_BY_ASKED * left_blocks)
                onwards = radix.onwards(last, wanted.tobytes(), self._same, most_blocks)
        return Observed(
            tokens=tokens,
            block_tokens=radix.block_tokens,
            usable_blocks=usable_blocks,
            tiers=self.tiers(matched),
            known_blocks=len(known),
            stop=stop,
            restoring=self._restore.under_way,
            onwards=onwards,
            departed=self._departed.view(),
            seed=radix.seed,
            now_s=self._holdings.order.now_s,
        )

    def tiers(self, matched: Ids) -> NDArray[np.int8]:
        """The nearest tier that has each of these blocks whole, `len(Tier)` for one on its way to the device."""
        residency, tiers = self._holdings.residency, np.empty(len(matched), dtype=np.int8)
        if len(matched):
            self._found_in(residency.state, residency.computing, matched, tiers)
        return tiers

    def _why_not(self, block: int) -> MissReason:
        """Why a block that the index knows does not match."""
        one = np.array([block], dtype=np.intp)
        if self._expiry.is_over(one).item():
            return MissReason.EXPIRED
        if self._loads.is_overdue(one).item():
            return MissReason.OVERDUE
        state = self._holdings.residency.state
        if state.item(HOST, block) or state.item(DISK, block) == PRESENT:
            return MissReason.TIER_OFF if self._host_loads else MissReason.LOADS_OFF
        return MissReason.ABSENT
