"""What is remembered of blocks, whether they are still somewhere or not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiering.keeping.admission import Fingerprints

Array = NDArray[np.int64]
Mask = NDArray[np.bool_]

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 by the golden ratio: spreads numbers that count up


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What is remembered of some blocks; where `known` is false the other columns mean nothing."""

    known: Mask
    kind: Array
    """The class of the last use."""
    last: Array
    """When that was, in block accesses: 0 where there was none."""
    to_end: Array
    """How many blocks of that request came after it."""
    turn: Array
    """The turn of that request."""
    again: Mask
    """Whether the block was asked for more than once."""


class Ghosts:
    """A table of fixed size, in which a block has one place, where the latest one with the same place replaces it.

    So a block is forgotten by chance, and the sooner, the more others come: what is seen of those that are remembered is
    true of all. 23 bytes a place.
    """

    def __init__(self, num_places: int) -> None:
        """`num_places`: a power of 2."""
        assert num_places & (num_places - 1) == 0, "the number of places is a power of 2"
        self._shift = np.uint64(64 - num_places.bit_length() + 1)
        self._fingerprint = np.zeros(num_places, dtype=np.uint64)
        self._kind = np.zeros(num_places, dtype=np.int16)
        self._last = np.zeros(num_places, dtype=np.int64)
        self._to_end = np.zeros(num_places, dtype=np.int32)
        self._turn = np.zeros(num_places, dtype=np.int8)
        self._again = np.zeros(num_places, dtype=np.bool_)

    def __len__(self) -> int:
        """Number of places."""
        return len(self._fingerprint)

    @property
    def num_bytes(self) -> int:
        """Memory of the table."""
        columns = (self._fingerprint, self._kind, self._last, self._to_end, self._turn, self._again)
        return sum(column.nbytes for column in columns)

    def places(self, fingerprints: Fingerprints) -> NDArray[np.intp]:
        """Where these blocks are remembered, if they are."""
        return (fingerprints * _MIX >> self._shift).astype(np.intp)

    def seen(self, fingerprints: Fingerprints, places: NDArray[np.intp]) -> Seen:
        """What is remembered of these blocks."""
        last = self._last.take(places)
        return Seen(
            known=(self._fingerprint.take(places) == fingerprints) & (last > 0),
            kind=self._kind.take(places).astype(np.int64),
            last=last,
            to_end=self._to_end.take(places).astype(np.int64),
            turn=self._turn.take(places).astype(np.int64),
            again=self._again.take(places),
        )

    def taken(self, places: NDArray[np.intp]) -> Mask:
        """Which of these places have a block."""
        mask: Mask = self._last.take(places) > 0
        return mask

    def remember(
        self,
        fingerprints: Fingerprints,
        places: NDArray[np.intp],
        *,
        kinds: NDArray[np.int16],
        last: int,
        turn: int,
        again: Mask,
    ) -> None:
        """These blocks, all of one request, were used at `last`, above 0; `again`: whether they were remembered."""
        self._fingerprint[places] = fingerprints
        self._kind[places] = kinds
        self._last[places] = last
        self._to_end[places] = np.arange(len(places) - 1, -1, -1, dtype=np.int32)
        self._turn[places] = turn
        self._again[places] = again

    def sample(self, num_places: int) -> tuple[NDArray[np.int16], Array, int]:
        """(class, last use) of the blocks in at most about so many places, and how many blocks each of them stands for."""
        step = max(1, len(self) // num_places)
        taken = self._last[::step] > 0
        return self._kind[::step][taken], self._last[::step][taken], step

    def check(self, now: int) -> None:
        """Raise AssertionError unless each block is where it belongs, and was used by now."""
        (taken,) = np.nonzero(self._last)
        places = self.places(self._fingerprint[taken])
        assert np.array_equal(places, taken), "a block is remembered in another's place"
        assert not len(taken) or self._last[taken].max() <= now, "a use is still to come"
        assert not len(taken) or self._to_end[taken].min() >= 0, "a block comes after its request's end"
