"""What users ask the core to hold: a prefix in a tier, or a prompt under a name. Found as a request would find it."""

import numpy as np

from kvstore.errors import StoreFull
from tiering.by_hand import ByHand
from tiering.errands import Steps
from tiering.holdings import Holdings
from tiering.matching import CacheUse, Matching
from tiering.owners import Ownership
from tiering.radix import Tokens
from tiering.residency import DISK, Ids, Tier
from tiering.retention import NameNow, Retention


class Keep:
    """Finds what is to be held. One thread calls it, the core's; `retention` has what is held then."""

    def __init__(self, holdings: Holdings, matching: Matching, retention: Retention, by_hand: ByHand) -> None:
        self._holdings, self._matching = holdings, matching
        self._retention, self._by_hand = retention, by_hand

    def _found(self, tokens: Tokens) -> Ids:
        return self._matching.match(tokens, compute_last=False, disk_ready=True, use=CacheUse.READ)

    def prefix(self, tokens: Tokens, tier: Tier) -> int:
        """Hold what a prompt finds in this tier, or nearer to the model, until it is released. How many of its tokens.

        ValueError if there is no such tier; TooMuchHeld if that is too much.
        """
        holdings = self._holdings
        if not (1, holdings.num_host_slots, holdings.disk_capacity_bytes)[tier]:
            raise ValueError(f"there is no {tier.label} tier")
        ids = self._found(tokens)
        nearest = np.append(holdings.residency.nearest_tier(ids), len(Tier))
        ids = ids[: int(np.argmax(nearest > tier))]
        num_tokens = len(ids) * holdings.radix.block_tokens
        self._retention.keep(ids, tokens[:num_tokens].tobytes(), tier)
        return num_tokens

    def name(
        self, key: bytes, tokens: Tokens, ownership: Ownership, ttl_s: float | None
    ) -> Steps[NameNow | None]:
        """An errand: hold a prompt's whole blocks under a name, and write them down. None if they are not all there.

        Raises KeyError if the name is taken, TooMuchHeld if that is too much, and StoreFull if the disk does not take them:
        then nothing is held.
        """
        num_blocks = len(tokens) // self._holdings.radix.block_tokens
        path = tokens[: num_blocks * self._holdings.radix.block_tokens]
        ids = self._found(path)
        if len(ids) < num_blocks or not self._holdings.residency.present_anywhere(ids).all():
            return None
        named = self._retention.name(key, ids, path.tobytes(), ownership, ttl_s)
        num_left = (yield from self._by_hand.write_down(ids)) if named.hold.tier is DISK else 0
        if not self._retention.has(named):
            return None  # erased meanwhile, or over
        if num_left:
            self._retention.drop(key)
            raise StoreFull(
                f"{num_left} of {num_blocks} blocks could not be written: the disk is full, fails or rests"
            )
        return self._retention.look(key)
