"""What the core saw of a prompt when it was looked up: enough to explain later, on any thread, why it missed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.reasons import MissReason
from tiering.departed import DepartedView
from tiering.radix import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """A prompt and what was there of it, at one moment; references to values that do not change.

    `tiering.explain` says what follows from it::

        matched   known     beyond                the last tokens
        |---------|---------|---------------------|-----|
                  ^ stop    ^ onwards: what is cached instead
    """

    tokens: Tokens
    """As the cache was asked for them."""
    block_tokens: int
    usable_blocks: int
    """Whole blocks that could have matched."""
    tiers: NDArray[np.int8]
    """[matched blocks]: the nearest tier that had each whole, `len(Tier)` for one on its way to the device."""
    known_blocks: int
    """Blocks that the index knew, the matched ones among them."""
    stop: MissReason | None
    """Why the match ended before them; None if it did not."""
    restoring: bool
    """Whether the disk might have had what the index did not know yet."""
    onwards: bytes
    """The tokens that follow the known blocks in the cached prompt most like this one, as far as they may be of use."""
    departed: DepartedView
    seed: int
    """What the fingerprints of first blocks follow."""
    now_s: float
    """When this was, on the core's clock."""
