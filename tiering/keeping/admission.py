"""The contract between a cache and whoever says what it keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Fingerprints = NDArray[np.uint64]
"""One number for each block, the same whenever its prefix comes again: shape (blocks,)."""
Verdicts = NDArray[np.int8]
"""A Verdict for each block."""


class Verdict(IntEnum):
    """Whether a block may enter a tier."""

    ADMIT = 1
    REJECT = 2
    """It is not worth the place, or the write."""
    THROTTLED = 3
    """It would be, but the tier has been written to enough for now: another time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hints:
    """What a caller may say of a request. All of it may be wrong: what a hint is worth is learned from what follows."""

    goes_on: bool | None = None
    """Whether a later prompt will begin with all of this one."""
    one_shot: bool = False
    """Nothing of it will be asked for again: the opposite of `goes_on`, save for `shared_blocks`."""
    shared_blocks: int = 0
    """How many of its first blocks other conversations begin with as well: a system prompt, tools, a document."""
    breakpoints: tuple[int, ...] = ()
    """After how many blocks later prompts may part from it. What follows the last of them is for this request only."""

    def __post_init__(self) -> None:
        if self.goes_on and self.one_shot:
            raise ValueError("a request that goes on is no one-shot: give one of the two")
        if self.shared_blocks < 0:
            raise ValueError(f"shared_blocks must be at least 0, not {self.shared_blocks}")
        if any(point < 1 for point in self.breakpoints):
            raise ValueError(f"breakpoints are counts of blocks, at least 1, not {self.breakpoints}")


NO_HINTS: Final = Hints()


KINDS: Final = {"prompt": 0, "chat": 1}
"""Told.kind of what an engine serves, by what recordings call it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a caller says of a request that has ended."""

    output_tokens: int = 0
    kind: int = 0
    """What else requests can be told apart by, a model's role or an API: a small number."""
    hints: Hints = NO_HINTS


NOTHING_TOLD: Final = Told()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A request whose blocks are all on the device, at the moment at which they take their place in its order."""

    fingerprints: Fingerprints
    """Of its blocks, from the first on."""
    told: Told = NOTHING_TOLD


@dataclass(frozen=True, kw_only=True, slots=True)
class Departing:
    """Blocks that give up their place in one tier, and may be copied to the next."""

    tier: int
    """The tier that they would enter: 1 is the one below the first."""
    fingerprints: Fingerprints
    free_blocks: int = 0
    """Places that nobody has, in that tier and those below it: what enters it may go on to them."""
    now_s: float = 0.0
    """On any clock that does not go backwards."""


class Admission(ABC):
    """Says which blocks are worth a place. Neither blocks nor reads a clock; one thread calls it.

    A request's blocks are in the first tier whatever is said, because they were computed there. So what is said of them
    is how they enter its order. Those that were found there, and the first `ended(...)` of all, are *used now*, as always.
    The others are *first to go*, until they are found again: before all that are not, and among themselves the least recently
    used first. A path's first blocks are used whenever later ones are, so a parent never goes before its child.

        order     first to go: d1 c1 c0 | a2 b1 a1 b0 a0
                                        `- as without an admission
    """

    @abstractmethod
    def __init__(self, capacity_blocks: Sequence[int]) -> None:
        """For tiers of so many blocks, from the first one down; a tier that is absent has 0."""

    @abstractmethod
    def ended(self, request: Ended) -> int:
        """Learn from a request, and answer how many of its first blocks are used now. To be asked once for each request."""

    @abstractmethod
    def admit(self, departing: Departing) -> Verdicts:
        """A verdict for each block. Learns nothing: the same blocks may be asked about again."""

    @abstractmethod
    def resize(self, capacity_blocks: Sequence[int]) -> None:
        """The tiers have other sizes from now on."""

    def reasons(self, tier: int) -> Mapping[str, Mapping[str, int]]:  # noqa: ARG002 - not all have reasons to tell
        """How many blocks that would enter a tier each reason has decided about, by reason and verdict. Any thread may ask."""
        return {}

    def check(self) -> None:  # noqa: B027 - not all have something to check
        """Raise AssertionError unless what is remembered is in order."""
