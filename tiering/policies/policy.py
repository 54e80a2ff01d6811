"""What an eviction order is: the contract between a tier and whoever says which block it gives up first."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, auto

Name = int
"""A block's name, for as long as the process lives: the same prefix has the same name when it comes back."""


class Standing(Enum):
    """Whether a block may go."""

    FREE = auto()
    """It may."""
    PARENT = auto()
    """Not while blocks that follow it are in the tier: it is told when the last of them is gone."""
    HELD = auto()
    """Not now: a request uses it, it is being copied, or it is only on its way."""


Ask = Callable[[Name], Standing]


class PolicyError(Exception):
    """A policy has broken its contract: see `tiering.policies.testing.LAWS`."""


class Policy(ABC):
    """The order in which one tier gives up its blocks.

    A policy knows names and nothing else: no bytes, no leases, no threads, no clock. One thread calls it. It is made with
    one argument, the blocks that the tier holds, and there is one for each tier. What it is told:

        enter -> use* -> evict | leave

    Of blocks that enter or are used together the last of the prompt is told of first, so that, of two blocks of one
    request, the one that others follow counts as the younger. A policy may remember names that have gone, as ghosts,
    but of no more blocks than it was told that the tier holds, or a small multiple of that.
    """

    @abstractmethod
    def __init__(self, capacity_blocks: int) -> None:
        """An empty order for a tier of so many blocks, at least 1."""

    @abstractmethod
    def enter(self, name: Name, position: int) -> None:
        """A block gets a place in the tier. `position`: how many blocks come before it in its prompt."""

    @abstractmethod
    def use(self, name: Name) -> None:
        """A request found a block of the order here. Told once for each request, not for the one that brought it."""

    @abstractmethod
    def evict(self, ask: Ask, coming: Name | None) -> Name | None:
        """Take a block out of the order whose standing is FREE, and answer it; None only if there is none.

        `ask` tells the standing of any block of the order. `coming`: the block that needs the place, if that is known; it
        enters next. The order may be changed meanwhile.
        """

    @abstractmethod
    def leave(self, name: Name) -> None:
        """A block of the order has gone for other reasons than room: it was removed, is over, or never came."""

    def freed(self, name: Name) -> None:  # noqa: B027 - most need not know
        """No block of the tier follows this one of the order any more. A PARENT that was passed over may go."""
