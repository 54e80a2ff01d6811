"""What a request says of the blocks that it uses."""

from dataclasses import dataclass
from typing import Final

from tiering.owners import EVERYBODYS, Ownership
from tiering.ranks import Rank


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose blocks are, and how long they are to be kept at least. It holds from a request's admission to its end, forks included."""

    ownership: Ownership = EVERYBODYS
    """The same tokens up to a block must always name the same owner for it."""
    rank: Rank = Rank.NORMAL
    """What goes first where there is not room for all."""
    ttl_s: float | None = None
    """For how long after each use blocks live, see Terms; None for as long as the index's TTL says."""


NO_CLAIM: Final = Claim()
