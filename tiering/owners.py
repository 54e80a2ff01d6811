"""Whose blocks are: owners, opaque to the cache, and what of a request belongs to one."""

from dataclasses import dataclass
from typing import Final

from kvstore.store import NO_OWNER

NOBODY: Final = 0
"""The number of NO_OWNER."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Everybody's blocks up to a position, and one owner's from there on."""

    owner: bytes = NO_OWNER
    """OWNER_BYTES bytes."""
    first_block: int = 0

    def of(self, position: int) -> bytes:
        """Whose the block at this position is."""
        return self.owner if position >= self.first_block else NO_OWNER


EVERYBODYS: Final = Ownership()


class Owners:
    """Numbers for owners, small enough for an array over blocks. None is ever given back: a few hundred bytes each."""

    def __init__(self) -> None:
        self._owners = [NO_OWNER]
        self._numbers = {NO_OWNER: NOBODY}
        self.several = False
        """Whether anything was ever somebody's. Asked for each block that goes: an attribute is read fastest."""

    def __len__(self) -> int:
        """How many numbers there are, NOBODY's among them."""
        return len(self._owners)

    def number(self, owner: bytes) -> int:
        """The owner's number, a new one for who is new."""
        number = self._numbers.get(owner)
        if number is None:
            number = self._numbers[owner] = len(self._owners)
            self._owners.append(owner)
            self.several = True
        return number

    def known(self, owner: bytes) -> int | None:
        """The owner's number, if it has one."""
        return self._numbers.get(owner)

    def owner(self, number: int) -> bytes:
        """Whose number it is."""
        return self._owners[number]
