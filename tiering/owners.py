"""Whose blocks are: owners, opaque to the cache, and what of a request belongs to one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from kvstore.store import NO_OWNER

NOBODY: Final = 0
"""The number of NO_OWNER."""
_LEAST_NUMBERS: Final = 64
"""Of fewer none are looked for to be given back."""


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
    """Numbers for owners, small enough for an array over blocks: those that were given back are given out again first."""

    def __init__(self) -> None:
        self._owners = [NO_OWNER]
        self._numbers = {NO_OWNER: NOBODY}
        self._free: list[int] = []
        self._look_at = _LEAST_NUMBERS
        self.several = False
        """Whether anything was ever somebody's. Asked for each block that goes: an attribute is read fastest."""
        self.are_many = False
        """Whether it is worth to look for numbers to give back. Asked for each request."""
        self.came: Callable[[bytes, int], None] = lambda *_: None
        """Told of who is new, and of the number, before it is given out: where this raises an error nobody has it."""

    def __len__(self) -> int:
        """How many numbers there are, NOBODY's and those that were given back among them."""
        return len(self._owners)

    def number(self, owner: bytes) -> int:
        """The owner's number, one that is nobody else's for who is new."""
        number = self._numbers.get(owner)
        if number is None:
            number = self._free[-1] if self._free else len(self._owners)
            self.came(owner, number)
            if self._free:
                self._owners[self._free.pop()] = owner
            else:
                self._owners.append(owner)
            self._numbers[owner] = number
            self.several = True
            self.are_many = len(self._numbers) >= self._look_at
        return number

    def known(self, owner: bytes) -> int | None:
        """The owner's number, if it has one."""
        return self._numbers.get(owner)

    def owner(self, number: int) -> bytes:
        """Whose number it is."""
        return self._owners[number]

    def all(self) -> list[tuple[bytes, int]]:
        """All that have a number. Any thread may ask."""
        return list(self._numbers.items())

    def give_back(self, numbers: Iterable[int]) -> None:
        """Nothing has these numbers any more."""
        for number in numbers:
            del self._numbers[self._owners[number]]
            self._owners[number] = NO_OWNER
            self._free.append(number)
        self._look_at = max(_LEAST_NUMBERS, 2 * len(self._numbers))
        self.are_many = False

    def check(self) -> None:
        """Raise AssertionError unless each number is one owner's, or waits to be given out again."""
        assert len(set(self._free)) == len(self._free), "a number was given back twice"
        given_out = {number: owner for number, owner in enumerate(self._owners) if number not in self._free}
        assert given_out == {number: owner for owner, number in self._numbers.items()}, (
            "a number is two owners'"
        )
