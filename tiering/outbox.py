"""Moves that the core has asked for: to be taken by the driver, and then in flight until they are answered."""

from typing import Any, Final, TypeVar

from tiering.moves import Demote, Move, Promote, Read, SwapIn, SwapOut, Write
from tiering.transfers import NAMES, Transfer, Transfers

_Kind = TypeVar("_Kind", bound=Transfer)
_ANSWERED: Final = (Demote, Promote, SwapOut, SwapIn, Read, Write)


_Flight = tuple[Transfer, float]
"""A move, and since when it is in flight."""


class Outbox:
    """Numbers moves, hands them out once, and remembers which are not over, and since when."""

    def __init__(self) -> None:
        self._last_number = 0
        self._new: list[Move] = []
        self._awaited: dict[type, dict[int, _Flight]] = {kind: {} for kind in NAMES}
        """What is not over, nor overdue, by kind: in the order in which it was asked for."""
        self._overdue: dict[type, dict[int, _Flight]] = {kind: {} for kind in NAMES}
        self.blocks = dict.fromkeys(NAMES, 0)
        """Blocks of all moves of a kind that are neither over nor overdue."""
        self.transfers = Transfers()
        self.now_s = 0.0
        """The time: whoever knows it sets it. What is sent from here on is in flight since then."""
        self.num_expired = 0
        """Moves that have become overdue, ever."""
        self.hangs = False
        """Whether something has taken too long and is still not over. Asked at each step: an attribute is read fastest."""

    def next_number(self) -> int:
        """A number for the next move. Numbers are never reused."""
        self._last_number += 1
        return self._last_number

    def send(self, move: Move) -> None:
        """Ask for a move."""
        self._new.append(move)
        kind = type(move)
        if isinstance(move, _ANSWERED):
            self._awaited[kind][move.number] = (move, self.now_s)
            self.blocks[kind] += len(move.host_slots)

    def take(self) -> list[Move]:
        """The moves asked for since the last call, in the order in which they must be started."""
        new, self._new = self._new, []
        return new

    def answered(self, number: int) -> tuple[Transfer, float]:
        """The move that is over, and how long ago it was asked for. Each is answered once."""
        for kind, flights in self._awaited.items():
            if number in flights:
                move, since_s = flights.pop(number)
                self.blocks[kind] -= len(move.host_slots)
                return move, self.now_s - since_s
        move, since_s = self._flight(number)
        del self._overdue[type(move)][number]
        self.hangs = any(self._overdue.values())
        return move, self.now_s - since_s

    def in_flight(self, number: int) -> Transfer:
        """A move that is not over."""
        return self._flight(number)[0]

    def _flight(self, number: int) -> _Flight:
        for flights in (*self._awaited.values(), *self._overdue.values()):
            if number in flights:
                return flights[number]
        raise KeyError(number)

    def numbers(self, kind: type) -> list[int]:
        """The moves of this kind that are not over."""
        return [*self._awaited[kind], *self._overdue[kind]]

    def moves(self, kind: type[_Kind]) -> list[_Kind]:
        """The moves of this kind that are not over."""
        flights = (*self._awaited[kind].values(), *self._overdue[kind].values())
        return [move for move, _ in flights if isinstance(move, kind)]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Figures of all transfers: see Transfers. Any thread may ask."""
        overdue = {kind: list(flights.values()) for kind, flights in self._overdue.items()}
        return self.transfers.stats(
            {
                kind: blocks + sum(len(move.host_slots) for move, _ in overdue[kind])
                for kind, blocks in self.blocks.items()
            }
        )

    # --- time -----------------------------------------------------------------------------------------------------

    def expire(self, kind: type, deadline_s: float) -> list[Transfer]:
        """The moves of this kind that have been in flight for `deadline_s`; each is told once and is overdue then."""
        flights = self._awaited[kind]
        if not flights:
            return []
        late = list[Transfer]()
        while flights and self.now_s - next(iter(flights.values()))[1] >= deadline_s:
            number, (move, _) = next(iter(flights.items()))
            self._overdue[kind][number] = flights.pop(number)
            self.blocks[kind] -= len(move.host_slots)
            late.append(move)
        self.num_expired += len(late)
        self.hangs |= bool(late)
        return late

    def num_overdue(self, kind: type) -> int:
        """Moves of this kind that took too long and are still not over."""
        return len(self._overdue[kind])

    def oldest_s(self, kind: type) -> float | None:
        """Since when the oldest move of this kind is in flight that is not overdue; None if there is none."""
        flights = self._awaited[kind]
        return next(iter(flights.values()))[1] if flights else None

    @property
    def is_moving(self) -> bool:
        """Whether something is in flight that is not overdue."""
        return any(self._awaited.values())

    @property
    def has_new(self) -> bool:
        """Whether something was asked for that is not taken."""
        return bool(self._new)

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for and nothing is in flight, save what is overdue."""
        return not self._new and not self.is_moving

    def check(self) -> None:
        """Raise AssertionError unless what is in flight is counted, and in order."""
        assert self.hangs == any(self._overdue.values()), "something hangs, or does not"
        for kind, flights in self._awaited.items():
            blocks = sum(len(move.host_slots) for move, _ in flights.values())
            assert blocks == self.blocks[kind], f"{blocks} blocks are in flight, {self.blocks[kind]} counted"
            since_s = [since_s for _, since_s in flights.values()]
            assert since_s == sorted(since_s), "an older move comes behind a later one"
